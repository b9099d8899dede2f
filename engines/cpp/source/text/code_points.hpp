// Unicode text as code points that remember where they come from, and the classes that CLIP's tokenizer asks for.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace infid {

// Code points, and the byte of the prompt at which each one starts.
struct CodePoints {
  std::u32string codes;
  std::vector<std::size_t> starts;

  std::size_t size() const { return codes.size(); }
  void add(char32_t code, std::size_t start) {
    codes += code;
    starts.push_back(start);
  }
};

// Throws input if it is not UTF-8, with the sentence of `infid_engines.validation.text_of`.
CodePoints prompt_codes(const std::string& prompt);
// The code points of well-formed text.
std::u32string codes_of(const std::string& text);

bool is_space(char32_t code);   // \s
bool is_letter(char32_t code);  // \p{L}
bool is_number(char32_t code);  // \p{N}
bool is_word(char32_t code);    // \w

// Python's str.strip.
std::string stripped(const std::string& text);

}  // namespace infid
