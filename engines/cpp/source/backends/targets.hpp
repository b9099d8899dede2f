// What backends that run on a GPU have in common: the choice of the target, and the check of the device.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/engine.hpp"

namespace infid {

// The architecture of a GPU by its number in CUDA, as `sm_…`; none without one.
std::optional<std::string> present_architecture(int index = 0);

// `Backend.choose_target` of a backend whose engines are for one GPU architecture each. Throws input or
// backend_unavailable.
std::pair<std::optional<std::string>, Device> choose_gpu_target(const std::string& backend, const std::string& device,
                                                                const std::vector<std::string>& targets);

}  // namespace infid
