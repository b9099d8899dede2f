// Engines and backends: the same small interface as `infid_engines.backends`.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "tensor.hpp"

namespace infid {

// By input, the output that becomes its value in the next step.
using Carry = std::map<std::string, std::string>;
// Returns the inputs of a step that differ from step to step; the views are valid until its next call. A loop calls it
// once for each step, in order, and may do so one step ahead.
using Varying = std::function<Views(int step)>;

// Repeated runs of one engine in which some outputs become inputs of the next run.
class Loop {
 public:
  virtual ~Loop() = default;
  // Start the next run; a device may still compute when this returns.
  virtual void step() = 0;
  // A copy of an output of the last step, once it is computed.
  virtual Tensor read(const std::string& output) = 0;
};

// A loaded engine.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual Tensors run(const Views& inputs) = 0;
  // `fixed` and `initial` are copied or bound: they must outlive the loop. `steps`: how many follow.
  virtual std::unique_ptr<Loop> loop(const Views& fixed, const Carry& carry, const Views& initial, int steps,
                                     const Varying& varying) = 0;
};

struct Device {
  std::string kind = "cpu";  // cpu or cuda
  int index = 0;
  std::string text() const { return index ? kind + ":" + std::to_string(index) : kind; }
};

// What a backend needs to load an engine; its files were verified.
struct LoadRequest {
  std::string graph;   // name of the graph
  std::string path;    // of the engine file
  std::string folder;  // the engine folder
  std::vector<std::string> weights;  // paths of the graph's weights files
  std::vector<TensorSpec> inputs, outputs;
  Device device;
  int threads = 0;  // 0: the default
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;
  // Position in the order of `auto`, the fastest first, as in Python.
  virtual int rank() const = 0;
  virtual bool reads_weights() const { return false; }
  virtual bool takes_threads() const { return false; }
  // Whether several engines may be loaded at the same time.
  virtual bool loads_in_parallel() const { return false; }
  // The library and its version, for messages. Throws backend_unavailable if it is not on this machine.
  virtual std::string library() = 0;
  // Throws backend_unavailable if the machine has no such device.
  virtual void check_device(int index) = 0;
  // The target whose engines are used (none: the same for all), and the device. Throws input or backend_unavailable.
  virtual std::pair<std::optional<std::string>, Device> choose_target(const std::string& device,
                                                                      const std::vector<std::string>& targets) = 0;
  virtual std::unique_ptr<Engine> load(const LoadRequest& request) = 0;
};

// The backends, the fastest first; those that were not compiled in say so when they are asked for.
std::vector<std::unique_ptr<Backend>> open_backends(const Options& options);

// Throws input if an input is missing, unknown, mistyped or misshapen, with the sentences of `CheckedInputs`.
void check_inputs(const std::vector<TensorSpec>& specs, const Views& given);

// Throws engine_folder if the inputs or outputs (`kind`) of an engine file are not those of the manifest.
void check_engine_names(const std::string& path, const std::string& kind, const std::vector<TensorSpec>& specs,
                        const std::vector<std::string>& names);

// The device that a user asked for; none for `auto` and for a target such as `sm_89`. Throws input.
std::optional<Device> requested_device(const std::string& text);

}  // namespace infid
