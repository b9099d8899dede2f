// An AOTInductor package: machine code without weights, which it reads from the folder's own weights files.
#pragma once

#include <memory>
#include <string>

#include "backends/engine.hpp"

namespace infid {

// Loads a verified package and its weights; it could not run without them. Throws backend_unavailable if it needs
// instructions that this processor lacks, and engine_folder if it does not fit its weights or the manifest.
std::unique_ptr<Engine> open_package(const LoadRequest& request);

// The version of PyTorch, and where its library is.
std::string torch_library();

}  // namespace infid
