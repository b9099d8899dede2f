// See manifest.hpp.
#include "folder/manifest.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/manifest_document.hpp"
#include "folder/paths.hpp"
#include "folder/sha256.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

const char* const rebuild = "Build the folder again with its original `infid-export build` command.";

// `document["schema_version"]`. Throws Malformed with Python's sentence if there is none.
const Json& version_of(const Json& document) {
  const Json* version = document.find("schema_version");
  if (version != nullptr) return *version;
  switch (document.kind) {
    case Json::Kind::object: throw Malformed("'schema_version'");
    case Json::Kind::list: throw Malformed("list indices must be integers or slices, not str");
    case Json::Kind::text: throw Malformed("string indices must be integers, not 'str'");
    case Json::Kind::null: throw Malformed("'NoneType' object is not subscriptable");
    case Json::Kind::boolean: throw Malformed("'bool' object is not subscriptable");
    case Json::Kind::integer: throw Malformed("'int' object is not subscriptable");
    default: throw Malformed("'float' object is not subscriptable");
  }
}

bool is_read_here(const Json& version) {
  return (version.is(Json::Kind::integer) && version.text == std::to_string(schema_version)) ||
         (version.is(Json::Kind::number) && version.number == schema_version);
}

Json read_document(const std::string& path) {
  Json document;
  try {
    document = read_json(path);
    version_of(document);
  } catch (const Malformed& problem) {
    folder_error(path + " cannot be read (" + problem.what() + ").", rebuild);
  }
  const Json& version = version_of(document);
  if (!is_read_here(version)) {
    folder_error(path + " has schema version " + python_str(version) + ", but this infid-export reads version " +
                     std::to_string(schema_version) + ".",
                 rebuild);
  }
  return document;
}

}  // namespace

const TensorSpec* GraphRecord::input(const std::string& name) const {
  const auto found = std::find_if(inputs.begin(), inputs.end(), [&](const auto& spec) { return spec.name == name; });
  return found == inputs.end() ? nullptr : &*found;
}

Manifest Manifest::load(const std::string& folder) {
  const std::string place = plain_path(folder), path = within(place, "manifest.json");
  if (!is_file(path)) {
    folder_error(place + " is not an engine folder: it has no manifest.json.",
                 "Build one with `infid-export build -o " + place + "`.");
  }
  Json content = read_document(path);
  Manifest manifest;
  try {
    content = unsealed(std::move(content));
    manifest = manifest_of(content);
  } catch (const Malformed& problem) {
    folder_error(path + " cannot be used: " + problem.what() + ".", rebuild);
  }
  try {
    read_settings(manifest, content);
  } catch (const Malformed& problem) {
    folder_error("The manifest cannot be used: " + std::string(problem.what()) + ".",
                 "Build the engine folder again with `infid-export build`.");
  }
  manifest.folder = place;
  return manifest;
}

const GraphRecord& Manifest::graph(const std::string& name) const {
  const auto found = graphs.find(name);
  if (found != graphs.end()) return found->second;
  std::string names;
  for (const auto& [each, _] : graphs) names += (names.empty() ? "" : ", ") + each;
  folder_error("This engine folder has no graph '" + name + "', only " + names + ".",
               "Build it with `infid-export build --graph default --graph " + name + "`.");
}

bool Manifest::one_stream() const { return graphs.count("single_step") > 0; }

std::string Manifest::step() const { return one_stream() ? "single_step" : "denoise_step"; }

const EngineRecord* Manifest::engine(const std::string& graph, const std::string& backend,
                                     const std::optional<std::string>& target) const {
  const auto fits = [&](const EngineRecord& each) {
    return each.graph == graph && each.backend == backend && (!target || each.target == *target);
  };
  const auto found = std::find_if(engines.rbegin(), engines.rend(), fits);
  return found == engines.rend() ? nullptr : &*found;
}

std::vector<std::string> Manifest::targets(const std::string& backend) const {
  std::set<std::string> found;
  for (const EngineRecord& each : engines) {
    if (each.backend == backend) found.insert(each.target);
  }
  return {found.begin(), found.end()};
}

std::string verify_file(const Manifest& manifest, const std::string& name) {
  const auto record = manifest.files.find(name);
  if (record == manifest.files.end()) {
    folder_error("The manifest of " + manifest.folder + " does not list " + name + ".",
                 "Build the engine folder again.");
  }
  const auto& [expected, size] = record->second;
  const std::string path = within(manifest.folder, name);
  struct stat status {};
  if (!is_file(path) || ::stat(path.c_str(), &status) != 0) folder_error(path + " is missing.", rebuild);
  if (static_cast<std::uint64_t>(status.st_size) != size) {
    folder_error(path + " has " + std::to_string(status.st_size) + " bytes, but the manifest says " +
                     std::to_string(size) + ".",
                 rebuild);
  }
  std::string found;
  try {
    found = sha256_of_file(path);
  } catch (const Malformed& problem) {
    folder_error(path + " cannot be read (" + problem.what() + ").", rebuild);
  }
  if (found != expected) {
    folder_error(path + " has changed: its sha256 is " + found.substr(0, 12) + "…, but the manifest says " +
                     first_codes(expected, 12) + "….",
                 rebuild);
  }
  return path;
}

}  // namespace infid
