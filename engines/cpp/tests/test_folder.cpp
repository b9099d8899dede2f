// Documents, safetensors and written files, where no Python is needed to know what is right.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"
#include "folder/unicode.hpp"

using namespace infid;

namespace {

std::string problem_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Malformed& problem) {
    return problem.what();
  }
  return "";
}

// A folder of the test's own, removed at its end.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "infid-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~Scratch() { std::filesystem::remove_all(folder_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::size_t files() const {
    const std::filesystem::directory_iterator all(folder_);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }

 private:
  std::string folder_;
};

}  // namespace

TEST_CASE("a document keeps its seal, and a change breaks it") {
  Json document = sealed(parse_json(R"({"b": [1, 2.50, null], "a": "é"})"));
  CHECK(canonical_json(unsealed(document)) == R"({"a":"\u00e9","b":[1,2.5,null]})");
  CHECK(canonical_json(sealed(document)) == canonical_json(document));
  document.object[0].value.list[0].text = "2";
  CHECK(problem_of([&] { unsealed(document); }) ==
        "it has changed since it was written: its content does not match its seal");
  CHECK(problem_of([] { unsealed(parse_json("{}")); }) == "it has no seal");
  CHECK(problem_of([] { unsealed(parse_json("[]")); }) == "it is a list, not an object");
}

TEST_CASE("entries are checked by type") {
  const Kind kind = Kind::record({{"x", Kind::either(Kind::integer(), Kind::list_of(Kind::number()))},
                                  {"y", Kind::mapping_of(Kind::text()), true}});
  const auto problem = [&](const char* text) { return problem_of([&] { kind.check(parse_json(text), "it"); }); };
  CHECK(problem(R"({"x": 3})").empty());
  CHECK(problem(R"({"x": [1, 2.5], "y": {"a": "b"}})").empty());
  CHECK(problem("3") == "it is 3, not an object");
  CHECK(problem("{}") == "it lacks 'x'");
  CHECK(problem(R"({"z": 1, "q": 2})") == "it has an unknown entry 'q'");
  CHECK(problem(R"({"x": true})") == "it.x is true, not a whole number; it.x is true, not a list");
  CHECK(problem(R"({"x": [1, {}]})") == "it.x is a list, not a whole number; it.x[1] is an object, not a number");
  CHECK(problem(R"({"x": 1, "y": {"a": 1e16}})") == "it.y.a is a large number, not a string");
}

TEST_CASE("numbers at the end of a text are not read beyond it") {
  for (const std::string text : {"-", "1.", "1e", "1e+", "12", "[1", "\"\\u12", "\"\\ud83d\\u", "nul"}) {
    const std::vector<char> exact(text.begin(), text.end());  // so that the sanitizer sees the end
    CHECK_NOTHROW(problem_of([&] { parse_json({exact.data(), exact.size()}); }));
  }
}

TEST_CASE("why a text is not UTF-8") {
  CHECK(utf8_problem("é€🙂").empty());
  CHECK(utf8_problem("\xed\xa0\x80", true).empty());
  CHECK(utf8_problem("a\xed\xa0\x80") ==
        "'utf-8' codec can't decode byte 0xed in position 1: invalid continuation byte");
  CHECK(first_codes("é€🙂", 2) == "é€");
  CHECK(first_codes("é", 9) == "é");
}

TEST_CASE("a file is written whole, or the old one stays") {
  const Scratch scratch;
  const std::string path = scratch.path("file");
  for (const std::string content : {"first", "", "second"}) {
    write_file(path, content);
    CHECK(read_file(path, 100) == content);
  }
  write_file(path, "secret", true);
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  CHECK(problem_of([&] { write_file(scratch.path("missing/file"), "x"); }) == "No such file or directory");
  std::filesystem::create_directory(scratch.path("folder"));
  CHECK(problem_of([&] { write_file(scratch.path("folder"), "x"); }) == "Is a directory");
  CHECK(scratch.files() == 2);
  CHECK(problem_of([&] { read_file(path, 3); }) == "it has more than 0 MiB");
}

TEST_CASE("tensors are found where the header says, and nowhere else") {
  const float values[] = {1, 2, 3};
  const std::string content = sealed_safetensors({{"name", "a \"b\""}}, {{"x", {Dtype::float32, {3}, values}},
                                                                        {"empty", {Dtype::int8, {0, 5}, nullptr}}});
  const std::vector<char> exact(content.begin(), content.end());
  const auto parsed = [&](std::size_t size) {
    return parse_safetensors(reinterpret_cast<const std::byte*>(exact.data()), size);
  };
  const Safetensors file = parsed(exact.size());
  CHECK(file.metadata.at("name") == "a \"b\"");
  CHECK(file.metadata.at("infid_seal") == array_seal(file));
  CHECK(std::memcmp(file.tensors.at("x").data, values, sizeof values) == 0);
  CHECK(file.tensors.at("empty").shape == Shape{0, 5});
  for (std::size_t size = 0; size < exact.size(); ++size) CHECK(!problem_of([&] { parsed(size); }).empty());
}

TEST_CASE("an empty file is mapped as nothing") {
  const Scratch scratch;
  write_file(scratch.path("empty"), "");
  CHECK(MappedFile(scratch.path("empty")).size() == 0);
  CHECK(problem_of([&] { MappedFile file(scratch.path("none")); }).find("No such file") != std::string::npos);
}
