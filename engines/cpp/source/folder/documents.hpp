// JSON documents, equal to `infid_engines.documents`: a seal that detects damage, and entries checked by type.
#pragma once

#include <string>
#include <vector>

#include "folder/json.hpp"

namespace infid {

// Reads a JSON file of up to 256 MiB. Throws Malformed.
Json read_json(const std::string& path);
// A document with a fresh seal.
Json sealed(Json document);
// A document without its seal. Throws Malformed if it is no object, has no seal, or has changed.
Json unsealed(Json document);
// A value for a message: itself if it is short, else its kind.
std::string kind_text(const Json& value);

struct Field;

// What an entry of a document must be, as the type hints of Python's dataclasses.
class Kind {
 public:
  static Kind any() { return Kind(Form::any); }
  static Kind null() { return Kind(Form::null); }
  static Kind text() { return Kind(Form::text); }
  static Kind integer() { return Kind(Form::integer); }
  static Kind number() { return Kind(Form::number); }
  static Kind list_of(Kind each);
  static Kind mapping_of(Kind each);
  static Kind either(Kind first, Kind second);
  static Kind record(std::vector<Field> fields);

  // Throws Malformed with the sentence of `infid_engines.documents.record`; `where` names the value.
  void check(const Json& value, const std::string& where) const;

 private:
  enum class Form { any, null, text, integer, number, list, mapping, either, record };
  explicit Kind(Form form) : form_(form) {}
  void check_plain(const Json& value, const std::string& where) const;
  void check_either(const Json& value, const std::string& where) const;
  void check_record(const Json& value, const std::string& where) const;

  Form form_;
  std::vector<Kind> parts_;
  std::vector<Field> fields_;
};

struct Field {
  std::string name;
  Kind kind;
  bool has_default = false;
};

}  // namespace infid
