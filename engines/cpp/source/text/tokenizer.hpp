// SDXL's two CLIP tokenizers, equal to the `tokenizers` library on `tokenizer.json`.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace infid {

class ClipTokenizer;

class PromptTokenizer {
 public:
  // `folder` holds tokenizer/tokenizer.json and tokenizer_2/tokenizer.json. Throws engine_folder.
  explicit PromptTokenizer(const std::string& folder);
  ~PromptTokenizer();

  // The 77 ids of a prompt for the first (0) or second (1) text encoder. Throws input if it is not valid UTF-8.
  std::vector<std::int32_t> encode(int encoder, const std::string& prompt) const;
  // What the user should know about how a prompt is read, with Python's sentences.
  std::vector<std::string> notes(const std::string& prompt) const;

 private:
  std::array<std::unique_ptr<const ClipTokenizer>, 2> tokenizers_;
};

}  // namespace infid
