// What a package records about itself, as `infid_engines.aotinductor_runner.PackageFacts`.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

namespace infid {

// Where a package finds one of its weights.
struct StoredWeight {
  std::string file;  // relative to the package's folder
  std::string name;
  bool transposed = false;  // it is stored transposed; the package was compiled for the transposed view

  bool operator<(const StoredWeight& other) const {
    return std::tie(file, name, transposed) < std::tie(other.file, other.name, other.transposed);
  }
};

// A small tensor that is not in a weights file, as nested lists.
struct Constant {
  std::string dtype;  // PyTorch's name
  nlohmann::json value;
};

struct PackageFacts {
  std::vector<std::string> inputs, outputs;  // in the order that the package takes and returns them
  std::map<std::string, StoredWeight> weights;  // by the name that the compiled module has for it
  std::map<std::string, Constant> constants;
  bool channels_last = false;  // compiled for convolution weights in channels_last layout

  // Throws nlohmann::json::exception if the text is not what `PackageFacts.to_json` returns.
  static PackageFacts parse(const std::string& text);
};

}  // namespace infid
