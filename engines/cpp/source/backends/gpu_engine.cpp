// The loop of `infid_engines.tensorrt_runner`, with memory and CUDA graphs that outlast it.
//
// Steps are queued on one stream. The varying inputs of the next step are copied on another one meanwhile, which hides
// the features of a template behind the computation. The host is at most three steps ahead of the device.
//
// A library prepares for its shapes in the first step. The next two are captured as CUDA graphs, one for each set of
// buffers, and all later ones replay them: one call per step. An engine whose work cannot be captured is enqueued.
#include "backends/gpu_engine.hpp"

#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace infid {
namespace {

constexpr int kThreadLocal = 1;  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL

// Device memory of a tensor, and page-locked host memory that is copied to or from it.
struct Buffer {
  Dtype dtype = Dtype::float32;
  Shape shape;
  CudaHandle device, host;

  std::size_t bytes() const { return count_of(shape) * dtype_size(dtype); }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(device.get()); }
};

using Buffers = std::map<std::string, Buffer>;

// One of two sets of the varying inputs: while a step reads one, the next step's values are copied to the other.
struct Slot {
  Buffers buffers;
  CudaHandle uploaded;  // event after the copies to the device
  CudaHandle consumed;  // event after the step that reads them
  CudaHandle graph;     // the CUDA graph of a step that reads them, once it is captured
};

using Shapes = std::map<std::string, Shape>;

// Everything that a loop needs on the device. The slots and the buffers of carried tensors are swapped at every step,
// so that a graph always meets the buffers that it was captured with.
struct Workspace {
  Shapes first, varying;  // of the inputs that are uploaded once, and of those of each step
  Carry carry;
  CudaHandle compute, copies;  // streams, which are destroyed last
  Buffers buffers;
  std::array<Slot, 2> slots;
  int done = 0;  // runs with these shapes, without others in between
  int epoch = 0;
  bool capturable = true;
};

Shapes shapes_of(const Views& views) {
  Shapes shapes;
  for (const auto& [name, view] : views) shapes[name] = view.shape;
  return shapes;
}

bool alike(const Buffers& buffers, const std::string& source, const std::string& result) {
  const auto from = buffers.find(source), to = buffers.find(result);
  return from != buffers.end() && to != buffers.end() && from->second.shape == to->second.shape &&
         from->second.dtype == to->second.dtype;
}

Views united(Views first, const Views& second) {
  for (const auto& [name, view] : second) first[name] = view;
  return first;
}

}  // namespace

// Shared by an engine and its loops.
struct GpuState {
  std::shared_ptr<Gpu> gpu;
  std::unique_ptr<GpuContext> context;
  std::vector<TensorSpec> inputs, outputs;
  Shapes shapes;  // that the context is prepared for
  int epoch = 0;  // counts how often they changed
  std::unique_ptr<Workspace> spare;

  ~GpuState();
  std::unique_ptr<Workspace> workspace(const Views& first, const Views& varying, const Carry& carry);
  void prepare(Workspace& work);

 private:
  std::unique_ptr<Workspace> made(const Views& first, const Views& varying, const Carry& carry);
  Buffer buffer(const std::string& name, const Shape& shape, Dtype dtype) const;
};

namespace {

class GpuLoop : public Loop {
 public:
  GpuLoop(std::shared_ptr<GpuState> state, const Views& fixed, const Carry& carry, const Views& initial, int steps,
          Varying varying);
  ~GpuLoop() override;
  void step() override;
  Tensor read(const std::string& output) override;

 private:
  void upload(Buffer& buffer, const TensorView& view, void* stream);
  void fill();
  bool enqueue(const Slot& slot);
  void capture(Slot& slot);
  void run(Slot& slot);

  std::shared_ptr<GpuState> state_;
  const CudaTable& cuda_;
  std::unique_ptr<Workspace> work_;
  Varying varying_;
  Views next_;  // the varying inputs of the next step
  int steps_, step_ = 0;
  bool whole_ = false;  // no call failed, so the workspace can be used again
};

GpuLoop::GpuLoop(std::shared_ptr<GpuState> state, const Views& fixed, const Carry& carry, const Views& initial,
                 int steps, Varying varying)
    : state_(std::move(state)), cuda_(state_->gpu->cuda()), varying_(std::move(varying)), steps_(steps) {
  if (steps_ > 0) next_ = varying_(0);
  const Views first = united(fixed, initial);
  check_inputs(state_->inputs, united(first, next_));
  const Gpu::Current current(*state_->gpu);
  work_ = state_->workspace(first, next_, carry);
  try {
    for (const auto& [name, view] : first) upload(work_->buffers.at(name), view, work_->compute.get());
    fill();
  } catch (...) {
    cuda_.cuStreamSynchronize(work_->compute.get());
    cuda_.cuStreamSynchronize(work_->copies.get());
    work_.reset();  // while the GPU is the current one
    throw;
  }
  whole_ = true;
}

GpuLoop::~GpuLoop() {
  try {
    const Gpu::Current current(*state_->gpu);
    const bool computed = cuda_.cuStreamSynchronize(work_->compute.get()) == 0;
    const bool copied = cuda_.cuStreamSynchronize(work_->copies.get()) == 0;
    if (whole_ && computed && copied) state_->spare = std::move(work_);
    work_.reset();
  } catch (const Error&) {
    // the GPU is lost, and its memory with it
  }
}

void GpuLoop::upload(Buffer& buffer, const TensorView& view, void* stream) {
  if (view.shape != buffer.shape || view.dtype != buffer.dtype) {
    input_error("An input of a step differs in shape or type from that of the first step.",
                "Give all steps inputs of one shape and type.");
  }
  if (buffer.bytes() == 0) return;
  std::memcpy(buffer.host.get(), view.data, buffer.bytes());
  state_->gpu->check(cuda_.cuMemcpyHtoDAsync_v2(buffer.address(), buffer.host.get(), buffer.bytes(), stream));
}

// Copies the varying inputs of the next step to the slot that no step needs any more, if there is a next step.
void GpuLoop::fill() {
  if (step_ == steps_) return;
  Slot& slot = work_->slots[0];
  const Gpu& gpu = *state_->gpu;
  gpu.check(cuda_.cuEventSynchronize(slot.uploaded.get()));  // the host memory is free again
  gpu.check(cuda_.cuStreamWaitEvent(work_->copies.get(), slot.consumed.get(), 0));  // and then the device memory
  if (next_.size() != slot.buffers.size()) throw std::logic_error("a step has other inputs than the first one");
  for (auto& [name, buffer] : slot.buffers) upload(buffer, next_.at(name), work_->copies.get());
  gpu.check(cuda_.cuEventRecord(slot.uploaded.get(), work_->copies.get()));
}

// Queues a run on the buffers of this step, and returns whether the library accepted it.
bool GpuLoop::enqueue(const Slot& slot) {
  for (const auto& [name, buffer] : work_->buffers) state_->context->set_address(name, buffer.device.get());
  for (const auto& [name, buffer] : slot.buffers) state_->context->set_address(name, buffer.device.get());
  return state_->context->enqueue(work_->compute.get());
}

void GpuLoop::capture(Slot& slot) {
  state_->gpu->check(cuda_.cuStreamBeginCapture_v2(work_->compute.get(), kThreadLocal));
  bool queued = false;
  try {
    queued = enqueue(slot);
  } catch (...) {
    state_->gpu->end_capture(work_->compute.get(), false);
    throw;
  }
  slot.graph = state_->gpu->end_capture(work_->compute.get(), queued);
  if (slot.graph == nullptr) work_->capturable = false;
}

void GpuLoop::run(Slot& slot) {
  if (slot.graph == nullptr && work_->done > 0 && work_->capturable) capture(slot);
  if (slot.graph != nullptr) {
    state_->gpu->check(cuda_.cuGraphLaunch(slot.graph.get(), work_->compute.get()));
  } else if (!enqueue(slot)) {
    unavailable("The step could not be started on the GPU.",
                "See the library's own message, and check the driver with `infid-export doctor`.");
  }
}

void GpuLoop::step() {
  if (step_ == steps_) throw std::logic_error("the loop has no further step");
  const Gpu::Current current(*state_->gpu);
  const Gpu& gpu = *state_->gpu;
  whole_ = false;
  state_->prepare(*work_);
  Slot& slot = work_->slots[0];
  gpu.check(cuda_.cuStreamWaitEvent(work_->compute.get(), slot.uploaded.get(), 0));
  run(slot);
  gpu.check(cuda_.cuEventRecord(slot.consumed.get(), work_->compute.get()));
  for (const auto& [source, result] : work_->carry) std::swap(work_->buffers.at(source), work_->buffers.at(result));
  ++work_->done;
  std::swap(work_->slots[0], work_->slots[1]);
  if (++step_ < steps_) next_ = varying_(step_);
  fill();
  whole_ = true;
}

Tensor GpuLoop::read(const std::string& output) {
  const Gpu::Current current(*state_->gpu);
  std::string name = output;
  for (const auto& [source, result] : work_->carry) {
    if (result == output) name = source;  // whose buffer it became
  }
  const Buffer& buffer = work_->buffers.at(name);
  const Gpu& gpu = *state_->gpu;
  void* stream = work_->compute.get();
  if (buffer.bytes() > 0) {
    gpu.check(cuda_.cuMemcpyDtoHAsync_v2(buffer.host.get(), buffer.address(), buffer.bytes(), stream));
  }
  gpu.check(cuda_.cuStreamSynchronize(stream));
  return {buffer.dtype, buffer.shape, buffer.host.get()};
}

}  // namespace

GpuState::~GpuState() {
  try {
    const Gpu::Current current(*gpu);
    spare.reset();
    context.reset();
  } catch (const Error&) {
    // the GPU is lost, and its memory with it
  }
}

std::unique_ptr<Workspace> GpuState::workspace(const Views& first, const Views& varying, const Carry& carry) {
  const bool fits = spare != nullptr && spare->first == shapes_of(first) && spare->varying == shapes_of(varying) &&
                    spare->carry == carry;
  if (fits) return std::move(spare);
  spare.reset();
  return made(first, varying, carry);
}

// Tells the library the shapes of a workspace's inputs. A CUDA graph is only valid as long as they do not change.
void GpuState::prepare(Workspace& work) {
  Shapes wanted = work.first;
  wanted.insert(work.varying.begin(), work.varying.end());
  if (wanted != shapes) {
    for (const auto& [name, shape] : wanted) context->set_shape(name, shape);
    shapes = std::move(wanted);
    ++epoch;
  }
  if (work.epoch == epoch) return;
  for (Slot& slot : work.slots) slot.graph.reset();
  work.done = 0;
  work.epoch = epoch;
}

std::unique_ptr<Workspace> GpuState::made(const Views& first, const Views& varying, const Carry& carry) {
  auto work = std::make_unique<Workspace>();
  work->first = shapes_of(first);
  work->varying = shapes_of(varying);
  work->carry = carry;
  prepare(*work);
  work->compute = gpu->stream();
  work->copies = gpu->stream();
  for (const auto& [name, view] : first) work->buffers[name] = buffer(name, view.shape, view.dtype);
  for (const TensorSpec& spec : outputs) {
    work->buffers[spec.name] = buffer(spec.name, context->shape(spec.name), spec.dtype);
  }
  for (Slot& slot : work->slots) {
    for (const auto& [name, view] : varying) slot.buffers[name] = buffer(name, view.shape, view.dtype);
    slot.uploaded = gpu->event();
    slot.consumed = gpu->event();
  }
  for (const auto& [source, result] : carry) {
    if (alike(work->buffers, source, result)) continue;
    folder_error("The engine's output " + result + " does not fit its input " + source + ".",
                 "Build the folder again with `infid-export build`.");
  }
  return work;
}

Buffer GpuState::buffer(const std::string& name, const Shape& shape, Dtype dtype) const {
  Buffer made{dtype, shape, {}, {}};
  made.device = gpu->memory(made.bytes(), name);
  made.host = gpu->pinned(made.bytes(), name);
  return made;
}

GpuEngine::GpuEngine(std::shared_ptr<Gpu> gpu, std::unique_ptr<GpuContext> context, std::vector<TensorSpec> inputs,
                     std::vector<TensorSpec> outputs)
    : state_(std::make_shared<GpuState>()) {
  state_->gpu = std::move(gpu);
  state_->context = std::move(context);
  state_->inputs = std::move(inputs);
  state_->outputs = std::move(outputs);
}

Tensors GpuEngine::run(const Views& inputs) {
  GpuLoop loop(state_, inputs, {}, {}, 1, [](int) { return Views{}; });
  loop.step();
  Tensors found;
  for (const TensorSpec& spec : state_->outputs) found.emplace(spec.name, loop.read(spec.name));
  return found;
}

std::unique_ptr<Loop> GpuEngine::loop(const Views& fixed, const Carry& carry, const Views& initial, int steps,
                                      const Varying& varying) {
  return std::make_unique<GpuLoop>(state_, fixed, carry, initial, steps, varying);
}

}  // namespace infid
