// The backends: the only list of them.
#include "backends/registry.hpp"

#include <algorithm>

#include "backends/cuda_driver.hpp"

namespace infid {
namespace {

// A backend that this library was built without.
class MissingBackend : public Backend {
 public:
  MissingBackend(std::string name, int rank, std::string title, std::string option)
      : name_(std::move(name)), rank_(rank), title_(std::move(title)), option_(std::move(option)) {}

  std::string name() const override { return name_; }
  int rank() const override { return rank_; }
  std::string library() override { refuse(); }
  void check_device(int) override { refuse(); }
  std::pair<std::optional<std::string>, Device> choose_target(const std::string&,
                                                              const std::vector<std::string>&) override {
    refuse();
  }
  std::unique_ptr<Engine> load(const LoadRequest&) override { refuse(); }

 private:
  [[noreturn]] void refuse() const {
    unavailable("This libinfid was built without " + title_ + ".",
                "Build it with -D" + option_ + ", or use another backend.");
  }

  std::string name_;
  int rank_;
  std::string title_, option_;
};

}  // namespace

#ifndef INFID_HAS_TENSORRT
std::unique_ptr<Backend> make_tensorrt_backend() {
  return std::make_unique<MissingBackend>("tensorrt", 0, "TensorRT", "INFID_TENSORRT_ROOT=<TensorRT's folder>");
}
#endif

#ifndef INFID_HAS_TENSORRT_RTX
std::unique_ptr<Backend> make_tensorrt_rtx_backend() {
  return std::make_unique<MissingBackend>("tensorrt_rtx", 1, "TensorRT-RTX",
                                          "INFID_TENSORRT_RTX_ROOT=<TensorRT-RTX's folder>");
}
#endif

#ifndef INFID_HAS_AOTINDUCTOR
std::unique_ptr<Backend> make_aotinductor_backend() {
  return std::make_unique<MissingBackend>("aotinductor", has_gpu() ? 2 : 4, "AOTInductor",
                                          "INFID_TORCH=<folder of the Python package torch>");
}
#endif

std::vector<std::unique_ptr<Backend>> open_backends(const Options& options) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(make_onnxruntime_backend(options));
  backends.push_back(make_tensorrt_backend());
  backends.push_back(make_tensorrt_rtx_backend());
  backends.push_back(make_aotinductor_backend());
  std::sort(backends.begin(), backends.end(), [](const auto& a, const auto& b) { return a->rank() < b->rank(); });
  return backends;
}

}  // namespace infid
