// See unicode.hpp.
#include "folder/unicode.hpp"

#include <utf8proc.h>

#include <cstdio>

namespace infid {
namespace {

std::string hex(std::uint32_t value, int digits) {
  char text[16];
  std::snprintf(text, sizeof text, "%0*x", digits, value);
  return text;
}

bool continues(std::string_view text, std::size_t place) {
  return place < text.size() && (static_cast<unsigned char>(text[place]) & 0xc0) == 0x80;
}

// Whether a second byte would make a code point overlong, a surrogate, or larger than Unicode's last.
bool is_forbidden_second(unsigned char first, unsigned char second, bool allow_surrogates) {
  return (first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0 && !allow_surrogates) ||
         (first == 0xf0 && second < 0x90) || (first == 0xf4 && second >= 0x90);
}

int expected_bytes(unsigned char first) {
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

std::string decode_problem(std::string_view text, std::size_t start, std::size_t bytes, const char* reason) {
  const auto first = static_cast<unsigned char>(text[start]);
  const std::string place = std::to_string(start);
  const std::string what = bytes == 1 ? "byte 0x" + hex(first, 2) + " in position " + place
                                      : "bytes in position " + place + "-" + std::to_string(start + bytes - 1);
  return "'utf-8' codec can't decode " + what + ": " + reason;
}

// Python's `str.isprintable` for one code point.
bool is_printable(std::uint32_t code) {
  if (code == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string repr_escape(std::uint32_t code) {
  if (code == '\t') return "\\t";
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code < 0x100) return "\\x" + hex(code, 2);
  return code < 0x10000 ? "\\u" + hex(code, 4) : "\\U" + hex(code, 8);
}

}  // namespace

void append_utf8(std::string& text, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

std::uint32_t next_code(std::string_view text, std::size_t& place) {
  const auto first = static_cast<unsigned char>(text[place]);
  int left = expected_bytes(first) - 1;
  std::uint32_t code = left < 1 ? first : first & (0x3f >> left);
  for (++place; left > 0 && continues(text, place); ++place, --left) {
    code = code << 6 | (static_cast<unsigned char>(text[place]) & 0x3f);
  }
  return code;
}

std::string utf8_problem(std::string_view text, bool allow_surrogates) {
  for (std::size_t place = 0; place < text.size();) {
    const auto first = static_cast<unsigned char>(text[place]);
    const auto bytes = static_cast<std::size_t>(expected_bytes(first));
    if (bytes == 0) return decode_problem(text, place, 1, "invalid start byte");
    for (std::size_t i = 1; i < bytes; ++i) {
      if (place + i == text.size()) return decode_problem(text, place, i, "unexpected end of data");
      const auto byte = static_cast<unsigned char>(text[place + i]);
      const bool allow = allow_surrogates && continues(text, place + 2);
      if (!continues(text, place + i) || (i == 1 && is_forbidden_second(first, byte, allow))) {
        return decode_problem(text, place, i, "invalid continuation byte");
      }
    }
    place += bytes;
  }
  return "";
}

std::size_t count_codes(std::string_view text) {
  std::size_t count = 0;
  for (const char byte : text) count += (static_cast<unsigned char>(byte) & 0xc0) != 0x80;
  return count;
}

std::string first_codes(const std::string& text, std::size_t count) {
  std::size_t end = 0;
  for (; count > 0 && end < text.size(); --count) next_code(text, end);
  return text.substr(0, end);
}

std::string python_repr(const std::string& text) {
  const bool only_single = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = only_single ? '"' : '\'';
  std::string found(1, quote);
  for (std::size_t place = 0; place < text.size();) {
    const std::size_t start = place;
    const std::uint32_t code = next_code(text, place);
    if (code == '\\' || code == static_cast<unsigned char>(quote)) {
      found += '\\';
      found += static_cast<char>(code);
    } else if (is_printable(code)) {
      found.append(text, start, place - start);
    } else {
      found += repr_escape(code);
    }
  }
  return found + quote;
}

std::string json_quoted(const std::string& text) {
  static const std::string plain = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
  std::string found = "\"";
  for (std::size_t place = 0; place < text.size();) {
    const std::uint32_t code = next_code(text, place);
    const std::size_t special = code < 0x80 ? plain.find(static_cast<char>(code)) : std::string::npos;
    if (special != std::string::npos) {
      found += '\\';
      found += letters[special];
    } else if (code >= 0x20 && code < 0x7f) {
      found += static_cast<char>(code);
    } else if (code < 0x10000) {
      found += "\\u" + hex(code, 4);
    } else {
      found += "\\u" + hex(0xd800 + ((code - 0x10000) >> 10), 4);
      found += "\\u" + hex(0xdc00 + ((code - 0x10000) & 0x3ff), 4);
    }
  }
  return found + '"';
}

}  // namespace infid
