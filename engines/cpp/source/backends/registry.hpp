// The backends, each made by its own source file.
#pragma once

#include <memory>

#include "backends/engine.hpp"

namespace infid {

std::unique_ptr<Backend> make_onnxruntime_backend(const Options& options);
std::unique_ptr<Backend> make_tensorrt_backend();
std::unique_ptr<Backend> make_tensorrt_rtx_backend();
std::unique_ptr<Backend> make_aotinductor_backend();

}  // namespace infid
