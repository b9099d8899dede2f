// See clip_tokenizer.hpp.
#include "text/clip_tokenizer.hpp"

#include <algorithm>

#include "errors.hpp"
#include "folder/unicode.hpp"
#include "text/normalizer.hpp"
#include "text/several_vectors.hpp"

namespace infid {
namespace {

enum class Class { space, letter, number, other };

Class class_of(char32_t code) {
  if (is_space(code)) return Class::space;
  if (is_letter(code)) return Class::letter;
  return is_number(code) ? Class::number : Class::other;
}

// Length of the ending of a contraction, such as 's; 0 if there is none.
std::size_t contraction(const std::u32string& codes, std::size_t place, std::size_t end) {
  static const std::u32string endings[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
  for (const std::u32string& ending : endings) {
    if (end - place >= ending.size() && codes.compare(place, ending.size(), ending) == 0) return ending.size();
  }
  return 0;
}

// End of the word that starts at a place, which is no space: a contraction's ending, a row of letters, a number's
// character, or a row of other characters.
std::size_t word_end(const std::u32string& codes, std::size_t place, std::size_t end) {
  if (const std::size_t length = contraction(codes, place, end)) return place + length;
  const Class first = class_of(codes[place]);
  if (first == Class::number) return place + 1;
  return static_cast<std::size_t>(
      std::find_if(codes.begin() + static_cast<std::ptrdiff_t>(place), codes.begin() + static_cast<std::ptrdiff_t>(end),
                   [first](char32_t code) { return class_of(code) != first; }) -
      codes.begin());
}

}  // namespace

// Reads a prompt's tokens from its start, as many as are wanted.
class ClipTokenizer::Reader {
 public:
  Reader(const ClipTokenizer& tokenizer, std::size_t most) : tokenizer_(tokenizer), most_(most) {}

  std::vector<Token> read(const CodePoints& prompt) {
    split(prompt, tokenizer_.raw_words_, [&](std::size_t begin, std::size_t end) {
      const CodePoints part = tokenizer_.normalized_part(prompt, begin, end);
      split(part, tokenizer_.normalized_words_, [&](std::size_t from, std::size_t to) { read_words(part, from, to); });
    });
    tokens_.resize(std::min(tokens_.size(), most_));
    return std::move(tokens_);
  }

 private:
  bool is_done() const { return tokens_.size() >= most_; }

  // Reads added words, and passes on what is between them.
  template <class Between>
  void split(const CodePoints& text, const AddedWords& words, const Between& between) {
    for (std::size_t place = 0; place < text.size() && !is_done();) {
      const auto match = words.find(text.codes, place);
      const std::size_t end = match ? match->begin : text.size();
      if (place < end) between(place, end);
      if (!match) return;
      tokens_.push_back({match->id, text.starts[match->begin], words_++});
      place = match->end;
    }
  }

  void read_words(const CodePoints& text, std::size_t place, std::size_t end) {
    while (place < end && !is_done()) {
      if (is_space(text.codes[place])) {
        ++place;
        continue;
      }
      const std::size_t next = word_end(text.codes, place, end);
      read_word(text, place, next);
      place = next;
    }
  }

  void read_word(const CodePoints& text, std::size_t begin, std::size_t end) {
    std::string bytes;
    std::vector<std::size_t> starts;  // of each byte
    for (std::size_t i = begin; i < end; ++i) {
      append_utf8(bytes, text.codes[i]);
      starts.resize(bytes.size(), text.starts[i]);
    }
    std::size_t byte = 0;
    for (const auto& [id, length] : tokenizer_.pairs_.encode(bytes)) {
      tokens_.push_back({id, starts[byte], words_});
      byte += length;
    }
    ++words_;
  }

  const ClipTokenizer& tokenizer_;
  const std::size_t most_;
  std::vector<Token> tokens_;
  std::size_t words_ = 0;
};

namespace {

BytePairs pairs_of(const std::string& path, const TokenizerFile& file) {
  try {
    return BytePairs(file);
  } catch (const Malformed& error) {
    folder_error(path + " cannot be read (" + error.what() + ").", "Build the engine folder again.");
  }
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::string& path) : ClipTokenizer(path, read_tokenizer_file(path)) {}

ClipTokenizer::ClipTokenizer(const std::string& path, const TokenizerFile& file)
    : several_(file.several), pairs_(pairs_of(path, file)), before_(file.before), after_(file.after), pad_(file.pad),
      pad_token_(file.pad_token) {
  add_words(file);
}

// A word that is normalized is found by its normalized content.
void ClipTokenizer::add_words(const TokenizerFile& file) {
  for (const AddedWord& word : file.added) {
    CodePoints content = prompt_codes(word.content);
    if (word.normalized) content = normalized_part(content, 0, content.size());
    if (content.codes.empty()) continue;
    AddedWords& words = word.normalized ? normalized_words_ : raw_words_;
    words.add({content.codes, word.id, word.single_word, word.lstrip, word.rstrip});
  }
}

CodePoints ClipTokenizer::normalized_part(const CodePoints& text, std::size_t begin, std::size_t end) const {
  CodePoints found = normalized(text, begin, end);
  for (const SeveralVectors& word : several_) found = written_out(found, word);
  return found;
}

std::vector<ClipTokenizer::Token> ClipTokenizer::first_tokens(const std::string& prompt) const {
  return Reader(*this, room() + 1).read(prompt_codes(prompt));
}

std::vector<std::int32_t> ClipTokenizer::encode(const std::string& prompt) const {
  std::vector<Token> tokens = first_tokens(prompt);
  tokens.resize(std::min(tokens.size(), room()));
  std::vector<std::int32_t> ids = before_;
  for (const Token& token : tokens) ids.push_back(token.id);
  ids.insert(ids.end(), after_.begin(), after_.end());
  ids.resize(kPromptLength, pad_);
  return ids;
}

std::string ClipTokenizer::dropped(const std::string& prompt) const {
  const std::vector<Token> tokens = first_tokens(prompt);
  if (tokens.size() <= room()) return "";
  // a word that was cut in two is dropped as a whole, unless it is the whole prompt, as in scripts without spaces
  const auto first = std::find_if(tokens.begin(), tokens.end(),
                                  [&](const Token& token) { return token.word == tokens.back().word; });
  return stripped(prompt.substr(first->start ? first->start : tokens.back().start));
}

}  // namespace infid
