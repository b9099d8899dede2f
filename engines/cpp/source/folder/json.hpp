// JSON as Python reads and writes it: integers of any length, lone surrogates, and the order of an object's entries.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infid {

struct JsonEntry;

struct Json {
  enum class Kind { null, boolean, integer, number, text, list, object };

  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  std::string text;  // of an integer, its digits
  std::vector<Json> list;
  std::vector<JsonEntry> object;  // each name once

  bool is(Kind other) const { return kind == other; }
  // An object's entry; null if there is none, or this is no object.
  const Json* find(const std::string& name) const;
  // An integer's value, or the nearest one of 64 bits.
  std::int64_t integer() const;
  // Whether Python's `if` would take it.
  bool is_true() const;
};

struct JsonEntry {
  std::string name;
  Json value;
};

enum class Repeated { last_wins, rejected };

// Reads a document. Throws Malformed with the sentence of `infid_engines.documents.parse_json`.
Json parse_json(std::string_view content, Repeated names = Repeated::last_wins);
// Writes a value as `json.dumps(value, sort_keys=True, separators=(",", ":"))`.
std::string canonical_json(const Json& value);
// A value as Python's str and repr write it.
std::string python_str(const Json& value);
std::string python_repr(const Json& value);

}  // namespace infid
