// Texts and their encoding; the Python tests compare whole tokenizers with the tokenizers library.
#include <doctest/doctest.h>

#include "errors.hpp"
#include "text/added_words.hpp"
#include "text/byte_pairs.hpp"
#include "text/code_points.hpp"
#include "text/normalizer.hpp"
#include "text/several_vectors.hpp"

using namespace infid;

namespace {

std::u32string normal(const std::string& text) {
  const CodePoints codes = prompt_codes(text);
  return normalized(codes, 0, codes.size()).codes;
}

}  // namespace

TEST_CASE("texts are composed, in lowercase, and have single spaces") {
  CHECK(normal("  A\t\n B ") == U"a b");
  CHECK(normal("E\u0301 \u0130") == U"é i\u0307");
  CHECK(normal("a\u0301\u0327") == U"á\u0327");
  CHECK(normal("\u1100\u1161\u11a8\u212b") == U"각å");
  CHECK(normal(" \u3000") == U"");
}

TEST_CASE("normalized characters know where they come from") {
  const CodePoints codes = prompt_codes(" xe\u0301 y");
  const CodePoints found = normalized(codes, 0, codes.size());
  CHECK(found.codes == U"xé y");
  CHECK(found.starts == std::vector<std::size_t>{1, 2, 5, 6});
}

TEST_CASE("the longest added word is found, with its spaces") {
  AddedWords words;
  CHECK_FALSE(words.find(U"ab", 0));
  words.add({U"ab", 1});
  words.add({U"abc", 2, false, true, true});
  words.add({U"x", 3, true});
  const auto found = words.find(U"a  abc  d", 0);
  REQUIRE(found);
  CHECK(found->id == 2);
  CHECK(found->begin == 1);
  CHECK(found->end == 8);
  CHECK_FALSE(words.find(U"xy yx", 0));
  CHECK(words.find(U"y x!", 0)->id == 3);
}

TEST_CASE("pairs are merged in the order of their ranks") {
  TokenizerFile file;
  for (const char* word : {"a", "b", "c", "a!", "b!", "c!", "ab", "bc!", "abc!", "?"}) {
    file.words.emplace(word, static_cast<std::int32_t>(file.words.size()));
  }
  file.merges = {{"b", "c!"}, {"a", "b"}, {"ab", "c!"}};
  file.unknown = "?";
  file.suffix = "!";
  file.words.emplace("abc!", 8);
  using Ids = std::vector<std::pair<std::int32_t, std::size_t>>;
  const BytePairs pairs(file);
  CHECK(pairs.encode("abc") == Ids{{0, 1}, {7, 2}});
  CHECK(pairs.encode("aba") == Ids{{6, 2}, {3, 1}});
  CHECK(pairs.encode("x") == Ids{{9, 1}});
  CHECK(pairs.encode("").empty());
  file.merges.emplace_back("a", "nothing");
  CHECK_THROWS_AS(BytePairs{file}, Malformed);
}

TEST_CASE("a word with several vectors is written out once") {
  const SeveralVectors word = several_vectors("<c>(?!_(?:0|1)(?![0-9]))(?: <c>_1)?", "<c>_0 <c>_1");
  const auto text = [&](const std::string& prompt) { return written_out(prompt_codes(prompt), word).codes; };
  CHECK(text("a <c> b") == U"a <c>_0 <c>_1 b");
  CHECK(text("<c> <c>_1") == U"<c>_0 <c>_1");
  CHECK(text("<c>_0 <c>_10") == U"<c>_0 <c>_0 <c>_1_10");
  CHECK_THROWS_AS(several_vectors(".+", "x"), Malformed);
  CHECK_THROWS_AS(several_vectors("<c>(?!_(?:0|2)(?![0-9]))(?: <c>_1)?", "x"), Malformed);
}

TEST_CASE("a prompt that is not UTF-8 is an input error") {
  CHECK_THROWS_WITH_AS(prompt_codes("a\xff"),
                       "A prompt 'a\\udcff' is not valid Unicode (surrogates not allowed). Type it again.", Error);
}

TEST_CASE("texts lose their spaces at the ends, as in Python") {
  CHECK(stripped(" \x1c a b\u3000\n") == "a b");
  CHECK(stripped(" \n ").empty());
}
