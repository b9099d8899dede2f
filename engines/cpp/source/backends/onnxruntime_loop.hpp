// Repeated runs of one graph in ONNX Runtime: inputs and outputs are bound once, carried tensors stay where they are.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "backends/onnxruntime.hpp"

namespace infid {

// Calls the library. Throws engine_folder with its message.
template <class Call>
auto in_onnxruntime(const Call& call) {
  try {
    return call();
  } catch (const Malformed& error) {
    folder_error(std::string("onnxruntime cannot run the graph (") + error.what() + ").",
                 "Run `infid-export verify` on the folder, and build it again if it fails.");
  }
}

// Options of a run that names the CUDA graph it captures or replays; "-1" is none.
OrtObject graph_options(const OrtTable& ort, const std::string& name);

// The memory of one loop, and two bindings to it, between which carried tensors swap places. A captured graph reads and
// writes fixed addresses, so an engine keeps the memory of its steps between loops.
class LoopMemory {
 public:
  // `inputs`: of the first step, for their shapes and dtypes. `graphs`: names of the two graphs.
  LoopMemory(const OnnxSession& session, const Device& device, const Carry& carry, const Views& inputs,
             const std::array<std::string, 2>& graphs);

  bool fits(const Views& inputs) const;
  void write(const std::string& input, const TensorView& content);
  void run(int step, bool captured);
  // A copy of a carried output of a step.
  Tensor read(int step, const std::string& output) const;

 private:
  // A tensor of fixed size on the device.
  struct Buffer {
    Dtype dtype;
    Shape shape;
    Tensor host;      // its memory on the CPU
    OrtObject value;
  };

  Buffer made(Dtype dtype, const Shape& shape);
  OrtObject binding(bool swapped) const;
  void copy(OrtHandle from, OrtHandle to) const;

  const OnnxSession& session_;
  bool gpu_;
  Carry carry_;
  OrtObject cpu_, place_, allocator_;
  std::map<std::string, Buffer> inputs_, outputs_;
  std::array<OrtObject, 2> bindings_, options_;
};

// Memories of an engine that no loop uses.
struct LoopMemories {
  std::vector<std::unique_ptr<LoopMemory>> free;
  int graphs = 0;
};

class OnnxLoop : public Loop {
 public:
  OnnxLoop(std::shared_ptr<OnnxSession> session, std::shared_ptr<LoopMemories> memories, const Device& device,
           bool captures, const Carry& carry, const Views& inputs, Varying varying);
  ~OnnxLoop() override;
  void step() override;
  Tensor read(const std::string& output) override;

 private:
  std::shared_ptr<OnnxSession> session_;
  std::shared_ptr<LoopMemories> memories_;
  std::unique_ptr<LoopMemory> memory_;
  bool captures_;
  int done_ = 0;
  Varying varying_;
};

}  // namespace infid
