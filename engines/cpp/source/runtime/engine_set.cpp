#include "runtime/engine_set.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace infid {
namespace {

constexpr char kParityBackend[] = "onnxruntime";

std::string stripped_sentence(const std::string& file) {
  return file + " holds no weights (--strip): it needs TensorRT's refitter, which this project does not run.";
}

const EngineRecord* stripped_engine(const Manifest& manifest, const std::string& backend) {
  const auto found = std::find_if(manifest.engines.begin(), manifest.engines.end(), [&](const EngineRecord& each) {
    return each.backend == backend && each.strip;
  });
  return found == manifest.engines.end() ? nullptr : &*found;
}

// Whether a backend runs the folder's engines here; else the reason.
std::string reason_against(Backend& backend, const Manifest& manifest, const Options& options) {
  if (manifest.targets(backend.name()).empty()) return "the folder has no engines for it";
  if (const auto* stripped = stripped_engine(manifest, backend.name())) return stripped_sentence(stripped->file);
  try {
    const auto asked = requested_device(options.device);
    backend.library();
    backend.check_device(asked ? asked->index : 0);
    backend.choose_target(options.device, manifest.targets(backend.name()));
  } catch (const Error& error) {
    const bool expected = error.kind() == ErrorKind::backend_unavailable || error.kind() == ErrorKind::input;
    if (!expected || backend.name() == kParityBackend) throw;  // a fault of the installation, not of the folder
    return error.problem();
  }
  return "";
}

Choice fastest(const Manifest& manifest, const Options& options) {
  requested_device(options.device);
  std::string reasons;
  for (auto& backend : open_backends(options)) {
    const std::string reason = reason_against(*backend, manifest, options);
    if (!reason.empty()) {
      reasons += (reasons.empty() ? "" : "; ") + backend->name() + " not used: " + reason;
      continue;
    }
    std::string sentence = backend->name() + ": the folder has engines for it and this machine runs them" +
                           (reasons.empty() ? "" : "; " + reasons);
    return {std::move(backend), std::nullopt, {}, std::move(sentence)};
  }
  folder_error("The folder has no engine that runs here: " + reasons + ".",
               std::string("infid-export build --backend ") + kParityBackend);
}

Choice requested(const Options& options) {
  auto backends = open_backends(options);
  for (auto& backend : backends) {
    if (backend->name() != options.backend) continue;
    backend->library();
    return {std::move(backend), std::nullopt, {}, options.backend + ": requested"};
  }
  input_error("There is no backend named '" + options.backend + "'.",
              "Choose from onnxruntime, tensorrt, tensorrt_rtx, aotinductor.");
}

}  // namespace

Choice choose_backend(const Manifest& manifest, const Options& options) {
  Choice choice = options.backend == "auto" ? fastest(manifest, options) : requested(options);
  const std::string name = choice.backend->name();
  const auto targets = manifest.targets(name);
  if (targets.empty()) {
    folder_error(manifest.folder + " has no " + name + " engines.",
                 "infid-export build --backend " + name + " -o " + manifest.folder);
  }
  if (options.threads != 0 && !choice.backend->takes_threads()) {
    input_error(name + " does not take a number of threads.", "Leave it out.");
  }
  std::tie(choice.target, choice.device) = choice.backend->choose_target(options.device, targets);
  const std::string place = choice.device.text();
  const bool both = choice.target && choice.device.index != 0;
  choice.sentence += " (on " + (both ? place + ", " + *choice.target : choice.target.value_or(place)) + ", " +
                     choice.backend->library() + ")";
  return choice;
}

const EngineRecord& EngineSet::stored(const std::string& graph) const {
  const std::string name = choice_.backend->name();
  const EngineRecord* found = manifest_.engine(graph, name, choice_.target);
  if (found == nullptr) {
    folder_error(manifest_.folder + " has no " + name + " engine of " + graph + ".",
                 "infid-export build --backend " + name + " -o " + manifest_.folder);
  }
  if (found->strip) folder_error(stripped_sentence(found->file), "Build without --strip.");
  return *found;
}

std::vector<std::string> EngineSet::files(const std::string& graph) const {
  std::vector<std::string> names = {stored(graph).file};
  if (choice_.backend->reads_weights()) {
    const auto& weights = manifest_.graph(graph).weights;
    names.insert(names.end(), weights.begin(), weights.end());
  }
  return names;
}

std::unique_ptr<Engine> EngineSet::loaded(const std::string& graph) const {
  const GraphRecord& record = manifest_.graph(graph);
  LoadRequest request;
  request.graph = graph;
  request.folder = manifest_.folder;
  for (const std::string& name : files(graph)) request.weights.push_back(manifest_.folder + "/" + name);
  request.path = request.weights.front();
  request.weights.erase(request.weights.begin());
  request.inputs = record.inputs;
  request.outputs = record.outputs;
  request.device = choice_.device;
  request.threads = threads_;
  return choice_.backend->load(request);
}

Engine& EngineSet::operator[](const std::string& graph) {
  auto& engine = engines_[graph];
  if (!engine) {
    manifest_.graph(graph);
    for (const std::string& name : files(graph)) verify(name);
    engine = loaded(graph);
  }
  return *engine;
}

void EngineSet::prepare(const std::vector<std::string>& graphs, const std::function<void()>& go_on) {
  std::vector<std::string> missing, unread;
  for (const std::string& graph : graphs) {
    if (engines_[graph]) continue;
    missing.push_back(graph);
    manifest_.graph(graph);
    for (const std::string& name : files(graph)) {
      const bool known = std::find(unread.begin(), unread.end(), name) != unread.end();
      if (!known && verified_.count(name) == 0) unread.push_back(name);
    }
  }
  in_parallel(unread.size(), [&](std::size_t i) {
    go_on();
    verify_file(manifest_, unread[i]);
  });
  verified_.insert(unread.begin(), unread.end());
  const auto load = [&](std::size_t i) {
    go_on();
    engines_.at(missing[i]) = loaded(missing[i]);  // the entries are there: the map does not change
  };
  if (choice_.backend->loads_in_parallel()) {
    in_parallel(missing.size(), load);
  } else {
    for (std::size_t i = 0; i < missing.size(); ++i) load(i);
  }
}

std::string EngineSet::verify(const std::string& name) {
  if (verified_.count(name) != 0) return manifest_.folder + "/" + name;
  std::string path = verify_file(manifest_, name);
  verified_.insert(name);
  return path;
}

void EngineSet::close() {
  engines_.clear();
  verified_.clear();
}

}  // namespace infid
