// TensorRT and TensorRT-RTX. Compiled once for each, with its own headers: the two number their versions differently,
// and the layout of their objects is that of the headers. The library itself is loaded at run time.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <set>

#include "backends/gpu_engine.hpp"
#include "backends/registry.hpp"
#include "backends/targets.hpp"
#include "folder/safetensors.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

#ifdef INFID_TENSORRT_RTX
constexpr int kRank = 1;
constexpr const char *kName = "tensorrt_rtx", *kTitle = "TensorRT-RTX", *kLibrary = "libtensorrt_rtx.so.";
#else
constexpr int kRank = 0;
constexpr const char *kName = "tensorrt", *kTitle = "TensorRT", *kLibrary = "libnvinfer.so.";
#endif
constexpr const char* kRebuild = "Build the folder again with `infid-export build`.";

// Prints errors to stderr, as TensorRT's own logger does; the errors that this library throws say what to do.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "[%s] %s\n", kTitle, message);
  }
};

struct Library {
  std::string path, version;
  void* (*create_runtime)(void* logger, std::int32_t version) = nullptr;
};

std::string version_text(int number) {
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." + std::to_string(number % 100);
}

Library open_library() {
  const std::string file = kLibrary + std::to_string(NV_TENSORRT_MAJOR);
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its threads may outlive an engine
  if (handle == nullptr) {
    unavailable(std::string(kName) + " is not installed.",
                std::string("Install ") + kTitle + ", and add the folder of " + file + " to LD_LIBRARY_PATH.");
  }
  Library library;
  library.create_runtime =
      reinterpret_cast<decltype(library.create_runtime)>(dlsym(handle, "createInferRuntime_INTERNAL"));
  const auto version = reinterpret_cast<std::int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  const int number = version == nullptr ? 0 : version();
  library.version = version_text(number);
  if (library.create_runtime == nullptr || number / 10000 != NV_TENSORRT_MAJOR) {
    unavailable(file + " has version " + library.version + ", but this libinfid was built for " + kTitle + " " +
                    version_text(NV_TENSORRT_VERSION) + ".",
                "Install that version, or build libinfid with the headers of the one that is installed.");
  }
  Dl_info place{};
  library.path = dladdr(reinterpret_cast<void*>(version), &place) != 0 ? place.dli_fname : file;
  return library;
}

const Library& opened_library() {
  static std::mutex mutex;
  static std::unique_ptr<Library> library;  // unlike a static value, tried again after an error
  const std::lock_guard<std::mutex> lock(mutex);
  if (library == nullptr) library = std::make_unique<Library>(open_library());
  return *library;
}

nvinfer1::Dims dims_of(const Shape& shape) {
  if (shape.size() > nvinfer1::Dims::MAX_DIMS) throw Malformed("an input has too many dimensions");
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

nvinfer1::DataType type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return nvinfer1::DataType::kHALF;
    case Dtype::int8: return nvinfer1::DataType::kINT8;
    case Dtype::int32: return nvinfer1::DataType::kINT32;
    case Dtype::int64: return nvinfer1::DataType::kINT64;
    case Dtype::uint8: return nvinfer1::DataType::kUINT8;
    default: return nvinfer1::DataType::kFLOAT;
  }
}

// An execution context with what it needs, which is freed in reverse order.
class TensorRTContext : public GpuContext {
 public:
  TensorRTContext(std::unique_ptr<nvinfer1::IRuntime> runtime, std::unique_ptr<nvinfer1::ICudaEngine> engine)
      : runtime_(std::move(runtime)), engine_(std::move(engine)), context_(engine_->createExecutionContext()) {
    if (context_ == nullptr) {
      no_room(static_cast<std::size_t>(engine_->getDeviceMemorySizeV2()), "GPU memory",
              "the engine's intermediate results");
    }
  }

  void set_shape(const std::string& input, const Shape& shape) override {
    context_->setInputShape(input.c_str(), dims_of(shape));
  }

  Shape shape(const std::string& output) const override {
    const nvinfer1::Dims dims = context_->getTensorShape(output.c_str());
    if (dims.nbDims < 0 || std::any_of(dims.d, dims.d + dims.nbDims, [](auto extent) { return extent < 0; })) {
      folder_error("The engine has no shape for its output " + output + ".", kRebuild);
    }
    return {dims.d, dims.d + dims.nbDims};
  }

  void set_address(const std::string& name, void* address) override {
    context_->setTensorAddress(name.c_str(), address);
  }

  bool enqueue(void* stream) override { return context_->enqueueV3(static_cast<cudaStream_t>(stream)); }

 private:
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

// Buffers are sized by the manifest, so an engine with other names or types would write past them.
void check_tensors(const nvinfer1::ICudaEngine& engine, const LoadRequest& request) {
  std::set<std::string> wanted, found;
  bool same_types = true;
  for (int index = 0; index < engine.getNbIOTensors(); ++index) found.insert(engine.getIOTensorName(index));
  for (const auto* specs : {&request.inputs, &request.outputs}) {
    const auto mode = specs == &request.inputs ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    for (const TensorSpec& spec : *specs) {
      wanted.insert(spec.name);
      same_types = same_types && found.count(spec.name) && engine.getTensorIOMode(spec.name.c_str()) == mode &&
                   engine.getTensorDataType(spec.name.c_str()) == type_of(spec.dtype);
    }
  }
  if (same_types && found == wanted) return;
  folder_error("The engine's inputs and outputs differ from its graph's.", kRebuild);
}

std::unique_ptr<GpuContext> open_engine(const Library& library, const LoadRequest& request) {
  static Logger& logger = *new Logger;  // never freed: the library keeps it, and may log while the process ends
  std::unique_ptr<nvinfer1::IRuntime> runtime(
      static_cast<nvinfer1::IRuntime*>(library.create_runtime(&logger, NV_TENSORRT_VERSION)));
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  if (runtime != nullptr) {
    try {
      const MappedFile file(request.path);
      engine.reset(runtime->deserializeCudaEngine(file.data(), file.size()));
    } catch (const Malformed& error) {
      folder_error(request.path + " cannot be read (" + error.what() + ").", kRebuild);
    }
  }
  if (engine == nullptr) {
    const std::string present = present_architecture(request.device.index).value_or("None");
    folder_error(request.path + " was not built with " + kName + " " + library.version + ", or not for this GPU (" +
                     present + ").",
                 std::string("infid-export build --backend ") + kName + " --target " + present);
  }
  check_tensors(*engine, request);
  return std::make_unique<TensorRTContext>(std::move(runtime), std::move(engine));
}

class TensorRTBackend : public Backend {
 public:
  std::string name() const override { return kName; }
  int rank() const override { return kRank; }

  std::string library() override {
    const Library& found = opened_library();
    return std::string(kTitle) + " " + found.version + " in " + found.path;
  }

  void check_device(int index) override {
    const std::optional<std::string> present = present_architecture(index);
    if (!present) {
      unavailable(std::string(kName) + " engines need an NVIDIA GPU, but none was found.",
                  "Check the driver with `infid-export doctor`, or use --backend onnxruntime.");
    }
#ifdef INFID_TENSORRT_RTX
    static const std::vector<std::string> targets = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"};
    if (std::find(targets.begin(), targets.end(), *present) == targets.end()) {
      unavailable("TensorRT-RTX does not run on " + *present + ", only on " + joined(targets, ", ") + ".",
                  "Use another backend, such as --backend tensorrt.");
    }
#endif
  }

  std::pair<std::optional<std::string>, Device> choose_target(const std::string& device,
                                                              const std::vector<std::string>& targets) override {
    return choose_gpu_target(kName, device, targets);
  }

  std::unique_ptr<Engine> load(const LoadRequest& request) override {
    check_device(request.device.index);
    const Library& library = opened_library();
    auto gpu = std::make_shared<Gpu>(*cuda_driver(), request.device.index);
    const Gpu::Current current(*gpu);
    std::unique_ptr<GpuContext> context = open_engine(library, request);
    return std::make_unique<GpuEngine>(gpu, std::move(context), request.inputs, request.outputs);
  }
};

}  // namespace

#ifdef INFID_TENSORRT_RTX
std::unique_ptr<Backend> make_tensorrt_rtx_backend() { return std::make_unique<TensorRTBackend>(); }
#else
std::unique_ptr<Backend> make_tensorrt_backend() { return std::make_unique<TensorRTBackend>(); }
#endif

}  // namespace infid
