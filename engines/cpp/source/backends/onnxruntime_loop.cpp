#include "backends/onnxruntime_loop.hpp"

#include <algorithm>
#include <cstring>

namespace infid {
namespace {

constexpr int kDeviceAllocator = 0, kDefaultMemory = 0;

}  // namespace

OrtObject graph_options(const OrtTable& ort, const std::string& name) {
  OrtHandle options = nullptr;
  check(ort, ort.CreateRunOptions(&options));
  OrtObject held(options, ort.ReleaseRunOptions);
  check(ort, ort.AddRunConfigEntry(options, "gpu_graph_annotation_id", name.c_str()));
  return held;
}

LoopMemory::LoopMemory(const OnnxSession& session, const Device& device, const Carry& carry, const Views& inputs,
                       const std::array<std::string, 2>& graphs)
    : session_(session), gpu_(device.kind == "cuda"), carry_(carry), cpu_(cpu_memory(session.ort())) {
  const OrtTable& ort = session.ort();
  if (gpu_) {
    OrtHandle place = nullptr, allocator = nullptr;
    check(ort, ort.CreateMemoryInfo("Cuda", kDeviceAllocator, device.index, kDefaultMemory, &place));
    place_ = OrtObject(place, ort.ReleaseMemoryInfo);
    check(ort, ort.CreateAllocator(session.handle(), place, &allocator));
    allocator_ = OrtObject(allocator, ort.ReleaseAllocator);
  }
  for (const auto& [name, view] : inputs) inputs_.emplace(name, made(view.dtype, view.shape));
  for (const auto& [source, result] : carry) {
    const TensorView& first = inputs.at(source);
    outputs_.emplace(result, made(first.dtype, first.shape));
  }
  bindings_ = {binding(false), binding(true)};
  options_ = {graph_options(ort, graphs[0]), graph_options(ort, graphs[1])};
}

LoopMemory::Buffer LoopMemory::made(Dtype dtype, const Shape& shape) {
  const OrtTable& ort = session_.ort();
  Buffer buffer{dtype, shape, {}, {}};
  if (!gpu_) {
    buffer.host = Tensor(dtype, shape);
    buffer.value = borrowed(ort, cpu_, buffer.host.view());
    return buffer;
  }
  OrtHandle value = nullptr;
  check(ort, ort.CreateTensorAsOrtValue(allocator_.get(), shape.data(), shape.size(), element_type(dtype), &value));
  buffer.value = OrtObject(value, ort.ReleaseValue);
  return buffer;
}

// In every second step, carried tensors are read where the last step has written them.
OrtObject LoopMemory::binding(bool swapped) const {
  const OrtTable& ort = session_.ort();
  OrtHandle binding = nullptr;
  check(ort, ort.CreateIoBinding(session_.handle(), &binding));
  OrtObject held(binding, ort.ReleaseIoBinding);
  for (const auto& [name, buffer] : inputs_) {
    const auto carried = carry_.find(name);
    const bool swaps = swapped && carried != carry_.end();
    const Buffer& read = swaps ? outputs_.at(carried->second) : buffer;
    check(ort, ort.BindInput(binding, name.c_str(), read.value.get()));
  }
  for (const auto& [source, result] : carry_) {
    const Buffer& written = swapped ? inputs_.at(source) : outputs_.at(result);
    check(ort, ort.BindOutput(binding, result.c_str(), written.value.get()));
  }
  return held;
}

bool LoopMemory::fits(const Views& inputs) const {
  return inputs.size() == inputs_.size() && std::all_of(inputs.begin(), inputs.end(), [&](const auto& input) {
    const auto own = inputs_.find(input.first);
    return own != inputs_.end() && own->second.shape == input.second.shape;
  });
}

void LoopMemory::copy(OrtHandle from, OrtHandle to) const {
  const OrtTable& ort = session_.ort();
  check(ort, ort.CopyTensors(session_.runtime().environment(), &from, &to, nullptr, 1));
}

void LoopMemory::write(const std::string& input, const TensorView& content) {
  Buffer& buffer = inputs_.at(input);
  if (!gpu_) {
    std::memcpy(buffer.host.data(), content.data, buffer.host.bytes());
    return;
  }
  copy(borrowed(session_.ort(), cpu_, content).get(), buffer.value.get());
}

void LoopMemory::run(int step, bool captured) {
  const OrtTable& ort = session_.ort();
  const auto which = static_cast<std::size_t>(step % 2);
  check(ort, ort.RunWithBinding(session_.handle(), captured ? options_[which].get() : nullptr,
                                bindings_[which].get()));
}

Tensor LoopMemory::read(int step, const std::string& output) const {
  const auto carried = std::find_if(carry_.begin(), carry_.end(), [&](const auto& each) {
    return each.second == output;
  });
  if (carried == carry_.end()) throw Malformed("the output " + output + " is not carried");
  const Buffer& buffer = step % 2 == 0 ? outputs_.at(output) : inputs_.at(carried->first);
  if (!gpu_) return Tensor(buffer.host.view());
  Tensor found(buffer.dtype, buffer.shape);
  copy(buffer.value.get(), borrowed(session_.ort(), cpu_, found.view()).get());
  return found;
}

OnnxLoop::OnnxLoop(std::shared_ptr<OnnxSession> session, std::shared_ptr<LoopMemories> memories, const Device& device,
                   bool captures, const Carry& carry, const Views& inputs, Varying varying)
    : session_(std::move(session)), memories_(std::move(memories)), captures_(captures),
      varying_(std::move(varying)) {
  auto& free = memories_->free;
  const auto used = std::find_if(free.begin(), free.end(), [&](const auto& each) { return each->fits(inputs); });
  if (used != free.end()) {
    memory_ = std::move(*used);
    free.erase(used);
  } else {
    const int number = memories_->graphs;
    memories_->graphs += 2;
    memory_ = std::make_unique<LoopMemory>(
        *session_, device, carry, inputs,
        std::array<std::string, 2>{std::to_string(number), std::to_string(number + 1)});
  }
  for (const auto& [name, view] : inputs) memory_->write(name, view);
}

// A failed step leaves memory that a later loop may use: it is written again before it is read.
OnnxLoop::~OnnxLoop() { memories_->free.push_back(std::move(memory_)); }

void OnnxLoop::step() {
  in_onnxruntime([&] {
    if (done_ > 0) {  // the first step's inputs are in place
      for (const auto& [name, view] : varying_(done_)) memory_->write(name, view);
    }
    memory_->run(done_, captures_);
  });
  ++done_;
}

Tensor OnnxLoop::read(const std::string& output) {
  return in_onnxruntime([&] { return memory_->read(done_ - 1, output); });
}

}  // namespace infid
