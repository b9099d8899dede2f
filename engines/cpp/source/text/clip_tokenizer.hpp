// One of SDXL's two tokenizers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/added_words.hpp"
#include "text/byte_pairs.hpp"
#include "text/code_points.hpp"
#include "text/tokenizer_file.hpp"

namespace infid {

class ClipTokenizer {
 public:
  // Throws engine_folder.
  explicit ClipTokenizer(const std::string& path);

  const std::string& pad_token() const { return pad_token_; }
  // The 77 ids of a prompt. Throws input.
  std::vector<std::int32_t> encode(const std::string& prompt) const;
  // The words at the end of a prompt that do not fit into the 77 ids. Throws input.
  std::string dropped(const std::string& prompt) const;

 private:
  // `start`: byte of the prompt; tokens of one word have the same number.
  struct Token {
    std::int32_t id;
    std::size_t start, word;
  };
  class Reader;

  ClipTokenizer(const std::string& path, const TokenizerFile& file);
  void add_words(const TokenizerFile& file);
  CodePoints normalized_part(const CodePoints& text, std::size_t begin, std::size_t end) const;
  // The first tokens of a prompt, without those around it; one more than fit, if it has them.
  std::vector<Token> first_tokens(const std::string& prompt) const;
  std::size_t room() const { return kPromptLength - before_.size() - after_.size(); }

  AddedWords raw_words_, normalized_words_;  // found in the prompt as it is, and in its normalized parts
  std::vector<SeveralVectors> several_;
  BytePairs pairs_;
  std::vector<std::int32_t> before_, after_;
  std::int32_t pad_;
  std::string pad_token_;
};

}  // namespace infid
