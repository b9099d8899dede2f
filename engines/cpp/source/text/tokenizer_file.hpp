// Reads a tokenizer file, and checks it first, as `infid_export.runtime.tokenizer_file` does.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace infid {

constexpr std::size_t kPromptLength = 77;

// A word that is split off before the byte-pair encoding, with the flags of `tokenizers.AddedToken`.
struct AddedWord {
  std::string content;
  std::int32_t id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false;
};

// A word of textual inversion with several vectors, which a prompt's text is changed for: `<word>` becomes
// `<word>_0 <word>_1 …`, unless a number follows already.
struct SeveralVectors {
  std::u32string word, others, content;
  std::size_t vectors = 0;
};

struct TokenizerFile {
  std::unordered_map<std::string, std::int32_t> words;
  std::vector<std::pair<std::string, std::string>> merges;  // the first one has priority
  std::string unknown, suffix;                              // the token for unknown symbols; the mark of a word's end
  std::vector<AddedWord> added;
  std::vector<SeveralVectors> several;
  std::vector<std::int32_t> before, after;  // ids around those of a prompt
  std::int32_t pad = 0;
  std::string pad_token;
};

// Throws engine_folder if the file is missing, broken, or not one that turns every text into 77 ids.
TokenizerFile read_tokenizer_file(const std::string& path);

}  // namespace infid
