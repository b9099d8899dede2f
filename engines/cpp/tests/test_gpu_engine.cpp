// The loop on a fake device: host memory in place of device memory, and streams that run as late, or as early, as
// their order allows.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <set>

#include "backends/gpu_engine.hpp"

namespace {

using infid::Error;
using infid::Shape;
using infid::Tensor;
using infid::Views;

using Work = std::function<void()>;
const Shape kShape = {4, 50};

// Statuses by call, bytes of memory, and what was allocated. One per test.
struct FakeCuda {
  std::size_t room = 1 << 20;
  std::size_t eager = 0;  // the stream that runs its work at once, unless it waits for an event; counts from 1
  std::map<std::string, int> failing;
  std::map<void*, std::size_t> memory;
  std::map<void*, std::deque<Work>> queues;
  std::map<void*, int> recorded, reached;
  std::map<void*, void*> owner;
  std::map<void*, std::vector<Work>> graphs;
  std::vector<void*> order;  // streams as they were created
  std::vector<Work>* capture = nullptr;
  int current = 0, retained = 0, launches = 0, runs = 0;

  std::size_t held() const { return memory.size() + queues.size() + recorded.size() + graphs.size(); }
  void drain(void* stream) {
    auto& queue = queues.at(stream);
    while (!queue.empty()) {
      const Work work = queue.front();
      queue.pop_front();
      work();
    }
  }
  void queue(void* stream, Work work) {
    if (capture != nullptr) return capture->push_back(std::move(work));
    queues.at(stream).push_back(std::move(work));
    if (eager > 0 && eager <= order.size() && order[eager - 1] == stream) drain(stream);
  }
  void wait(void* event, int number) {
    while (reached[event] < number) {
      auto& queue = queues.at(owner.at(event));
      const Work work = queue.front();
      queue.pop_front();
      work();
    }
  }
};

FakeCuda* fake = nullptr;

int status(const char* call) {
  CHECK(fake->current == 1);  // the GPU is the current one in every call
  const auto found = fake->failing.find(call);
  return found == fake->failing.end() ? 0 : found->second;
}

int allocate(void** address, std::size_t size) {
  std::size_t used = size;
  for (const auto& [_, each] : fake->memory) used += each;
  if (used > fake->room) return 2;
  *address = std::malloc(size);
  std::memset(*address, 77, size);  // not zeros: what is read before it is written shows
  fake->memory[*address] = size;
  return 0;
}

int release(void* address) {
  CHECK(fake->memory.erase(address) == 1);
  std::free(address);
  return status("release");
}

void* number(std::size_t value) { return reinterpret_cast<void*>(value); }

infid::CudaTable fake_table() {
  infid::CudaTable table;
  table.cuInit = [](unsigned) { return 0; };
  table.cuDeviceGetCount = [](int* count) { return *count = 1, 0; };
  table.cuDeviceGet = [](int* device, int index) { return *device = index, 0; };
  table.cuDeviceGetAttribute = [](int* value, int, int) { return *value = 9, 0; };
  table.cuDevicePrimaryCtxRetain = [](void** context, int) { return *context = number(1), ++fake->retained, 0; };
  table.cuDevicePrimaryCtxRelease_v2 = [](int) { return --fake->retained, 0; };
  table.cuCtxPushCurrent_v2 = [](void*) { return ++fake->current, 0; };
  table.cuCtxPopCurrent_v2 = [](void**) { return --fake->current, 0; };
  table.cuMemAlloc_v2 = [](std::uint64_t* address, std::size_t size) {
    void* found = nullptr;
    const int result = allocate(&found, size);
    *address = reinterpret_cast<std::uintptr_t>(found);
    return result;
  };
  table.cuMemFree_v2 = [](std::uint64_t address) { return release(number(address)); };
  table.cuMemHostAlloc = [](void** address, std::size_t size, unsigned) {
    return fake->failing.count("host") ? 2 : allocate(address, size);
  };
  table.cuMemFreeHost = release;
  table.cuMemcpyHtoDAsync_v2 = [](std::uint64_t to, const void* from, std::size_t size, void* stream) {
    fake->queue(stream, [=] { std::memcpy(number(to), from, size); });
    return status("upload");
  };
  table.cuMemcpyDtoHAsync_v2 = [](void* to, std::uint64_t from, std::size_t size, void* stream) {
    fake->queue(stream, [=] { std::memcpy(to, number(from), size); });
    return status("download");
  };
  table.cuStreamCreate = [](void** stream, unsigned) {
    if (const int result = status("stream")) return result;
    *stream = number(100 + fake->order.size());
    fake->order.push_back(*stream);
    fake->queues[*stream] = {};
    return 0;
  };
  table.cuStreamDestroy_v2 = [](void* stream) {
    CHECK(fake->queues.at(stream).empty());
    fake->queues.erase(stream);
    return 0;
  };
  table.cuStreamSynchronize = [](void* stream) { return fake->drain(stream), status("synchronize"); };
  table.cuStreamWaitEvent = [](void* stream, void* event, unsigned) {
    fake->queue(stream, [event, count = fake->recorded.at(event)] { fake->wait(event, count); });
    return 0;
  };
  table.cuEventCreate = [](void** event, unsigned) {
    if (const int result = status("event")) return result;
    *event = std::malloc(1);
    fake->recorded[*event] = fake->reached[*event] = 0;
    return 0;
  };
  table.cuEventDestroy_v2 = [](void* event) {
    CHECK(fake->recorded.erase(event) == 1);
    std::free(event);
    return 0;
  };
  table.cuEventRecord = [](void* event, void* stream) {
    fake->owner[event] = stream;
    fake->queue(stream, [event, count = ++fake->recorded.at(event)] { fake->reached[event] = count; });
    return status("record");
  };
  table.cuEventSynchronize = [](void* event) { return fake->wait(event, fake->recorded.at(event)), 0; };
  table.cuStreamBeginCapture_v2 = [](void*, int mode) {
    CHECK(mode == 1);
    CHECK(fake->capture == nullptr);
    fake->capture = new std::vector<Work>;
    return 0;
  };
  table.cuStreamEndCapture = [](void*, void** graph) {
    const std::unique_ptr<std::vector<Work>> work(fake->capture);
    fake->capture = nullptr;
    *graph = nullptr;
    if (const int result = status("capture")) return result;
    *graph = std::malloc(1);
    fake->graphs[*graph] = *work;
    return 0;
  };
  table.cuGraphInstantiateWithFlags = [](void** launched, void* graph, unsigned long long) {
    *launched = std::malloc(1);
    fake->graphs[*launched] = fake->graphs.at(graph);
    return 0;
  };
  table.cuGraphDestroy = [](void* graph) {
    CHECK(fake->graphs.erase(graph) == 1);
    std::free(graph);
    return 0;
  };
  table.cuGraphExecDestroy = table.cuGraphDestroy;
  table.cuGraphLaunch = [](void* graph, void* stream) {
    ++fake->launches;
    for (const Work& work : fake->graphs.at(graph)) fake->queue(stream, work);
    return status("launch");
  };
  table.cuGetErrorName = [](int, const char** name) { return *name = "CUDA_ERROR_ILLEGAL_ADDRESS", 0; };
  return table;
}

const infid::CudaTable& table() {
  static const infid::CudaTable found = fake_table();
  return found;
}

// Computes next = 2x + y and seen = y, on the addresses at the time of the call.
class FakeContext : public infid::GpuContext {
 public:
  explicit FakeContext(bool accepts) : accepts_(accepts) {}
  ~FakeContext() override { CHECK(fake->current == 1); }
  void set_shape(const std::string&, const Shape& shape) override { shape_ = shape; }
  Shape shape(const std::string&) const override { return shape_; }
  void set_address(const std::string& name, void* address) override { addresses_[name] = static_cast<float*>(address); }
  bool enqueue(void* stream) override {
    if (fake->capture == nullptr) ++fake->runs;
    auto at = addresses_;
    fake->queue(stream, [at, count = infid::count_of(shape_)] {
      for (std::size_t i = 0; i < count; ++i) {
        at.at("next")[i] = 2 * at.at("x")[i] + at.at("y")[i];
        at.at("seen")[i] = at.at("y")[i];
      }
    });
    return accepts_ || fake->capture != nullptr;
  }

 private:
  bool accepts_;
  Shape shape_;
  std::map<std::string, float*> addresses_;
};

std::unique_ptr<infid::GpuEngine> engine(bool accepts = true) {
  const auto spec = [](const char* name) {
    return infid::TensorSpec{name, infid::Dtype::float32, {{1, 4, 8}, {50, 50, 50}}};
  };
  return std::make_unique<infid::GpuEngine>(std::make_shared<infid::Gpu>(table(), 0),
                                            std::make_unique<FakeContext>(accepts),
                                            std::vector{spec("x"), spec("y")}, std::vector{spec("next"), spec("seen")});
}

Tensor filled(float value, Shape shape = kShape) {
  Tensor made(infid::Dtype::float32, std::move(shape));
  for (std::size_t i = 0; i < made.count(); ++i) made.as<float>()[i] = value;
  return made;
}

float first_of(const Tensor& tensor) {
  for (std::size_t i = 1; i < tensor.count(); ++i) CHECK(tensor.as<float>()[i] == tensor.as<float>()[0]);
  return tensor.as<float>()[0];
}

// Runs `steps` steps with y = 0, 1, 2 … from x = 1, and compares both outputs, each step or only at the end.
void loop_through(infid::GpuEngine& engine, int steps, bool read_all, const Shape& shape = kShape) {
  Tensor y = filled(-1, shape);
  const Tensor x = filled(1, shape);
  int calls = 0;
  const auto loop = engine.loop({}, {{"x", "next"}}, {{"x", x.view()}}, steps, [&](int step) {
    CHECK(step == calls++);
    y = filled(static_cast<float>(step), shape);  // what the last call returned is gone
    return Views{{"y", y.view()}};
  });
  float expected = 1;
  for (int step = 0; step < steps; ++step) {
    loop->step();
    expected = 2 * expected + static_cast<float>(step);
    if (!read_all && step + 1 < steps) continue;
    CHECK(first_of(loop->read("next")) == expected);
    CHECK(first_of(loop->read("seen")) == static_cast<float>(step));
  }
  CHECK(calls == steps);
  CHECK_THROWS_AS(loop->step(), std::logic_error);
}

struct Fixture {
  FakeCuda cuda;
  Fixture() { fake = &cuda; }
  ~Fixture() {
    CHECK(cuda.held() == 0);
    CHECK(cuda.current == 0);
    CHECK(cuda.retained == 0);
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "an engine runs and loops, and frees everything") {
  for (const std::size_t eager : {0, 1, 2}) {
    for (const bool read_all : {false, true}) {
      CAPTURE(eager);
      CAPTURE(read_all);
      cuda.order.clear();
      cuda.eager = eager;
      const auto one = engine();
      const Tensor x = filled(1), y = filled(5);
      auto found = one->run({{"x", x.view()}, {"y", y.view()}});
      CHECK(first_of(found.at("next")) == 7);
      CHECK(first_of(found.at("seen")) == 5);
      loop_through(*one, 7, read_all);
      loop_through(*one, 1, read_all);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "memory and graphs are kept for the next loop of the same shapes") {
  const auto one = engine();
  loop_through(*one, 3, false);
  CHECK(cuda.runs == 1);
  CHECK(cuda.launches == 2);
  const std::size_t held = cuda.held();
  loop_through(*one, 5, false);  // starts with the buffers swapped
  CHECK(cuda.runs == 1);
  CHECK(cuda.launches == 7);
  CHECK(cuda.held() == held);
}

TEST_CASE_FIXTURE(Fixture, "other shapes get memory and graphs of their own") {
  const auto one = engine();
  for (const Shape& shape : {kShape, Shape{2, 50}, kShape}) loop_through(*one, 4, true, shape);
  CHECK(cuda.runs == 3);
}

TEST_CASE_FIXTURE(Fixture, "a loop that carries nothing gets memory of its own") {
  const auto one = engine();
  loop_through(*one, 3, false);
  const Tensor x = filled(1), y = filled(3);
  const auto loop = one->loop({{"x", x.view()}}, {}, {}, 3, [&](int) { return Views{{"y", y.view()}}; });
  for (int step = 0; step < 3; ++step) {
    loop->step();
    CHECK(first_of(loop->read("next")) == 5);
  }
}

TEST_CASE_FIXTURE(Fixture, "loops of several shapes may be open at once") {
  const auto one = engine();
  const Tensor x = filled(1), y = filled(3), small = filled(1, {1, 50}), addend = filled(4, {1, 50});
  const auto none = [](int) { return Views{}; };
  const auto first = one->loop({{"y", y.view()}}, {{"x", "next"}}, {{"x", x.view()}}, 6, none);
  const auto second = one->loop({{"y", addend.view()}}, {{"x", "next"}}, {{"x", small.view()}}, 6, none);
  float expected = 1, other = 1;
  for (int step = 0; step < 6; ++step) {
    first->step();
    if (step % 2) continue;
    second->step();
    other = 2 * other + 4;
  }
  for (int step = 0; step < 6; ++step) expected = 2 * expected + 3;
  CHECK(first_of(first->read("next")) == expected);
  CHECK(first_of(second->read("next")) == other);
  CHECK(cuda.runs == 7);  // the first run of each after the other one
}

TEST_CASE_FIXTURE(Fixture, "an engine that cannot be captured is enqueued") {
  cuda.failing["capture"] = 700;
  const auto one = engine();
  loop_through(*one, 5, true);
  CHECK(cuda.runs == 5);
  CHECK(cuda.launches == 0);
}

TEST_CASE_FIXTURE(Fixture, "too little memory is one sentence") {
  const Tensor x = filled(1), y = filled(5);
  const auto run = [&] { engine()->run({{"x", x.view()}, {"y", y.view()}}); };
  cuda.room = 1000;
  CHECK_THROWS_WITH_AS(
      run(), doctest::Contains("memory for x: another 800 bytes of page-locked host memory are needed."), Error);
  cuda.room = 0;
  CHECK_THROWS_WITH_AS(run(), doctest::Contains("memory for x: another 800 bytes of GPU memory are needed."), Error);
  const auto large = [] { infid::no_room(12345678, "GPU memory", "y"); };
  CHECK_THROWS_WITH_AS(large(), doctest::Contains("another 12,345,678 bytes"), Error);
}

TEST_CASE_FIXTURE(Fixture, "errors of the driver and the library free everything") {
  const Tensor x = filled(1), y = filled(5);
  for (const char* call : {"upload", "download", "stream", "event", "record", "synchronize"}) {
    CAPTURE(call);
    cuda.failing = {{call, 700}};
    const auto one = engine();
    CHECK_THROWS_WITH_AS(one->run({{"x", x.view()}, {"y", y.view()}}),
                         doctest::Contains("CUDA error CUDA_ERROR_ILLEGAL_ADDRESS."), Error);
    cuda.failing.clear();
    CHECK(first_of(one->run({{"x", x.view()}, {"y", y.view()}}).at("next")) == 7);
  }
  const auto refusing = engine(false);
  CHECK_THROWS_WITH_AS(refusing->run({{"x", x.view()}, {"y", y.view()}}),
                       doctest::Contains("The step could not be started on the GPU."), Error);
}

TEST_CASE_FIXTURE(Fixture, "inputs are checked before anything is copied") {
  const auto one = engine();
  const Tensor x = filled(1), y = filled(5), wide = filled(1, {4, 51});
  CHECK_THROWS_WITH_AS(one->run({{"x", x.view()}}), doctest::Contains("lacks input y."), Error);
  CHECK_THROWS_WITH_AS(one->run({{"x", x.view()}, {"y", wide.view()}}), doctest::Contains("must be float32"), Error);
  const auto loop = one->loop({}, {}, {{"x", x.view()}}, 2, [&](int step) {
    return Views{{"y", (step ? wide : y).view()}};
  });
  CHECK_THROWS_WITH_AS(loop->step(), doctest::Contains("differs in shape or type"), Error);
}

TEST_CASE_FIXTURE(Fixture, "an old driver is named") {
  infid::CudaTable old = table();
  old.cuGraphInstantiateWithFlags = nullptr;
  CHECK_THROWS_WITH_AS(infid::Gpu(old, 0), doctest::Contains("it lacks cuGraphInstantiateWithFlags."), Error);
}
