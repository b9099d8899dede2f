// ONNX Runtime, loaded at run time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/engine.hpp"
#include "backends/onnxruntime_objects.hpp"

namespace infid {

// The library. One per process and path.
class OnnxRuntime {
 public:
  // Opens a path, or where it is empty the usual places. Throws backend_unavailable.
  static std::shared_ptr<OnnxRuntime> open(const std::string& path);
  ~OnnxRuntime();
  const std::string& path() const { return path_; }
  const std::string& version() const { return version_; }
  const OrtTable& table() const { return *table_; }
  OrtHandle environment() const { return environment_; }
  // Whether it can run graphs on a provider, such as CUDAExecutionProvider.
  bool has_provider(const std::string& name) const;

 private:
  OnnxRuntime() = default;
  std::string path_, version_;
  OrtHandle environment_ = nullptr;
  std::unique_ptr<OrtTable> table_;
};

struct SessionSettings {
  int threads = 0;           // 0: one per core
  bool spin = false;         // whether threads wait for the next call with full use of their cores
  bool lean = false;         // no graph optimization, for large weights
  bool capture = false;      // whether runs on a GPU are captured as CUDA graphs
  Device device;
};

// An input as the graph declares it.
struct OnnxInput {
  int element_type = 0;  // the library's number: 1 is float, 2 uint8
  Shape shape;           // -1 for dynamic dimensions
};

// A graph on the CPU or a GPU. Inputs and outputs are in host memory.
class OnnxSession {
 public:
  // Throws Malformed with the library's message if the file cannot be loaded.
  OnnxSession(std::shared_ptr<OnnxRuntime> runtime, const std::string& path, const SessionSettings& settings);
  ~OnnxSession();
  OnnxSession(const OnnxSession&) = delete;
  OnnxSession& operator=(const OnnxSession&) = delete;

  const std::vector<std::string>& inputs() const { return inputs_; }
  const std::vector<std::string>& outputs() const { return outputs_; }
  OnnxInput input(const std::string& name) const;
  // An entry of the model's metadata; empty if there is none.
  std::string metadata(const std::string& key) const;
  // Runs once and returns all outputs, with the shapes that they have. Throws Malformed with the library's message.
  Tensors run(const Views& inputs) const;
  // `options` of the run; null for none.
  Tensors run(const Views& inputs, OrtHandle options) const;

  const OrtTable& ort() const { return runtime_->table(); }
  const OnnxRuntime& runtime() const { return *runtime_; }
  OrtHandle handle() const { return session_.get(); }

 private:
  std::shared_ptr<OnnxRuntime> runtime_;
  OrtObject session_;
  std::vector<std::string> inputs_, outputs_;
};

}  // namespace infid
