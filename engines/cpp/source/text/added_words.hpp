// Words that are split off a text before it is encoded, as the AddedVocabulary of the `tokenizers` library.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "text/code_points.hpp"

namespace infid {

class AddedWords {
 public:
  struct Word {
    std::u32string content;
    std::int32_t id = 0;
    bool single_word = false, lstrip = false, rstrip = false;
  };
  // A word's place in a text, with the spaces that it takes along.
  struct Match {
    std::size_t begin, end;
    std::int32_t id;
  };

  // `content` is not empty.
  void add(Word word);
  // The first match at or behind a place, where the last match ends.
  std::optional<Match> find(const std::u32string& text, std::size_t from) const;

 private:
  const Word* longest_at(const std::u32string& text, std::size_t place) const;

  std::unordered_map<char32_t, std::vector<Word>> words_;  // by first character, the longest first
};

}  // namespace infid
