// See several_vectors.hpp.
#include "text/several_vectors.hpp"

#include <algorithm>

#include "errors.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

// Reads the parts of a pattern from its start.
class PatternReader {
 public:
  explicit PatternReader(const std::string& pattern) : codes_(codes_of(pattern)) {}

  // A text as Python's re.escape writes it, up to a parenthesis.
  std::u32string literal() {
    std::u32string found;
    while (place_ < codes_.size() && codes_[place_] != U'(' && codes_[place_] != U')') {
      const bool escaped = codes_[place_] == U'\\';
      place_ += escaped;
      const bool is_end = place_ == codes_.size();
      if (is_end || (escaped ? is_word(codes_[place_]) : kSpecial.find(codes_[place_]) != std::u32string::npos)) fail();
      found += codes_[place_++];
    }
    if (found.empty()) fail();
    return found;
  }

  bool take(const std::u32string& text) {
    if (codes_.compare(place_, text.size(), text) != 0) return false;
    place_ += text.size();
    return true;
  }

  void expect(const std::u32string& text) {
    if (!take(text)) fail();
  }

  bool at_end() const { return place_ == codes_.size(); }

  [[noreturn]] static void fail() { throw Malformed("it replaces words by a pattern of an unknown kind"); }

 private:
  inline static const std::u32string kSpecial = U"[]{}|*+?.^$";
  std::u32string codes_;
  std::size_t place_ = 0;
};

std::u32string number(std::size_t value) { return codes_of(std::to_string(value)); }

// Whether "_" and the number of one of the vectors stand at a place.
bool is_numbered(const std::u32string& codes, std::size_t place, std::size_t vectors) {
  if (place >= codes.size() || codes[place] != U'_') return false;
  const std::size_t end = std::min(codes.find_first_not_of(U"0123456789", place + 1), codes.size());
  const std::u32string digits = codes.substr(place + 1, std::min<std::size_t>(end - place - 1, 20));
  for (std::size_t i = 0; i < vectors; ++i) {
    if (digits == number(i)) return true;
  }
  return false;
}

}  // namespace

SeveralVectors several_vectors(const std::string& pattern, const std::string& content) {
  if (!utf8_problem(pattern).empty() || !utf8_problem(content).empty()) PatternReader::fail();
  PatternReader reader(pattern);
  SeveralVectors found;
  found.word = reader.literal();
  reader.expect(U"(?!_(?:0");
  for (found.vectors = 1; reader.take(U"|" + number(found.vectors));) ++found.vectors;
  reader.expect(U")(?![0-9]))(?: ");
  found.others = U" " + reader.literal();
  reader.expect(U")?");
  if (!reader.at_end()) PatternReader::fail();
  found.content = codes_of(content);
  return found;
}

CodePoints written_out(const CodePoints& text, const SeveralVectors& word) {
  CodePoints found;
  for (std::size_t place = 0; place < text.size();) {
    std::size_t end = place + word.word.size();
    if (text.codes.compare(place, word.word.size(), word.word) != 0 || is_numbered(text.codes, end, word.vectors)) {
      found.add(text.codes[place], text.starts[place]);
      ++place;
      continue;
    }
    if (text.codes.compare(end, word.others.size(), word.others) == 0) end += word.others.size();
    // the tokenizers library places what replaces a match at its last character
    for (const char32_t code : word.content) found.add(code, text.starts[end - 1]);
    place = end;
  }
  return found;
}

}  // namespace infid
