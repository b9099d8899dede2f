// UTF-8 as Python's strings see it: code points, and lone surrogates, which JSON can spell, in three bytes each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace infid {

// Appends a code point, which may be a surrogate.
void append_utf8(std::string& text, std::uint32_t code);
// The code point at a place of well-formed text; `place` moves behind it.
std::uint32_t next_code(std::string_view text, std::size_t& place);
// Why a text is not UTF-8, with the sentence of Python's UnicodeDecodeError; empty if it is.
std::string utf8_problem(std::string_view text, bool allow_surrogates = false);
// The number of code points of well-formed text, and its first ones.
std::size_t count_codes(std::string_view text);
std::string first_codes(const std::string& text, std::size_t count);
// A whole text as Python's repr writes it.
std::string python_repr(const std::string& text);
// A text as `json.dumps` writes it, with all but ASCII escaped.
std::string json_quoted(const std::string& text);

}  // namespace infid
