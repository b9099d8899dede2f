// See documents.hpp.
#include "folder/documents.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "folder/sha256.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr std::size_t most_bytes = std::size_t{1} << 28;  // SDXL's manifest has 0.1 MiB
constexpr std::int64_t most_exact = std::int64_t{1} << 53;  // beyond it, doubles skip integers
const char* const seal_name = "seal";

// Like `quoted`, but the text may have lone surrogates.
std::string short_repr(const std::string& text) {
  return python_repr(count_codes(text) <= 40 ? text : first_codes(text, 39) + "…");
}

bool is_seal(const JsonEntry& entry) { return entry.name == seal_name; }

}  // namespace

Json read_json(const std::string& path) { return parse_json(read_file(path, most_bytes)); }

Json sealed(Json document) {
  auto& entries = document.object;
  entries.erase(std::remove_if(entries.begin(), entries.end(), is_seal), entries.end());
  Json seal;
  seal.kind = Json::Kind::text;
  seal.text = sha256_of(canonical_json(document));
  entries.push_back({seal_name, std::move(seal)});
  return document;
}

Json unsealed(Json document) {
  if (!document.is(Json::Kind::object)) throw Malformed("it is " + kind_text(document) + ", not an object");
  auto& entries = document.object;
  const auto found = std::find_if(entries.begin(), entries.end(), is_seal);
  if (found == entries.end()) throw Malformed("it has no seal");
  const Json seal = std::move(found->value);
  entries.erase(found);
  if (!seal.is(Json::Kind::text) || seal.text != sha256_of(canonical_json(document))) {
    throw Malformed("it has changed since it was written: its content does not match its seal");
  }
  return document;
}

std::string kind_text(const Json& value) {
  switch (value.kind) {
    case Json::Kind::null: return "null";
    case Json::Kind::boolean: return value.boolean ? "true" : "false";
    case Json::Kind::integer:
      return std::abs(static_cast<double>(value.integer())) > 1e15 ? "a large number" : value.text;
    case Json::Kind::number: return std::abs(value.number) > 1e15 ? "a large number" : python_number(value.number);
    case Json::Kind::text: return short_repr(value.text);
    case Json::Kind::list: return "a list";
    default: return "an object";
  }
}

Kind Kind::list_of(Kind each) {
  Kind kind(Form::list);
  kind.parts_ = {std::move(each)};
  return kind;
}

Kind Kind::mapping_of(Kind each) {
  Kind kind(Form::mapping);
  kind.parts_ = {std::move(each)};
  return kind;
}

Kind Kind::either(Kind first, Kind second) {
  Kind kind(Form::either);
  kind.parts_ = {std::move(first), std::move(second)};
  return kind;
}

Kind Kind::record(std::vector<Field> fields) {
  Kind kind(Form::record);
  kind.fields_ = std::move(fields);
  return kind;
}

void Kind::check(const Json& value, const std::string& where) const {
  switch (form_) {
    case Form::any: return;
    case Form::either: return check_either(value, where);
    case Form::record: return check_record(value, where);
    case Form::list:
      if (!value.is(Json::Kind::list)) throw Malformed(where + " is " + kind_text(value) + ", not a list");
      for (std::size_t i = 0; i < value.list.size(); ++i) {
        parts_[0].check(value.list[i], where + "[" + std::to_string(i) + "]");
      }
      return;
    case Form::mapping:
      if (!value.is(Json::Kind::object)) throw Malformed(where + " is " + kind_text(value) + ", not an object");
      for (const auto& [name, entry] : value.object) parts_[0].check(entry, where + "." + name);
      return;
    default: return check_plain(value, where);
  }
}

void Kind::check_plain(const Json& value, const std::string& where) const {
  const auto require = [&](bool fits, const char* name) {
    if (!fits) throw Malformed(where + " is " + kind_text(value) + ", not " + name);
  };
  switch (form_) {
    case Form::null: return require(value.is(Json::Kind::null), "null");
    case Form::text: return require(value.is(Json::Kind::text), "a string");
    case Form::integer: return require(value.is(Json::Kind::integer), "a whole number");
    default: break;
  }
  const std::int64_t whole = value.is(Json::Kind::integer) ? value.integer() : most_exact;
  require(value.is(Json::Kind::number) || (-most_exact < whole && whole < most_exact), "a number");
}

void Kind::check_either(const Json& value, const std::string& where) const {
  std::string reasons;
  for (const Kind& part : parts_) {
    try {
      return part.check(value, where);
    } catch (const Malformed& problem) {
      if (reasons != problem.what()) reasons += (reasons.empty() ? "" : "; ") + std::string(problem.what());
    }
  }
  throw Malformed(reasons);
}

void Kind::check_record(const Json& value, const std::string& where) const {
  if (!value.is(Json::Kind::object)) throw Malformed(where + " is " + kind_text(value) + ", not an object");
  const auto known = [&](const std::string& name) {
    return std::find_if(fields_.begin(), fields_.end(), [&](const Field& field) { return field.name == name; });
  };
  const std::string* unknown = nullptr;
  for (const JsonEntry& entry : value.object) {
    const bool earlier = unknown == nullptr || entry.name < *unknown;
    if (known(entry.name) == fields_.end() && earlier) unknown = &entry.name;
  }
  if (unknown != nullptr) throw Malformed(where + " has an unknown entry " + python_repr(*unknown));
  for (const Field& field : fields_) {
    const bool lacks = value.find(field.name) == nullptr;
    if (lacks && !field.has_default) throw Malformed(where + " lacks " + python_repr(field.name));
  }
  for (const auto& [name, entry] : value.object) known(name)->kind.check(entry, where + "." + name);
}

}  // namespace infid
