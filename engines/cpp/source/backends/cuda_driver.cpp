// Loads CUDA's driver, and wraps what is allocated through it.
#include "backends/cuda_driver.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include "errors.hpp"

namespace infid {
namespace {

constexpr int kOutOfMemory = 2;  // CUDA_ERROR_OUT_OF_MEMORY
constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
constexpr unsigned kNoTiming = 2;        // CU_EVENT_DISABLE_TIMING
constexpr const char* kCheckDriver = "Check the driver with `infid-export doctor`, or use the backend onnxruntime.";

const CudaTable* load() {
  // never closed: the driver keeps threads, and other libraries use it
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) return nullptr;
  static CudaTable table;
#define INFID_LOAD(name, arguments) table.name = reinterpret_cast<int(*) arguments>(dlsym(library, #name));
  INFID_CUDA_FUNCTIONS(INFID_LOAD)
#undef INFID_LOAD
  const bool counts = table.cuDeviceGetCount && table.cuDeviceGet && table.cuDeviceGetAttribute;
  return table.cuInit && counts && table.cuInit(0) == 0 ? &table : nullptr;
}

std::string with_commas(std::size_t number) {
  std::string text = std::to_string(number);
  for (std::size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, ",");
  return text;
}

void require_all(const CudaTable& cuda) {
#define INFID_REQUIRE(name, arguments) \
  if (cuda.name == nullptr) unavailable("This GPU's driver is too old: it lacks " #name ".", "Update the driver.");
  INFID_CUDA_FUNCTIONS(INFID_REQUIRE)
#undef INFID_REQUIRE
}

// Device addresses are numbers for the driver, and pointers for everybody else.
void* pointer(std::uint64_t address) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address)); }

}  // namespace

const CudaTable* cuda_driver() {
  static const CudaTable* const driver = load();
  return driver;
}

bool has_gpu() {
  return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0;  // Linux, and Linux under Windows
}

std::vector<std::string> gpu_architectures() {
  const CudaTable* cuda = cuda_driver();
  int count = 0;
  if (cuda != nullptr) cuda->cuDeviceGetCount(&count);
  std::vector<std::string> found;
  for (int index = 0; index < count; ++index) {
    int device = 0, major = 0, minor = 0;
    cuda->cuDeviceGet(&device, index);
    cuda->cuDeviceGetAttribute(&major, kMajor, device);
    cuda->cuDeviceGetAttribute(&minor, kMinor, device);
    found.push_back("sm_" + std::to_string(major) + std::to_string(minor));
  }
  return found;
}

void check_cuda(const CudaTable& cuda, int result) {
  if (result == 0) return;
  const char* name = nullptr;
  cuda.cuGetErrorName(result, &name);
  unavailable("CUDA error " + (name ? std::string(name) : std::to_string(result)) + ".", kCheckDriver);
}

void no_room(std::size_t size, const std::string& memory, const std::string& what) {
  unavailable("There is not enough memory for " + what + ": another " + with_commas(size) + " bytes of " + memory +
                  " are needed.",
              "Close other programs that use it, or build for a smaller batch or size.");
}

Gpu::Gpu(const CudaTable& cuda, int index) : cuda_(cuda) {
  require_all(cuda);
  check(cuda_.cuDeviceGet(&device_, index));
  check(cuda_.cuDevicePrimaryCtxRetain(&context_, device_));
}

Gpu::~Gpu() { cuda_.cuDevicePrimaryCtxRelease_v2(device_); }

Gpu::Current::Current(const Gpu& gpu) : gpu_(gpu) { gpu_.check(gpu_.cuda_.cuCtxPushCurrent_v2(gpu_.context_)); }

Gpu::Current::~Current() {
  void* popped = nullptr;
  gpu_.cuda_.cuCtxPopCurrent_v2(&popped);
}

CudaHandle Gpu::memory(std::size_t size, const std::string& what) const {
  std::uint64_t address = 0;
  const int result = cuda_.cuMemAlloc_v2(&address, size ? size : 1);
  if (result == kOutOfMemory) no_room(size, "GPU memory", what);
  check(result);
  const auto release = cuda_.cuMemFree_v2;
  return {pointer(address), [release](void* held) { release(reinterpret_cast<std::uintptr_t>(held)); }};
}

CudaHandle Gpu::pinned(std::size_t size, const std::string& what) const {
  void* address = nullptr;
  const int result = cuda_.cuMemHostAlloc(&address, size ? size : 1, 0);
  if (result == kOutOfMemory) no_room(size, "page-locked host memory", what);
  check(result);
  return {address, cuda_.cuMemFreeHost};
}

CudaHandle Gpu::stream() const {
  void* made = nullptr;
  check(cuda_.cuStreamCreate(&made, 0));
  return {made, cuda_.cuStreamDestroy_v2};
}

CudaHandle Gpu::event() const {
  void* made = nullptr;
  check(cuda_.cuEventCreate(&made, kNoTiming));
  return {made, cuda_.cuEventDestroy_v2};
}

CudaHandle Gpu::end_capture(void* stream, bool queued) const {
  void* found = nullptr;
  const int result = cuda_.cuStreamEndCapture(stream, &found);
  const CudaHandle graph(result == 0 ? found : nullptr, cuda_.cuGraphDestroy);
  if (graph == nullptr || !queued) return {nullptr, cuda_.cuGraphExecDestroy};
  void* launched = nullptr;
  check(cuda_.cuGraphInstantiateWithFlags(&launched, graph.get(), 0));
  return {launched, cuda_.cuGraphExecDestroy};
}

}  // namespace infid
