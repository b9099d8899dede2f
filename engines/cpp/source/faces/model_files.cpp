// Opens and runs the small face models on the CPU.
#include "faces/model_files.hpp"

#include <filesystem>
#include <system_error>

#include "errors.hpp"

namespace infid {
namespace {
const char* const kFix = "Export or copy it again.";
}

OnnxSession open_onnx(std::shared_ptr<OnnxRuntime> runtime, const std::string& path) {
  std::error_code none;
  const bool exists = std::filesystem::is_regular_file(path, none);
  if (!exists) input_error("There is no model at " + path + ".", "Check the path.");
  try {
    return OnnxSession(std::move(runtime), path, SessionSettings());
  } catch (const Malformed& error) {
    input_error(path + " is not a usable ONNX model (" + error.what() + ").", kFix);
  }
}

Tensors run_onnx(const OnnxSession& session, const std::string& path, const Views& inputs) {
  try {
    return session.run(inputs);
  } catch (const Malformed& error) {
    input_error(path + " cannot be run (" + error.what() + ").", kFix);
  }
}

}  // namespace infid
