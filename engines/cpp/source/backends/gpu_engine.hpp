// Runs an engine on a GPU: steps allocate nothing, and their inputs are copied one step ahead.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/cuda_driver.hpp"
#include "backends/engine.hpp"

namespace infid {

// How a library runs an engine that is on a GPU, such as TensorRT's execution context. The GPU is the current one in
// every call, also in that of the destructor.
class GpuContext {
 public:
  virtual ~GpuContext() = default;
  virtual void set_shape(const std::string& input, const Shape& shape) = 0;
  // Of an output, for the inputs' shapes.
  virtual Shape shape(const std::string& output) const = 0;
  virtual void set_address(const std::string& name, void* address) = 0;
  // Queues a run on a stream; false if the library refuses.
  virtual bool enqueue(void* stream) = 0;
};

struct GpuState;

// An engine with one execution context. Its device memory and CUDA graphs are kept for the next call with the same
// shapes. Calls take turns.
class GpuEngine : public Engine {
 public:
  GpuEngine(std::shared_ptr<Gpu> gpu, std::unique_ptr<GpuContext> context, std::vector<TensorSpec> inputs,
            std::vector<TensorSpec> outputs);

  Tensors run(const Views& inputs) override;
  std::unique_ptr<Loop> loop(const Views& fixed, const Carry& carry, const Views& initial, int steps,
                             const Varying& varying) override;

 private:
  std::shared_ptr<GpuState> state_;
};

}  // namespace infid
