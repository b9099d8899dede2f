// CUDA's driver, loaded at run time through its own stable interface: no toolkit is needed to build or to start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace infid {

// Name in the library and argument types of each function; all return a CUresult. Handles are opaque pointers.
#define INFID_CUDA_FUNCTIONS(F)                                   \
  F(cuInit, (unsigned))                                           \
  F(cuDeviceGetCount, (int*))                                     \
  F(cuDeviceGet, (int*, int))                                     \
  F(cuDeviceGetAttribute, (int*, int, int))                       \
  F(cuDevicePrimaryCtxRetain, (void**, int))                      \
  F(cuDevicePrimaryCtxRelease_v2, (int))                          \
  F(cuCtxPushCurrent_v2, (void*))                                 \
  F(cuCtxPopCurrent_v2, (void**))                                 \
  F(cuMemAlloc_v2, (std::uint64_t*, std::size_t))                 \
  F(cuMemFree_v2, (std::uint64_t))                                \
  F(cuMemHostAlloc, (void**, std::size_t, unsigned))              \
  F(cuMemFreeHost, (void*))                                       \
  F(cuMemcpyHtoDAsync_v2, (std::uint64_t, const void*, std::size_t, void*)) \
  F(cuMemcpyDtoHAsync_v2, (void*, std::uint64_t, std::size_t, void*))       \
  F(cuStreamCreate, (void**, unsigned))                           \
  F(cuStreamDestroy_v2, (void*))                                  \
  F(cuStreamSynchronize, (void*))                                 \
  F(cuStreamWaitEvent, (void*, void*, unsigned))                  \
  F(cuEventCreate, (void**, unsigned))                            \
  F(cuEventDestroy_v2, (void*))                                   \
  F(cuEventRecord, (void*, void*))                                \
  F(cuEventSynchronize, (void*))                                  \
  F(cuStreamBeginCapture_v2, (void*, int))                        \
  F(cuStreamEndCapture, (void*, void**))                          \
  F(cuGraphInstantiateWithFlags, (void**, void*, unsigned long long)) \
  F(cuGraphDestroy, (void*))                                      \
  F(cuGraphExecDestroy, (void*))                                  \
  F(cuGraphLaunch, (void*, void*))                                \
  F(cuGetErrorName, (int, const char**))

// The functions; null where a driver is too old to have one.
struct CudaTable {
#define INFID_DECLARE(name, arguments) int(*name) arguments = nullptr;
  INFID_CUDA_FUNCTIONS(INFID_DECLARE)
#undef INFID_DECLARE
};

// The driver of this machine, initialized; null without a driver or a GPU.
const CudaTable* cuda_driver();

// Whether there is an NVIDIA driver, without asking it.
bool has_gpu();

// The architecture of each GPU that CUDA finds, in its order, as `sm_…`.
std::vector<std::string> gpu_architectures();

// Throws backend_unavailable with CUDA's name of an error, unless the result is success.
void check_cuda(const CudaTable& cuda, int result);

// A resource of CUDA that is released with the object; its GPU must be the current one then.
using CudaHandle = std::unique_ptr<void, std::function<void(void*)>>;

// One GPU, in the context that it shares with other libraries of this process.
class Gpu {
 public:
  // Throws backend_unavailable.
  Gpu(const CudaTable& cuda, int index);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const CudaTable& cuda() const { return cuda_; }
  void check(int result) const { check_cuda(cuda_, result); }

  // Makes the GPU the current one of this thread while the object lives; then the previous one is current again.
  class Current {
   public:
    explicit Current(const Gpu& gpu);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Gpu& gpu_;
  };

  // These need the GPU to be the current one. `what` is for the message if there is too little memory, which is
  // backend_unavailable like any other error.
  CudaHandle memory(std::size_t size, const std::string& what) const;
  CudaHandle pinned(std::size_t size, const std::string& what) const;
  CudaHandle stream() const;
  CudaHandle event() const;
  // What was queued since cuStreamBeginCapture; null if it cannot be captured.
  CudaHandle end_capture(void* stream, bool queued) const;

 private:
  const CudaTable& cuda_;
  int device_ = 0;
  void* context_ = nullptr;
};

// "There is not enough memory for …".
[[noreturn]] void no_room(std::size_t size, const std::string& memory, const std::string& what);

}  // namespace infid
