// ONNX Runtime, loaded at run time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/engine.hpp"

namespace infid {

struct OrtTable;

// The library. One per process and path.
class OnnxRuntime {
 public:
  // Opens a path, or where it is empty the usual places. Throws backend_unavailable.
  static std::shared_ptr<OnnxRuntime> open(const std::string& path);
  ~OnnxRuntime();
  const std::string& path() const { return path_; }
  const std::string& version() const { return version_; }
  const OrtTable& table() const { return *table_; }
  void* environment() const { return environment_; }

 private:
  OnnxRuntime() = default;
  std::string path_, version_;
  void* library_ = nullptr;
  void* environment_ = nullptr;
  std::unique_ptr<OrtTable> table_;
};

struct SessionSettings {
  int threads = 0;           // 0: one per core
  bool spin = false;         // whether threads wait for the next call with full use of their cores
  bool lean = false;         // no graph optimization, for large weights
  Device device;
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
  // The shape of an input as the graph declares it; -1 for dynamic dimensions.
  Shape input_shape(const std::string& name) const;
  // Runs once and returns all outputs, with the shapes that they have. Throws Malformed with the library's message.
  Tensors run(const Views& inputs) const;

 private:
  friend class OnnxEngine;
  friend class OnnxLoop;
  std::shared_ptr<OnnxRuntime> runtime_;
  void* session_ = nullptr;
  std::vector<std::string> inputs_, outputs_;
};

}  // namespace infid
