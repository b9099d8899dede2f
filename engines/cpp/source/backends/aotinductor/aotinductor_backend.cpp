// AOTInductor, with PyTorch's C++ library: packages for the GPU that is present, or without one for the processor.
#include <algorithm>

#include "backends/aotinductor/package.hpp"
#include "backends/cuda_driver.hpp"
#include "backends/processor.hpp"
#include "backends/registry.hpp"
#include "backends/targets.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

struct Place {
  Device device;
  std::string target;
};

// This machine's GPU, if it has one, and its processor.
std::vector<Place> places(int index) {
  std::vector<Place> found;
  const std::optional<std::string> architecture = present_architecture(index);
  if (architecture) found.push_back(Place{Device{"cuda", index}, *architecture});
  found.push_back(Place{Device{"cpu", 0}, cpu_target()});
  return found;
}

class AOTInductorBackend : public Backend {
 public:
  std::string name() const override { return "aotinductor"; }
  // On a GPU before ONNX Runtime; on the CPU after it, whose steps are faster there.
  int rank() const override { return has_gpu() ? 2 : 4; }
  bool reads_weights() const override { return true; }
  std::string library() override { return torch_library(); }
  void check_device(int) override {}  // the target decides

  std::pair<std::optional<std::string>, Device> choose_target(const std::string& device,
                                                              const std::vector<std::string>& targets) override {
    const std::optional<Device> asked = requested_device(device);
    std::vector<std::string> here, wanted;
    for (const auto& [place, target] : places(asked ? asked->index : 0)) {
      here.push_back(place.text());
      const bool is_asked = asked && asked->kind == place.kind && asked->index == place.index;
      if (!is_asked && device != "auto" && device != target) continue;
      if (std::find(targets.begin(), targets.end(), target) != targets.end()) return {target, place};
      wanted.push_back(target);
    }
    if (wanted.empty()) {
      input_error("aotinductor cannot run on '" + device + "' here.", "Use " + joined(here, " or ") + ".");
    }
    unavailable("The folder's aotinductor engines are for " + (targets.empty() ? "nothing" : joined(targets, ", ")) +
                    ", but this machine has " + joined(wanted, " and ") + ".",
                "infid-export build --backend aotinductor");
  }

  std::unique_ptr<Engine> load(const LoadRequest& request) override { return open_package(request); }
};

}  // namespace

std::unique_ptr<Backend> make_aotinductor_backend() { return std::make_unique<AOTInductorBackend>(); }

}  // namespace infid
