// A part of the library that the Python tests call: `infid_probe NAME ARGUMENTS…`.
#pragma once

#include <functional>
#include <string>
#include <vector>

struct Probe {
  // Registers a part under a name; `run` gets the arguments after it, and writes its result to stdout.
  Probe(const std::string& name, std::function<void(const std::vector<std::string>&)> run);
};
