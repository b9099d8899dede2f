// See code_points.hpp.
#include "text/code_points.hpp"

#include <utf8proc.h>

#include "errors.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

// Letters by derivation: circled and squared ones.
bool is_enclosed_letter(char32_t code) {
  return (code >= 0x24b6 && code <= 0x24e9) || (code >= 0x1f130 && code <= 0x1f149) ||
         (code >= 0x1f150 && code <= 0x1f169) || (code >= 0x1f170 && code <= 0x1f189);
}

// What Python's str.isspace adds to \s: separators of files, groups, records and units.
bool is_python_space(char32_t code) { return is_space(code) || (code >= 0x1c && code <= 0x1f); }

}  // namespace

CodePoints prompt_codes(const std::string& prompt) {
  if (!utf8_problem(prompt).empty()) {
    input_error("A prompt " + shown(prompt) + " is not valid Unicode (surrogates not allowed).", "Type it again.");
  }
  CodePoints found;
  for (std::size_t place = 0; place < prompt.size();) {
    const std::size_t start = place;
    found.add(next_code(prompt, place), start);
  }
  return found;
}

std::u32string codes_of(const std::string& text) {
  std::u32string found;
  for (std::size_t place = 0; place < text.size();) found += next_code(text, place);
  return found;
}

bool is_space(char32_t code) {
  return (code >= 0x9 && code <= 0xd) || code == 0x20 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
         code == 0x3000;
}

bool is_letter(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_number(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO;
}

bool is_word(char32_t code) {
  const auto kind = category(code);
  return is_letter(code) || (kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME) ||
         kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_PC ||
         is_enclosed_letter(code) || code == 0x200c || code == 0x200d;
}

std::string stripped(const std::string& text) {
  std::size_t first = text.size(), end = 0;
  for (std::size_t place = 0; place < text.size();) {
    const std::size_t start = place;
    if (is_python_space(next_code(text, place))) continue;
    if (first > start) first = start;
    end = place;
  }
  return first < end ? text.substr(first, end - first) : "";
}

}  // namespace infid
