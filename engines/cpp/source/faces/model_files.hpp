// Opens and runs the small face models on the CPU, with the sentences of `infid_export.faces.model_files`.
#pragma once

#include <memory>
#include <string>

#include "backends/onnxruntime.hpp"

namespace infid {

// Throws input.
OnnxSession open_onnx(std::shared_ptr<OnnxRuntime> runtime, const std::string& path);
Tensors run_onnx(const OnnxSession& session, const std::string& path, const Views& inputs);

}  // namespace infid
