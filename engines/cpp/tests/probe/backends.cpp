// Targets, devices, inputs and packages, see tests/cpp/test_backends.py. Shapes and outputs are JSON.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "backends/engine.hpp"
#include "backends/processor.hpp"
#include "backends/registry.hpp"
#include "backends/targets.hpp"
#include "probe.hpp"

namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

const std::map<std::string, infid::Dtype> kTypes = {
    {"float16", infid::Dtype::float16}, {"float32", infid::Dtype::float32}, {"int8", infid::Dtype::int8},
    {"int32", infid::Dtype::int32},     {"int64", infid::Dtype::int64}};

std::unique_ptr<infid::Backend> backend(const std::string& name) {
  for (auto& each : infid::open_backends({})) {
    if (each->name() == name) return std::move(each);
  }
  infid::input_error("There is no backend named '" + name + "'.", "");
}

std::vector<infid::TensorSpec> specs_of(const json& document) {
  std::vector<infid::TensorSpec> specs;
  for (const json& each : document) {
    infid::TensorSpec spec{each.at("name"), kTypes.at(each.at("dtype")), {}};
    for (const json& extent : each.at("shape")) {
      const auto at = [&](std::size_t i) { return (extent.is_array() ? extent.at(i) : extent).get<std::int64_t>(); };
      spec.shape.push_back({at(0), at(1), at(2)});
    }
    specs.push_back(spec);
  }
  return specs;
}

void say(const std::string& text) { std::printf("%s\n", text.c_str()); }

// BACKEND DEVICE TARGETS…: the target and the device.
void choose(const Words& words) {
  const auto [target, device] = backend(words.at(0))->choose_target(words.at(1), Words(words.begin() + 2, words.end()));
  say(target.value_or("None") + " " + device.text());
}

// DEVICE TARGETS…: likewise for a GPU backend, whether or not the library has one.
void choose_gpu(const Words& words) {
  const auto [target, device] =
      infid::choose_gpu_target("tensorrt", words.at(0), Words(words.begin() + 1, words.end()));
  say(target.value_or("None") + " " + device.text());
}

void device(const Words& words) {
  const auto found = infid::requested_device(words.at(0));
  say(found ? found->text() : "None");
}

// SPECS GIVEN: as lists of objects with name, dtype and shape.
void inputs(const Words& words) {
  infid::Views views;
  for (const json& each : json::parse(words.at(1))) {
    views[each.at("name")] = {kTypes.at(each.at("dtype")), each.at("shape").get<infid::Shape>(), nullptr};
  }
  infid::check_inputs(specs_of(json::parse(words.at(0))), views);
}

// The backends in the order of `auto`, with their ranks.
void order(const Words&) {
  for (const auto& each : infid::open_backends({})) say(each->name() + " " + std::to_string(each->rank()));
}

void library(const Words& words) { say(backend(words.at(0))->library()); }

void processor(const Words& words) {
  for (const std::string& name : infid::instruction_sets(words.at(0))) say(name);
  say(infid::cpu_target());
}

infid::Tensor read_tensor(const infid::TensorSpec& spec, const std::string& folder) {
  infid::Shape shape;
  for (const infid::Dimension& each : spec.shape) shape.push_back(each.usual);
  infid::Tensor tensor(spec.dtype, shape);
  std::ifstream file(folder + "/" + spec.name, std::ios::binary);
  file.read(static_cast<char*>(tensor.data()), static_cast<std::streamsize>(tensor.bytes()));
  return tensor;
}

void write_tensor(const infid::Tensor& tensor, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.data()), static_cast<std::streamsize>(tensor.bytes()));
}

// Three steps in which each input `x` with an output `next_x` is carried, one of the others varies, and the rest is
// fixed. The carried outputs are written as `looped_x`.
void loop_through(infid::Engine& engine, const infid::LoadRequest& request, infid::Views views,
                  const std::string& folder) {
  infid::Carry carry;
  infid::Views initial;
  for (const infid::TensorSpec& spec : request.outputs) {
    if (spec.name.rfind("next_", 0) != 0) continue;
    const std::string source = spec.name.substr(5);
    carry[source] = spec.name;
    initial[source] = views.at(source);
    views.erase(source);
  }
  if (carry.empty()) return;
  infid::Views varying;
  varying.insert(views.extract(std::prev(views.end())));
  const auto loop = engine.loop(views, carry, initial, 3, [&](int) { return varying; });
  for (int step = 0; step < 3; ++step) loop->step();
  for (const auto& [source, result] : carry) write_tensor(loop->read(result), folder + "/looped_" + source);
}

// BACKEND ENGINE INPUTS OUTPUTS FOLDER: runs an engine on the files of a folder, one per input, and writes its outputs
// there; then a loop, if it has outputs for one.
void run(const Words& words) {
  infid::LoadRequest request;
  request.path = words.at(1);
  request.inputs = specs_of(json::parse(words.at(2)));
  request.outputs = specs_of(json::parse(words.at(3)));
  const std::string folder = words.at(4);
  const auto engine = backend(words.at(0))->load(request);
  infid::Tensors tensors;
  infid::Views views;
  for (const infid::TensorSpec& spec : request.inputs) {
    views[spec.name] = tensors.emplace(spec.name, read_tensor(spec, folder)).first->second.view();
  }
  for (const auto& [name, tensor] : engine->run(views)) write_tensor(tensor, folder + "/" + name);
  loop_through(*engine, request, views, folder);
}

const Probe probes[] = {{"choose", choose},   {"choose_gpu", choose_gpu}, {"device", device}, {"inputs", inputs},
                        {"backends", order},  {"library", library},       {"processor", processor},
                        {"run_engine", run}};

}  // namespace
