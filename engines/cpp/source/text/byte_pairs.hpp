// Byte-pair encoding of words, as the BPE model of the `tokenizers` library.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/tokenizer_file.hpp"

namespace infid {

class BytePairs {
 public:
  // Throws Malformed if a merge or the unknown token is not in the vocabulary.
  explicit BytePairs(const TokenizerFile& file);
  // The ids of a word, and how many of its bytes each one stands for.
  std::vector<std::pair<std::int32_t, std::size_t>> encode(std::string_view word) const;

 private:
  struct Merge {
    std::uint32_t rank;
    std::int32_t id;
  };
  const Merge* merge_of(std::int32_t left, std::int32_t right) const;

  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<std::int32_t, 256> inside_{}, last_{};  // ids of bytes
};

}  // namespace infid
