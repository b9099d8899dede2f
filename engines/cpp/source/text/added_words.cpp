// See added_words.hpp.
#include "text/added_words.hpp"

#include <algorithm>

namespace infid {
namespace {

bool stands_alone(const std::u32string& text, std::size_t begin, std::size_t end) {
  return (begin == 0 || !is_word(text[begin - 1])) && (end == text.size() || !is_word(text[end]));
}

}  // namespace

void AddedWords::add(Word word) {
  std::vector<Word>& same = words_[word.content.front()];
  same.push_back(std::move(word));
  std::stable_sort(same.begin(), same.end(),
                   [](const Word& left, const Word& right) { return left.content.size() > right.content.size(); });
}

const AddedWords::Word* AddedWords::longest_at(const std::u32string& text, std::size_t place) const {
  const auto same = words_.find(text[place]);
  if (same == words_.end()) return nullptr;
  for (const Word& word : same->second) {
    if (text.compare(place, word.content.size(), word.content) == 0) return &word;
  }
  return nullptr;
}

std::optional<AddedWords::Match> AddedWords::find(const std::u32string& text, std::size_t from) const {
  for (std::size_t place = from; place < text.size() && !words_.empty();) {
    const Word* word = longest_at(text, place);
    if (!word) {
      ++place;
      continue;
    }
    Match match{place, place + word->content.size(), word->id};
    place = match.end;
    if (word->single_word && !stands_alone(text, match.begin, match.end)) continue;
    while (word->lstrip && match.begin > from && is_space(text[match.begin - 1])) --match.begin;
    while (word->rstrip && match.end < text.size() && is_space(text[match.end])) ++match.end;
    return match;
  }
  return std::nullopt;
}

}  // namespace infid
