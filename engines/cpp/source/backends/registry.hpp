// The backends, each made by its own source file.
#pragma once

#include <memory>

#include "backends/engine.hpp"

namespace infid {

std::unique_ptr<Backend> make_onnxruntime_backend(const Options& options);

}  // namespace infid
