// Runs an AOTInductor package whose weights are stored outside it, compares its outputs and times it. No Python.
//
//   run_package PACKAGE WEIGHTS INPUTS OUTPUTS DEVICE SAMPLES
//
// WEIGHTS, INPUTS and OUTPUTS name pairs of files, as aot.py writes them: `<name>.index` has a line for each tensor
// (name, type, offset in bytes, number of axes, sizes, strides), `<name>.bin` holds the memory of all of them. The
// program prints one JSON object; if something fails, the exit code is 1 and stderr has a message.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/cuda.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

double milliseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

at::ScalarType type_of(const std::string& name) {
  static const std::unordered_map<std::string, at::ScalarType> known = {
      {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}, {"float32", at::kFloat}, {"float64", at::kDouble},
      {"int32", at::kInt},    {"int64", at::kLong},        {"bool", at::kBool},
  };
  return known.at(name);
}

// The mapping stays until the process ends: on a CPU the tensors use the file's pages directly.
char* mapped(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) throw std::runtime_error("cannot open " + path);
  void* memory = mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) throw std::runtime_error("cannot map " + path);
  return static_cast<char*>(memory);
}

Tensors read(const std::string& name, const at::Device& device) {
  char* memory = mapped(name + ".bin");
  std::ifstream index(name + ".index");
  Tensors found;
  std::string key, type;
  size_t offset, axes;
  while (index >> key >> type >> offset >> axes) {
    std::vector<int64_t> sizes(axes), strides(axes);
    for (auto& size : sizes) index >> size;
    for (auto& stride : strides) index >> stride;
    const auto options = at::TensorOptions().dtype(type_of(type));
    found.emplace_back(key, at::from_blob(memory + offset, sizes, strides, options).to(device));
  }
  if (!index.eof()) throw std::runtime_error("cannot read " + name + ".index");
  return found;
}

void wait_for(const at::Device& device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

double relative_rms(const at::Tensor& found, const at::Tensor& expected) {
  const auto wanted = expected.to(at::kDouble);
  return ((found.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

void run(char** arguments) {
  const at::Device device(arguments[5]);
  const int samples = std::stoi(arguments[6]);
  const c10::InferenceMode inference;
  auto started = Clock::now();
  std::unordered_map<std::string, at::Tensor> weights;
  for (auto& [name, tensor] : read(arguments[2], device)) weights.emplace(name, tensor);
  std::vector<at::Tensor> inputs;
  for (auto& [name, tensor] : read(arguments[3], device)) inputs.push_back(tensor);
  const auto expected = read(arguments[4], device);
  wait_for(device);
  const double read_ms = milliseconds(started);

  started = Clock::now();
  torch::inductor::AOTIModelPackageLoader package(arguments[1], "model", /*run_single_threaded=*/true);
  std::unordered_map<std::string, at::Tensor> constants;
  for (const auto& name : package.get_constant_fqns()) constants.emplace(name, weights.at(name));
  package.load_constants(constants, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  const double load_ms = milliseconds(started);

  started = Clock::now();
  auto outputs = package.run(inputs);
  wait_for(device);
  const double first_ms = milliseconds(started);
  if (outputs.size() != expected.size()) throw std::runtime_error("the package has a different number of outputs");

  std::printf("{\"constants\": %zu, \"read_ms\": %.3f, \"load_ms\": %.3f, \"first_ms\": %.3f, \"relative_rms\": [",
              constants.size(), read_ms, load_ms, first_ms);
  for (size_t i = 0; i < outputs.size(); i++)
    std::printf("%s\"%.9g\"", i ? ", " : "", relative_rms(outputs[i], expected[i].second));
  std::printf("], \"milliseconds\": [");
  for (int i = 0; i < samples; i++) {
    started = Clock::now();
    outputs = package.run(inputs);
    wait_for(device);
    std::printf("%s%.6f", i ? ", " : "", milliseconds(started));
  }
  std::printf("]}\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 7) {
    std::fprintf(stderr, "usage: %s PACKAGE WEIGHTS INPUTS OUTPUTS DEVICE SAMPLES\n", arguments[0]);
    return 1;
  }
  try {
    run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
