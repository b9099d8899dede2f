// Reads JSON: see json.hpp. Places in messages count code points, as Python's do.
#include <algorithm>
#include <charconv>
#include <system_error>
#include <unordered_map>

#include "errors.hpp"
#include "folder/json.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr int most_levels = 900;  // about Python's recursion limit
constexpr std::size_t most_digits = 4300;  // of an integer, Python's limit
const char* const no_value = "Expecting value";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Whether a number that no double can hold is large, not next to zero.
bool is_large(std::string_view digits) {
  const std::size_t mark = std::min(digits.find_first_of("eE"), digits.size());
  const std::size_t first = digits.find_first_of("123456789");
  if (first >= mark) return false;
  const bool has_sign = mark + 1 < digits.size() && digits[mark + 1] == '+';
  const std::string_view power = digits.substr(std::min(mark + 1 + has_sign, digits.size()));
  std::int64_t exponent = 0;
  if (std::from_chars(power.data(), power.data() + power.size(), exponent).ec == std::errc::result_out_of_range) {
    return power[0] != '-';
  }
  const auto places = static_cast<std::int64_t>(std::min(digits.find('.'), mark)) - static_cast<std::int64_t>(first);
  return places + exponent > 0;
}

class Reader {
 public:
  Reader(std::string_view text, Repeated names) : text_(text), names_(names) {}

  Json document() {
    skip_space();
    Json found = value();
    skip_space();
    if (place_ != text_.size()) fail_at("Extra data", place_);
    return found;
  }

 private:
  [[noreturn]] void fail_at(const std::string& what, std::size_t place) const {
    const std::string_view before = text_.substr(0, place);
    const std::size_t line = 1 + static_cast<std::size_t>(std::count(before.begin(), before.end(), '\n'));
    const std::size_t start = line == 1 ? 0 : before.rfind('\n') + 1;
    throw Malformed(what + ": line " + std::to_string(line) + " column " +
                    std::to_string(count_codes(before.substr(start)) + 1) + " (char " +
                    std::to_string(count_codes(before)) + ")");
  }

  char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }
  bool ended() const { return place_ >= text_.size(); }

  void skip_space() {
    while (!ended() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++place_;
  }

  bool takes(std::string_view word) {
    if (text_.substr(place_, word.size()) != word) return false;
    place_ += word.size();
    return true;
  }

  Json value() {
    if (ended()) fail_at(no_value, place_);
    Json found;
    switch (peek()) {
      case '"':
        found.kind = Json::Kind::text;
        found.text = string();
        return found;
      case '{': return nested(&Reader::object);
      case '[': return nested(&Reader::list);
      default: break;
    }
    if (takes("null")) return found;
    found.kind = Json::Kind::boolean;
    found.boolean = takes("true");
    if (found.boolean || takes("false")) return found;
    for (const char* word : {"NaN", "Infinity", "-Infinity"}) {
      if (takes(word)) throw Malformed(std::string(word) + " is not a JSON number");
    }
    return number();
  }

  Json nested(Json (Reader::*read)()) {
    if (++levels_ > most_levels) throw Malformed("it is nested too deeply");
    ++place_;
    skip_space();
    Json found = (this->*read)();
    --levels_;
    return found;
  }

  Json list() {
    Json found;
    found.kind = Json::Kind::list;
    if (takes("]")) return found;
    while (true) {
      found.list.push_back(value());
      skip_space();
      if (takes("]")) return found;
      next_entry();
    }
  }

  Json object() {
    Json found;
    found.kind = Json::Kind::object;
    if (takes("}")) return found;
    std::unordered_map<std::string, std::size_t> places;
    while (true) {
      if (peek() != '"') fail_at("Expecting property name enclosed in double quotes", place_);
      std::string name = string();
      skip_space();
      if (!takes(":")) fail_at("Expecting ':' delimiter", place_);
      skip_space();
      Json entry = value();
      const auto [known, added] = places.emplace(name, found.object.size());
      if (added) {
        found.object.push_back({std::move(name), std::move(entry)});
      } else if (names_ == Repeated::rejected) {
        throw Malformed("duplicate field `" + name + "`");
      } else {
        found.object[known->second].value = std::move(entry);
      }
      skip_space();
      if (takes("}")) return found;
      next_entry();
    }
  }

  void next_entry() {
    if (!takes(",")) fail_at("Expecting ',' delimiter", place_);
    skip_space();
  }

  std::string string() {
    const std::size_t start = place_++;
    std::string found;
    while (true) {
      const std::size_t plain = place_;
      while (!ended() && peek() != '"' && peek() != '\\' && static_cast<unsigned char>(peek()) > 0x1f) ++place_;
      found.append(text_, plain, place_ - plain);
      if (ended()) fail_at("Unterminated string starting at", start);
      if (takes("\"")) return found;
      if (peek() != '\\') fail_at("Invalid control character at", place_);
      ++place_;
      if (ended()) fail_at("Unterminated string starting at", start);
      append_escape(found);
    }
  }

  void append_escape(std::string& found) {
    static const std::string_view letters = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (peek() != 'u') {
      const std::size_t which = letters.find(peek());
      if (which == std::string_view::npos) fail_at("Invalid \\escape", place_ - 1);
      found += meant[which];
      ++place_;
      return;
    }
    std::uint32_t code = hexadecimal();
    if (code >= 0xd800 && code < 0xdc00 && text_.substr(place_, 2) == "\\u" && place_ + 6 < text_.size()) {
      const std::size_t before = place_++;
      const std::uint32_t second = hexadecimal();
      if (second >= 0xdc00 && second < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
      } else {
        place_ = before;
      }
    }
    append_utf8(found, code);
  }

  // The four digits behind a `u`, where the reader is.
  std::uint32_t hexadecimal() {
    const std::size_t start = place_++;
    std::uint32_t code = 0;
    const char* const first = text_.data() + place_;
    if (place_ + 4 >= text_.size()) fail_at("Invalid \\uXXXX escape", start);
    const auto [end, problem] = std::from_chars(first, first + 4, code, 16);
    if (problem != std::errc() || end != first + 4) fail_at("Invalid \\uXXXX escape", start);
    place_ += 4;
    return code;
  }

  void skip_digits() {
    while (is_digit(peek())) ++place_;
  }

  Json number() {
    const std::size_t start = place_;
    takes("-");
    if (!is_digit(peek())) fail_at(no_value, start);
    if (!takes("0")) skip_digits();
    const std::size_t whole = place_;
    if (peek() == '.' && place_ + 1 < text_.size() && is_digit(text_[place_ + 1])) {
      ++place_;
      skip_digits();
    }
    const std::size_t fraction = place_;
    if (takes("e") || takes("E")) {
      if (!takes("-")) takes("+");
      if (is_digit(peek())) {
        skip_digits();
      } else {
        place_ = fraction;
      }
    }
    const std::string_view digits = text_.substr(start, place_ - start);
    return place_ == whole ? integer(digits) : decimal(digits);
  }

  static Json integer(std::string_view digits) {
    const std::size_t count = digits.size() - (digits[0] == '-');
    if (count > most_digits) {
      throw Malformed("Exceeds the limit (4300 digits) for integer string conversion: value has " +
                      std::to_string(count) + " digits; use sys.set_int_max_str_digits() to increase the limit");
    }
    Json found;
    found.kind = Json::Kind::integer;
    found.text = digits == "-0" ? "0" : std::string(digits);
    return found;
  }

  static Json decimal(std::string_view digits) {
    Json found;
    found.kind = Json::Kind::number;
    const auto problem = std::from_chars(digits.data(), digits.data() + digits.size(), found.number).ec;
    if (problem != std::errc()) {
      if (is_large(digits)) throw Malformed(std::string(digits.substr(0, 20)) + " is too large a number");
      found.number = digits[0] == '-' ? -0.0 : 0.0;
    }
    return found;
  }

  std::string_view text_;
  Repeated names_;
  std::size_t place_ = 0;
  int levels_ = 0;
};

}  // namespace

Json parse_json(std::string_view content, Repeated names) {
  if (content.substr(0, 3) == "\xef\xbb\xbf") content.remove_prefix(3);
  const std::string problem = utf8_problem(content, true);
  if (!problem.empty()) throw Malformed(problem);
  return Reader(content, names).document();
}

}  // namespace infid
