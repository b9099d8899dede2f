// See errors.hpp.
#include "errors.hpp"

#include <utf8proc.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr std::size_t kLongestQuoted = 40, kLongestShown = 80;

// Well-formed text, in which a byte that is not UTF-8 is a lone surrogate, as with Python's `surrogateescape`.
std::string escaped(const std::string& text) {
  std::string found;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t place = 0; place < text.size();) {
    utf8proc_int32_t code = 0;
    const auto left = static_cast<utf8proc_ssize_t>(text.size() - place);
    const utf8proc_ssize_t length = utf8proc_iterate(bytes + place, left, &code);
    append_utf8(found, length > 0 ? static_cast<std::uint32_t>(code) : 0xdc00u + bytes[place]);
    place += length > 0 ? static_cast<std::size_t>(length) : 1;
  }
  return found;
}

std::string last_codes(const std::string& text, std::size_t count) {
  const std::size_t all = count_codes(text);
  return all <= count ? text : text.substr(first_codes(text, all - count).size());
}

// Python's notation of digits d.ddd × 10^exponent.
std::string with_point(std::string digits, int exponent) {
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    if (count > 1) digits.insert(1, ".");
    const std::string size = std::to_string(std::abs(exponent));
    return digits + (exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
  }
  if (exponent < 0) return "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (exponent + 1 >= count) return digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  return digits.insert(static_cast<std::size_t>(exponent + 1), ".");
}

}  // namespace

Error::Error(ErrorKind kind, std::string problem, std::string fix)
    : std::runtime_error(problem + " " + fix), kind_(kind), problem_(std::move(problem)), fix_(std::move(fix)) {}

const char* version() noexcept { return INFID_VERSION; }

std::string quoted(const std::string& text) {
  const std::string whole = escaped(text);
  if (count_codes(whole) <= kLongestQuoted) return python_repr(whole);
  return python_repr(first_codes(whole, kLongestQuoted - 1) + "…");
}

// As `reprlib.Repr.repr_str`, which shortens the text and then its repr. From a text that is shorter than the end it
// wants, it takes what a negative place means in Python.
std::string shown(const std::string& text) {
  const std::string whole = escaped(text);
  const std::string start = python_repr(first_codes(whole, kLongestShown));
  if (count_codes(start) <= kLongestShown) return start;
  const std::size_t left = (kLongestShown - 3) / 2, right = kLongestShown - 3 - left;
  const std::size_t count = count_codes(whole), end = count < right ? right - count : right;
  const std::string both = python_repr(first_codes(whole, left) + last_codes(whole, end));
  return first_codes(both, left) + "..." + last_codes(both, right);
}

std::string python_number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, std::abs(value), std::chars_format::scientific).ptr;
  const std::string written(text, end);
  const std::size_t mark = written.find('e');
  std::string digits = written.substr(0, mark);
  if (digits.size() > 1) digits.erase(1, 1);
  return (std::signbit(value) ? "-" : "") + with_point(digits, std::atoi(written.c_str() + mark + 1));
}

}  // namespace infid
