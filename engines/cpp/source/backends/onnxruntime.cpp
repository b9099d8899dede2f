#include "backends/onnxruntime.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>

#include "backends/onnxruntime_objects.hpp"

namespace infid {
namespace {

namespace fs = std::filesystem;

struct ApiBase {
  const void* const* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

constexpr char kInstall[] = "Install it with `pip install onnxruntime` or from its releases, and give the path of "
                            "libonnxruntime.so with --onnxruntime (in C++: Options::onnxruntime).";

// The libraries in a folder, the newest version first.
std::vector<std::string> libraries_in(const fs::path& folder) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path().string());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// Where the library usually is: where the linker looks, and in the active Python environment.
std::vector<std::string> usual_places() {
  std::vector<std::string> places = {"libonnxruntime.so.1", "libonnxruntime.so"};
  for (const char* folder : {"/usr/local/lib", "/opt/onnxruntime/lib"}) {
    for (std::string& path : libraries_in(folder)) places.push_back(std::move(path));
  }
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    const char* prefix = std::getenv(name);
    if (prefix == nullptr || *prefix == '\0') continue;
    std::error_code ignored;
    for (const auto& python : fs::directory_iterator(fs::path(prefix) / "lib", ignored)) {
      const fs::path folder = python.path() / "site-packages/onnxruntime/capi";
      for (std::string& path : libraries_in(folder)) places.push_back(std::move(path));
    }
  }
  return places;
}

// Where a library that was found by its name really is.
std::string real_path(void* symbol, const std::string& asked) {
  Dl_info info{};
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : asked;
}

}  // namespace

std::shared_ptr<OnnxRuntime> OnnxRuntime::open(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<OnnxRuntime>> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  if (auto known = opened[path].lock()) return known;

  std::string reason;
  void* library = nullptr;
  std::string taken;
  for (const std::string& place : path.empty() ? usual_places() : std::vector<std::string>{path}) {
    library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    taken = place;
    if (library != nullptr) break;
    if (const char* error = dlerror(); reason.empty() && error != nullptr) reason = error;
  }
  if (library == nullptr) unavailable("ONNX Runtime cannot be loaded (" + reason + ").", kInstall);
  void* symbol = dlsym(library, "OrtGetApiBase");
  if (symbol == nullptr) {
    dlclose(library);
    unavailable(taken + " is not ONNX Runtime's library: it has no OrtGetApiBase.", kInstall);
  }
  taken = real_path(symbol, taken);
  const auto* base = reinterpret_cast<const ApiBase* (*)()>(reinterpret_cast<std::uintptr_t>(symbol))();
  const std::string version = base->get_version();
  // A library that is too old writes to stderr when it is asked for a table that it does not have.
  const int minor = version.rfind("1.", 0) == 0 ? std::atoi(version.c_str() + 2) : 0;
  const void* const* table = minor >= static_cast<int>(kOrtApiVersion) ? base->get_api(kOrtApiVersion) : nullptr;
  if (table == nullptr) {
    dlclose(library);
    unavailable(taken + " is ONNX Runtime " + version + ", but 1." + std::to_string(kOrtApiVersion) +
                    " is the oldest that can be used.",
                kInstall);
  }
  std::shared_ptr<OnnxRuntime> runtime(new OnnxRuntime);
  runtime->path_ = taken;
  runtime->version_ = version;
  runtime->table_ = std::make_unique<OrtTable>(table);
  constexpr int kErrors = 3;  // as Python sets it
  OrtHandle environment = nullptr;
  check(runtime->table(), runtime->table().CreateEnv(kErrors, "infid", &environment));
  runtime->environment_ = environment;
  opened[path] = runtime;
  return runtime;
}

// The library stays loaded: its threads may still end.
OnnxRuntime::~OnnxRuntime() {
  if (environment_ != nullptr) table_->ReleaseEnv(environment_);
}

bool OnnxRuntime::has_provider(const std::string& name) const {
  char** names = nullptr;
  int count = 0;
  check(table(), table().GetAvailableProviders(&names, &count));
  bool found = false;
  for (int i = 0; i < count; ++i) found = found || name == names[i];
  check(table(), table().ReleaseAvailableProviders(names, count));
  return found;
}

namespace {

std::vector<std::string> names_of(const OrtTable& ort, OrtHandle session, bool inputs) {
  OrtHandle allocator = nullptr;
  check(ort, ort.GetAllocatorWithDefaultOptions(&allocator));
  std::size_t count = 0;
  check(ort, inputs ? ort.SessionGetInputCount(session, &count) : ort.SessionGetOutputCount(session, &count));
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(ort, (inputs ? ort.SessionGetInputName : ort.SessionGetOutputName)(session, i, allocator, &name));
    names.emplace_back(name);
    check(ort, ort.AllocatorFree(allocator, name));
  }
  return names;
}

void append_cuda(const OrtTable& ort, OrtHandle options, const SessionSettings& settings) {
  OrtHandle cuda = nullptr;
  check(ort, ort.CreateCUDAProviderOptions(&cuda));
  const OrtObject held(cuda, ort.ReleaseCUDAProviderOptions);
  const std::string index = std::to_string(settings.device.index);
  const char* keys[] = {"device_id", "enable_cuda_graph"};
  const char* values[] = {index.c_str(), settings.capture ? "1" : "0"};
  check(ort, ort.UpdateCUDAProviderOptions(cuda, keys, values, 2));
  check(ort, ort.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
}

}  // namespace

OnnxSession::OnnxSession(std::shared_ptr<OnnxRuntime> runtime, const std::string& path,
                         const SessionSettings& settings)
    : runtime_(std::move(runtime)) {
  const OrtTable& ort = runtime_->table();
  OrtHandle options = nullptr;
  check(ort, ort.CreateSessionOptions(&options));
  const OrtObject held(options, ort.ReleaseSessionOptions);
  check(ort, ort.SetSessionLogSeverityLevel(options, 3));
  check(ort, ort.SetIntraOpNumThreads(options, settings.threads));
  check(ort, ort.AddSessionConfigEntry(options, "session.intra_op.allow_spinning", settings.spin ? "1" : "0"));
  if (settings.lean) {
    check(ort, ort.SetSessionGraphOptimizationLevel(options, 0));
    check(ort, ort.AddSessionConfigEntry(options, "session.disable_prepacking", "1"));
    check(ort, ort.DisableCpuMemArena(options));
  }
  if (settings.device.kind == "cuda") append_cuda(ort, options, settings);
  OrtHandle session = nullptr;
  check(ort, ort.CreateSession(runtime_->environment(), path.c_str(), options, &session));
  session_ = OrtObject(session, ort.ReleaseSession);
  inputs_ = names_of(ort, session, true);
  outputs_ = names_of(ort, session, false);
}

OnnxSession::~OnnxSession() = default;

OnnxInput OnnxSession::input(const std::string& name) const {
  const OrtTable& ort = runtime_->table();
  const auto place = std::find(inputs_.begin(), inputs_.end(), name);
  if (place == inputs_.end()) throw Malformed("it has no input " + name);
  OrtHandle info = nullptr, tensor = nullptr;
  check(ort, ort.SessionGetInputTypeInfo(session_.get(), static_cast<std::size_t>(place - inputs_.begin()), &info));
  const OrtObject held(info, ort.ReleaseTypeInfo);
  check(ort, ort.CastTypeInfoToTensorInfo(info, &tensor));
  if (tensor == nullptr) throw Malformed("its input " + name + " is not a tensor");
  OnnxInput found;
  check(ort, ort.GetTensorElementType(tensor, &found.element_type));
  found.shape = shape_of(ort, tensor);
  return found;
}

std::string OnnxSession::metadata(const std::string& key) const {
  const OrtTable& ort = runtime_->table();
  OrtHandle metadata = nullptr, allocator = nullptr;
  check(ort, ort.SessionGetModelMetadata(session_.get(), &metadata));
  const OrtObject held(metadata, ort.ReleaseModelMetadata);
  check(ort, ort.GetAllocatorWithDefaultOptions(&allocator));
  char* value = nullptr;
  check(ort, ort.ModelMetadataLookupCustomMetadataMap(metadata, allocator, key.c_str(), &value));
  const std::string found = value == nullptr ? "" : value;
  if (value != nullptr) check(ort, ort.AllocatorFree(allocator, value));
  return found;
}

Tensors OnnxSession::run(const Views& inputs) const { return run(inputs, nullptr); }

Tensors OnnxSession::run(const Views& inputs, OrtHandle options) const {
  const OrtTable& ort = runtime_->table();
  const OrtObject memory = cpu_memory(ort);
  std::vector<OrtObject> values;
  std::vector<OrtHandle> given, made(outputs_.size(), nullptr);
  std::vector<const char*> input_names, output_names;
  for (const auto& [name, view] : inputs) {
    values.push_back(borrowed(ort, memory, view));
    given.push_back(values.back().get());
    input_names.push_back(name.c_str());
  }
  for (const std::string& name : outputs_) output_names.push_back(name.c_str());
  const OrtStatus status = ort.Run(session_.get(), options, input_names.data(), given.data(), given.size(),
                                   output_names.data(), output_names.size(), made.data());
  std::vector<OrtObject> results;
  for (OrtHandle value : made) results.emplace_back(value, ort.ReleaseValue);
  check(ort, status);
  Tensors found;
  for (std::size_t i = 0; i < results.size(); ++i) found.emplace(outputs_[i], copied(ort, results[i]));
  return found;
}

}  // namespace infid
