// See normalizer.hpp.
#include "text/normalizer.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

namespace infid {
namespace {

using Code = utf8proc_int32_t;

// Whether a character may move or merge with what precedes it.
bool continues(char32_t code) {
  if (code < 0x300) return false;
  const auto kind = utf8proc_category(static_cast<Code>(code));
  const bool is_mark = kind >= UTF8PROC_CATEGORY_MN && kind <= UTF8PROC_CATEGORY_ME;
  return is_mark || (code >= 0x1160 && code <= 0x11ff);  // the second and third letter of a Hangul syllable
}

auto mark_class(Code code) { return utf8proc_get_property(code)->combining_class; }

// Sorts each row of marks. utf8proc does it too, in a time that grows with the square of the row's length.
void order_marks(std::vector<Code>& codes) {
  for (auto begin = codes.begin(); begin != codes.end();) {
    begin = std::find_if(begin, codes.end(), [](Code code) { return mark_class(code) != 0; });
    const auto end = std::find_if(begin, codes.end(), [](Code code) { return mark_class(code) == 0; });
    std::stable_sort(begin, end, [](Code left, Code right) { return mark_class(left) < mark_class(right); });
    begin = end;
  }
}

// `codes` is memory that is used again.
void compose(const CodePoints& text, std::size_t begin, std::size_t end, std::vector<Code>& codes) {
  codes.clear();
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  for (std::size_t i = begin; i < end; ++i) {
    Code parts[16];
    const auto count = utf8proc_decompose_char(static_cast<Code>(text.codes[i]), parts, 16, options, nullptr);
    codes.insert(codes.end(), parts, parts + count);
  }
  order_marks(codes);
  const auto length = utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()),
                                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  codes.resize(static_cast<std::size_t>(length));
}

// Adds composed codes of a part of a text. Those that are the same at both ends keep their places.
void add_composed(CodePoints& found, const std::vector<Code>& codes, const CodePoints& text, std::size_t begin,
                  std::size_t end) {
  const auto is_same = [&](std::size_t code, std::size_t place) {
    return static_cast<char32_t>(codes[code]) == text.codes[place];
  };
  const std::size_t count = codes.size(), most = std::min(count, end - begin);
  std::size_t first = 0, last = 0;
  while (first < most && is_same(first, begin + first)) ++first;
  while (last < most - first && is_same(count - 1 - last, end - 1 - last)) ++last;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t place = i < first ? begin + i : i < count - last ? begin + first : end - (count - i);
    found.add(static_cast<char32_t>(codes[i]), text.starts[std::min(place, end - 1)]);
  }
}

CodePoints composed(const CodePoints& text, std::size_t begin, std::size_t end) {
  CodePoints found;
  std::vector<Code> codes;
  for (std::size_t next; begin < end; begin = next) {
    for (next = begin + 1; next < end && continues(text.codes[next]);) ++next;
    if (next == begin + 1 && text.codes[begin] < 0x300) {
      found.add(text.codes[begin], text.starts[begin]);
      continue;
    }
    compose(text, begin, next, codes);
    add_composed(found, codes, text, begin, next);
  }
  return found;
}

}  // namespace

CodePoints normalized(const CodePoints& text, std::size_t begin, std::size_t end) {
  const CodePoints whole = composed(text, begin, end);
  CodePoints found;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const char32_t code = whole.codes[i];
    const std::size_t start = whole.starts[i];
    if (is_space(code)) {
      const bool is_first = found.codes.empty(), is_last = i + 1 == whole.size() || !is_space(whole.codes[i + 1]);
      if (!is_first && is_last) found.add(U' ', start);
    } else if (code == 0x130) {  // İ, the only one whose lowercase has two characters
      found.add(U'i', start);
      found.add(0x307, start);
    } else {
      found.add(static_cast<char32_t>(utf8proc_tolower(static_cast<Code>(code))), start);
    }
  }
  if (found.size() && found.codes.back() == U' ') {
    found.codes.pop_back();
    found.starts.pop_back();
  }
  return found;
}

}  // namespace infid
