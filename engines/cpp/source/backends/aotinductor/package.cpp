// Runs AOTInductor packages: the only source file that includes PyTorch's headers, which take most of its compilation.
#include "backends/aotinductor/package.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <sys/stat.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "backends/aotinductor/package_facts.hpp"
#include "backends/processor.hpp"
#include "folder/safetensors.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

using TorchTensors = std::map<std::string, at::Tensor>;

// The entries of a package's metadata: its facts, and PyTorch's own, such as "AVX512 AVX512_VNNI".
constexpr const char *kFacts = "infid", *kInstructions = "AOTI_CPU_ISA";
constexpr const char* kAgain = "Build the folder again with `infid-export build`.";

at::Device torch_device(const Device& device) {
  if (device.kind == "cpu") return at::Device(at::kCPU);
  return {at::kCUDA, static_cast<c10::DeviceIndex>(device.index)};
}

at::ScalarType torch_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return at::kHalf;
    case Dtype::int8: return at::kChar;
    case Dtype::uint8: return at::kByte;
    case Dtype::int32: return at::kInt;
    case Dtype::int64: return at::kLong;
    default: return at::kFloat;
  }
}

at::ScalarType torch_type(const std::string& name) {
  static const std::map<std::string, at::ScalarType> types = {
      {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}, {"float64", at::kDouble},
      {"int64", at::kLong},    {"int32", at::kInt},    {"int16", at::kShort},       {"int8", at::kChar},
      {"uint8", at::kByte},    {"bool", at::kBool}};
  const auto found = types.find(name);
  if (found == types.end()) throw Malformed("unknown type " + name);
  return found->second;
}

// A tensor of the same memory, which is only read.
at::Tensor shared(const TensorView& view) {
  return at::from_blob(const_cast<void*>(view.data), view.shape, at::TensorOptions().dtype(torch_type(view.dtype)));
}

// What PyTorch says, without the calls that led there.
std::string reason_of(const std::exception& error) {
  const auto* known = dynamic_cast<const c10::Error*>(&error);
  return known ? known->what_without_backtrace() : error.what();
}

// A weights file, mapped into memory; on a GPU, a copy of each tensor that is asked for. PyTorch never gives up a
// package's references to tensors that it does not own, so the copies are freed by hand.
class SharedWeights {
 public:
  SharedWeights(const std::string& path, const Device& device)
      : file_(path), content_(parse_safetensors(file_.data(), file_.size())), device_(torch_device(device)) {}
  SharedWeights(const SharedWeights&) = delete;
  SharedWeights& operator=(const SharedWeights&) = delete;
  ~SharedWeights() {
    for (auto& [_, tensor] : uploaded_) tensor.storage().unsafeGetStorageImpl()->reset();
  }

  // A weight with the strides that a package was compiled for.
  at::Tensor tensor(const StoredWeight& stored, bool channels_last) {
    const std::pair<StoredWeight, bool> key{stored, channels_last};
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = uploaded_.find(key); found != uploaded_.end()) return found->second;
    const auto view = content_.tensors.find(stored.name);
    if (view == content_.tensors.end()) throw Malformed("File does not contain tensor " + stored.name);
    at::Tensor tensor = shared(view->second);
    if (stored.transposed) tensor = tensor.t();
    if (device_.is_cpu()) return tensor;
    const bool last = channels_last && tensor.dim() == 4;
    return uploaded_[key] = tensor.to(tensor.options().device(device_), false, true,
                                      last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Preserve);
  }

 private:
  MappedFile file_;
  Safetensors content_;
  at::Device device_;
  std::mutex mutex_;  // packages may be loaded on several threads
  std::map<std::pair<StoredWeight, bool>, at::Tensor> uploaded_;
};

// A weights file on a device, which stays there while a package uses it.
std::shared_ptr<SharedWeights> shared_weights(const std::filesystem::path& path, const Device& device) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<SharedWeights>> all;
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) throw Malformed(path.string() + ": " + std::strerror(errno));
  std::ostringstream key;
  key << status.st_dev << ' ' << status.st_ino << ' ' << status.st_mtim.tv_sec << ' ' << status.st_mtim.tv_nsec << ' '
      << device.text();
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto each = all.begin(); each != all.end();) each = each->second.expired() ? all.erase(each) : std::next(each);
  std::weak_ptr<SharedWeights>& known = all[key.str()];
  std::shared_ptr<SharedWeights> found = known.lock();
  if (!found) known = found = std::make_shared<SharedWeights>(path.string(), device);
  return found;
}

void flatten(const nlohmann::json& value, std::vector<nlohmann::json>& numbers) {
  if (!value.is_array()) return numbers.push_back(value);
  for (const auto& each : value) flatten(each, numbers);
}

at::Tensor constant_tensor(const Constant& constant, const Device& device) {
  const at::ScalarType type = torch_type(constant.dtype);
  Shape shape;
  for (const nlohmann::json* value = &constant.value; value->is_array(); value = &value->front()) {
    shape.push_back(static_cast<std::int64_t>(value->size()));
    if (value->empty()) break;
  }
  std::vector<nlohmann::json> numbers;
  flatten(constant.value, numbers);
  if (numbers.size() != count_of(shape)) throw Malformed("a constant is not rectangular");
  at::Tensor made = at::empty(shape, at::TensorOptions().dtype(at::isFloatingType(type) ? at::kDouble : at::kLong));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (made.scalar_type() == at::kDouble) {
      made.mutable_data_ptr<double>()[i] = numbers[i].get<double>();
    } else {
      made.mutable_data_ptr<std::int64_t>()[i] = numbers[i].get<std::int64_t>();
    }
  }
  return made.to(torch_device(device), type);
}

// A loaded package, with what it uses and does not own.
struct Package {
  std::vector<std::shared_ptr<SharedWeights>> files;
  TorchTensors constants;
  PackageFacts facts;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader;  // freed first
  std::vector<TensorSpec> inputs, outputs;
  Device device;
};

void load_code(Package& package, const LoadRequest& request) {
  try {
    const bool single_threaded = true;
    const std::size_t runners = 1;
    const int gpu = request.device.kind == "cpu" ? -1 : request.device.index;
    package.loader = std::make_unique<torch::inductor::AOTIModelPackageLoader>(
        request.path, "model", single_threaded, runners, static_cast<c10::DeviceIndex>(gpu));
    const auto metadata = package.loader->get_metadata();
    const auto facts = metadata.find(kFacts);
    if (facts == metadata.end()) throw Malformed(quoted(kFacts));
    package.facts = PackageFacts::parse(facts->second);
  } catch (const std::exception& error) {
    folder_error("PyTorch cannot load " + request.path + " (" + reason_of(error) + ").", kAgain);
  }
}

void check_instructions(Package& package, const LoadRequest& request) {
  if (request.device.kind != "cpu") return;
  std::string text = package.loader->get_metadata()[kInstructions];
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char each) { return std::tolower(each); });
  std::istringstream words(text);
  const std::vector<std::string> lacking =
      missing_sets({std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()});
  if (lacking.empty()) return;
  unavailable(std::filesystem::path(request.path).filename().string() + " was compiled for a processor with " +
                  joined(lacking, ", ") + ", which this one lacks.",
              kAgain);
}

void load_weights(Package& package, const LoadRequest& request) {
  try {
    const std::filesystem::path folder = std::filesystem::path(request.path).parent_path();
    std::map<std::string, std::shared_ptr<SharedWeights>> files;
    for (const auto& [_, stored] : package.facts.weights) {
      if (!files.count(stored.file)) files[stored.file] = shared_weights(folder / stored.file, request.device);
    }
    std::unordered_map<std::string, at::Tensor> tensors;
    for (const auto& [name, constant] : package.facts.constants) {
      tensors[name] = package.constants[name] = constant_tensor(constant, request.device);
    }
    for (const std::string& name : package.loader->get_constant_fqns()) {
      if (tensors.count(name)) continue;
      const auto stored = package.facts.weights.find(name);
      if (stored == package.facts.weights.end()) throw Malformed(quoted(name));
      tensors[name] = files.at(stored->second.file)->tensor(stored->second, package.facts.channels_last);
    }
    for (auto& [_, file] : files) package.files.push_back(std::move(file));
    const bool use_inactive = false, check_full_update = true, user_managed = true;
    package.loader->load_constants(tensors, use_inactive, check_full_update, user_managed);
  } catch (const std::exception& error) {
    folder_error(std::filesystem::path(request.path).filename().string() + " does not fit its weights (" +
                     reason_of(error) + ").",
                 kAgain);
  }
}

// Calls PyTorch, and turns its errors into ours.
template <class Call>
auto in_library(const Package& package, const Call& call) {
  try {
    const c10::InferenceMode guard;
    const c10::DeviceGuard current(torch_device(package.device));  // packages are loaded and launched there
    return call();
  } catch (const c10::OutOfMemoryError& error) {
    const std::string text = reason_of(error);
    unavailable("There is not enough GPU memory (" + text.substr(0, text.find('\n')) + ").",
                "Close other programs that use it, or build for a smaller batch or size.");
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    folder_error("PyTorch cannot run the package (" + reason_of(error) + ").",
                 "Run `infid-export verify` on the folder, and build it again if it fails.");
  }
}

// On the CPU a tensor of the same memory, on a GPU a copy.
at::Tensor placed(const Package& package, const TensorView& view) {
  return shared(view).to(torch_device(package.device));
}

TorchTensors run_on(const Package& package, const TorchTensors& tensors) {
  std::vector<at::Tensor> inputs;
  for (const std::string& name : package.facts.inputs) inputs.push_back(tensors.at(name));
  const std::vector<at::Tensor> results = package.loader->run(inputs);
  if (results.size() != package.facts.outputs.size()) throw Malformed("it returned another number of outputs");
  TorchTensors found;
  for (std::size_t i = 0; i < results.size(); ++i) found[package.facts.outputs[i]] = results[i];
  return found;
}

Tensor fetched(const Package& package, const std::string& name, const at::Tensor& tensor) {
  const auto is_it = [&](const TensorSpec& spec) { return spec.name == name; };
  const auto spec = std::find_if(package.outputs.begin(), package.outputs.end(), is_it);
  const at::Tensor found = tensor.cpu().contiguous();
  if (found.scalar_type() != torch_type(spec->dtype)) throw Malformed(name + " has another type than in the manifest");
  return {spec->dtype, found.sizes().vec(), found.const_data_ptr()};
}

// A package does not check its inputs; those of the first step were checked.
void require_alike(const at::Tensor& first, const at::Tensor& next) {
  if (first.sizes() == next.sizes() && first.scalar_type() == next.scalar_type()) return;
  input_error("An input of a step differs in shape or type from that of the first step.",
              "Give all steps inputs of one shape and type.");
}

// The outputs of a step are passed to the next one as they are.
class PackageLoop : public Loop {
 public:
  PackageLoop(std::shared_ptr<Package> package, const Views& fixed, const Carry& carry, const Views& initial,
              int steps, Varying varying)
      : package_(std::move(package)), carry_(carry), varying_(std::move(varying)), steps_(steps) {
    if (steps_ > 0) next_ = varying_(0);
    Views first = fixed;
    for (const auto& [name, view] : initial) first[name] = view;
    Views all = first;
    for (const auto& [name, view] : next_) all[name] = view;
    check_inputs(package_->inputs, all);
    in_library(*package_, [&] {
      for (const auto& [name, view] : first) tensors_[name] = placed(*package_, view);
    });
    for (const auto& [source, result] : carry_) outputs_[result] = tensors_.at(source);
  }

  void step() override {
    if (step_ == steps_) throw std::logic_error("the loop has no further step");
    if (step_ > 0) next_ = varying_(step_);
    in_library(*package_, [&] {
      for (const auto& [name, view] : next_) {
        at::Tensor next = placed(*package_, view);
        if (step_ > 0) require_alike(tensors_.at(name), next);
        tensors_[name] = std::move(next);
      }
      outputs_ = run_on(*package_, tensors_);
    });
    for (const auto& [source, result] : carry_) tensors_[source] = outputs_.at(result);
    ++step_;
  }

  Tensor read(const std::string& output) override {
    return in_library(*package_, [&] { return fetched(*package_, output, outputs_.at(output)); });
  }

 private:
  std::shared_ptr<Package> package_;
  Carry carry_;
  Varying varying_;
  Views next_;  // the varying inputs of the next step
  int steps_, step_ = 0;
  TorchTensors tensors_, outputs_;
};

class PackageEngine : public Engine {
 public:
  explicit PackageEngine(std::shared_ptr<Package> package) : package_(std::move(package)) {}

  Tensors run(const Views& inputs) override {
    check_inputs(package_->inputs, inputs);
    return in_library(*package_, [&] {
      TorchTensors tensors;
      for (const auto& [name, view] : inputs) tensors[name] = placed(*package_, view);
      Tensors found;
      for (const auto& [name, tensor] : run_on(*package_, tensors)) {
        found.emplace(name, fetched(*package_, name, tensor));
      }
      return found;
    });
  }

  std::unique_ptr<Loop> loop(const Views& fixed, const Carry& carry, const Views& initial, int steps,
                             const Varying& varying) override {
    return std::make_unique<PackageLoop>(package_, fixed, carry, initial, steps, varying);
  }

 private:
  std::shared_ptr<Package> package_;
};

}  // namespace

std::unique_ptr<Engine> open_package(const LoadRequest& request) {
  auto package = std::make_shared<Package>();
  package->inputs = request.inputs;
  package->outputs = request.outputs;
  package->device = request.device;
  in_library(*package, [&] {
    load_code(*package, request);
    check_instructions(*package, request);
    check_engine_names(request.path, "inputs", request.inputs, package->facts.inputs);
    check_engine_names(request.path, "outputs", request.outputs, package->facts.outputs);
    load_weights(*package, request);
  });
  return std::make_unique<PackageEngine>(std::move(package));
}

std::string torch_library() {
  Dl_info place{};
  const auto known = reinterpret_cast<void*>(&at::get_num_threads);
  const bool found = dladdr(known, &place) != 0;
  return "PyTorch " TORCH_VERSION + (found ? " in " + std::string(place.dli_fname) : "");
}

}  // namespace infid
