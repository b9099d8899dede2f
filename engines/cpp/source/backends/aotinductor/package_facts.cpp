// Reads what the exporter has stored in a package.
#include "backends/aotinductor/package_facts.hpp"

namespace infid {

PackageFacts PackageFacts::parse(const std::string& text) {
  const nlohmann::json found = nlohmann::json::parse(text);
  PackageFacts facts;
  found.at("inputs").get_to(facts.inputs);
  found.at("outputs").get_to(facts.outputs);
  found.at("channels_last").get_to(facts.channels_last);
  for (const auto& [name, each] : found.at("weights").items()) {
    facts.weights[name] = {each.at(0).get<std::string>(), each.at(1).get<std::string>(), each.at(2).get<bool>()};
  }
  for (const auto& [name, each] : found.at("constants").items()) {
    facts.constants[name] = {each.at(0).get<std::string>(), each.at(1)};
  }
  return facts;
}

}  // namespace infid
