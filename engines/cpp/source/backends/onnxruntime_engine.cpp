// The backend onnxruntime: the exported graphs are the engines.

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "backends/onnxruntime.hpp"
#include "backends/onnxruntime_loop.hpp"
#include "backends/registry.hpp"

namespace infid {
namespace {

// Above this size of a folder's weights, graph optimization would keep an fp32 copy of every fp16 weight.
constexpr std::uintmax_t kLargeWeights = std::uintmax_t{1} << 31;
constexpr char kCudaProvider[] = "CUDAExecutionProvider";
constexpr char kRebuild[] = "Build the folder again with `infid-export build`.";

std::uintmax_t weights_beside(const std::string& path) {
  std::uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(path).parent_path())) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  return bytes;
}

class OnnxEngine : public Engine {
 public:
  OnnxEngine(std::shared_ptr<OnnxSession> session, const LoadRequest& request, bool captures)
      : session_(std::move(session)), inputs_(request.inputs), device_(request.device), captures_(captures) {}

  Tensors run(const Views& inputs) override {
    check_inputs(inputs_, inputs);
    return in_onnxruntime([&] {
      return session_->run(inputs, captures_ ? uncaptured().get() : nullptr);
    });
  }

  std::unique_ptr<Loop> loop(const Views& fixed, const Carry& carry, const Views& initial, int steps,
                             const Varying& varying) override {
    Views first = steps > 0 ? varying(0) : Views{};
    Views all = fixed;
    all.insert(initial.begin(), initial.end());
    all.insert(first.begin(), first.end());
    check_inputs(inputs_, all);
    return in_onnxruntime([&]() -> std::unique_ptr<Loop> {
      return std::make_unique<OnnxLoop>(session_, memories_, device_, captures_, carry, all, varying);
    });
  }

 private:
  // Options of a run that is not captured, on a session that captures its runs.
  const OrtObject& uncaptured() {
    if (uncaptured_.get() == nullptr) uncaptured_ = graph_options(session_->ort(), "-1");
    return uncaptured_;
  }

  std::shared_ptr<OnnxSession> session_;
  std::vector<TensorSpec> inputs_;
  Device device_;
  bool captures_;
  OrtObject uncaptured_;
  std::shared_ptr<LoopMemories> memories_ = std::make_shared<LoopMemories>();
};

class OnnxRuntimeBackend : public Backend {
 public:
  explicit OnnxRuntimeBackend(std::string path) : path_(std::move(path)) {}

  std::string name() const override { return "onnxruntime"; }
  int rank() const override { return 3; }
  bool reads_weights() const override { return true; }
  bool takes_threads() const override { return true; }
  bool loads_in_parallel() const override { return true; }
  std::string library() override { return "ONNX Runtime " + runtime().version() + " in " + runtime().path(); }
  void check_device(int) override {}

  std::pair<std::optional<std::string>, Device> choose_target(const std::string& device,
                                                              const std::vector<std::string>&) override {
    if (device == "auto") return {std::nullopt, Device{}};
    const auto asked = requested_device(device);
    if (!asked) input_error("onnxruntime has no device '" + device + "'.", "Use cpu or cuda.");
    return {std::nullopt, *asked};
  }

  std::unique_ptr<Engine> load(const LoadRequest& request) override {
    runtime();
    SessionSettings settings;
    settings.device = request.device;
    settings.threads = request.threads;
    const bool gpu = request.device.kind == "cuda";
    if (gpu && !runtime().has_provider(kCudaProvider)) {
      unavailable("This onnxruntime (" + runtime().version() + ") cannot run on " + request.device.text() + ".",
                  "pip uninstall -y onnxruntime && pip install \"infid-export[cuda]\"");
    }
    // The next call of a step comes at once; after other graphs, spinning threads would slow down the next graph.
    const bool repeats = std::any_of(request.outputs.begin(), request.outputs.end(),
                                     [](const TensorSpec& spec) { return spec.name.rfind("next_", 0) == 0; });
    settings.spin = repeats;
    settings.lean = !gpu && weights_beside(request.path) > kLargeWeights;
    // A captured step writes its outputs to fixed addresses, so their shapes must be known.
    settings.capture = gpu && repeats && std::all_of(request.outputs.begin(), request.outputs.end(), is_fixed);
    std::shared_ptr<OnnxSession> session = opened(request.path, settings);
    check_engine_names(request.path, "inputs", request.inputs, session->inputs());
    check_engine_names(request.path, "outputs", request.outputs, session->outputs());
    return std::make_unique<OnnxEngine>(std::move(session), request, settings.capture);
  }

 private:
  OnnxRuntime& runtime() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!runtime_) runtime_ = OnnxRuntime::open(path_);
    return *runtime_;
  }

  static bool is_fixed(const TensorSpec& spec) {
    return std::all_of(spec.shape.begin(), spec.shape.end(), [](const Dimension& each) { return each.fixed(); });
  }

  // A session; not captured if some of its operators run on the CPU.
  std::shared_ptr<OnnxSession> opened(const std::string& path, SessionSettings& settings) {
    try {
      if (settings.capture) {
        try {
          return std::make_shared<OnnxSession>(runtime_, path, settings);
        } catch (const Malformed&) {
          settings.capture = false;
        }
      }
      return std::make_shared<OnnxSession>(runtime_, path, settings);
    } catch (const Malformed& error) {
      folder_error("onnxruntime cannot load " + path + ": " + error.what(), kRebuild);
    }
  }

  std::string path_;
  std::mutex mutex_;
  std::shared_ptr<OnnxRuntime> runtime_;
};

}  // namespace

std::unique_ptr<Backend> make_onnxruntime_backend(const Options& options) {
  return std::make_unique<OnnxRuntimeBackend>(options.onnxruntime);
}

}  // namespace infid
