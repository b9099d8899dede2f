// Writes JSON and Python's spelling of it: see json.hpp.
#include "folder/json.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <system_error>

#include "errors.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

void write(std::string& text, const Json& value);

void write_object(std::string& text, const Json& value) {
  std::vector<const JsonEntry*> entries;
  for (const JsonEntry& entry : value.object) entries.push_back(&entry);
  std::sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  text += '{';
  for (const JsonEntry* entry : entries) {
    if (entry != entries.front()) text += ',';
    text += json_quoted(entry->name) + ":";
    write(text, entry->value);
  }
  text += '}';
}

void write_list(std::string& text, const Json& value) {
  text += '[';
  for (const Json& each : value.list) {
    if (&each != &value.list.front()) text += ',';
    write(text, each);
  }
  text += ']';
}

void write(std::string& text, const Json& value) {
  switch (value.kind) {
    case Json::Kind::null: text += "null"; break;
    case Json::Kind::boolean: text += value.boolean ? "true" : "false"; break;
    case Json::Kind::integer: text += value.text; break;
    case Json::Kind::number: text += python_number(value.number); break;
    case Json::Kind::text: text += json_quoted(value.text); break;
    case Json::Kind::list: write_list(text, value); break;
    case Json::Kind::object: write_object(text, value); break;
  }
}

std::string repr_of_object(const Json& value) {
  std::string text;
  for (const JsonEntry& entry : value.object) {
    text += (text.empty() ? "" : ", ") + python_repr(entry.name) + ": " + python_repr(entry.value);
  }
  return "{" + text + "}";
}

std::string repr_of_list(const Json& value) {
  std::string text;
  for (const Json& each : value.list) text += (text.empty() ? "" : ", ") + python_repr(each);
  return "[" + text + "]";
}

}  // namespace

const Json* Json::find(const std::string& name) const {
  const auto found = std::find_if(object.begin(), object.end(), [&](const auto& each) { return each.name == name; });
  return found == object.end() ? nullptr : &found->value;
}

std::int64_t Json::integer() const {
  std::int64_t value = 0;
  const auto problem = std::from_chars(text.data(), text.data() + text.size(), value).ec;
  if (problem == std::errc()) return value;
  using Limits = std::numeric_limits<std::int64_t>;
  return text[0] == '-' ? Limits::min() : Limits::max();
}

bool Json::is_true() const {
  switch (kind) {
    case Kind::null: return false;
    case Kind::boolean: return boolean;
    case Kind::integer: return text != "0";
    case Kind::number: return number != 0;
    case Kind::text: return !text.empty();
    case Kind::list: return !list.empty();
    default: return !object.empty();
  }
}

std::string canonical_json(const Json& value) {
  std::string text;
  write(text, value);
  return text;
}

std::string python_str(const Json& value) { return value.is(Json::Kind::text) ? value.text : python_repr(value); }

std::string python_repr(const Json& value) {
  switch (value.kind) {
    case Json::Kind::null: return "None";
    case Json::Kind::boolean: return value.boolean ? "True" : "False";
    case Json::Kind::integer: return value.text;
    case Json::Kind::number: return python_number(value.number);
    case Json::Kind::text: return python_repr(value.text);
    case Json::Kind::list: return repr_of_list(value);
    default: return repr_of_object(value);
  }
}

}  // namespace infid
