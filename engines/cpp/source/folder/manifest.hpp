// The manifest of an engine folder, equal to `infid_engines.manifest` and `infid_export.runtime.requirements`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sampling/samplers.hpp"
#include "tensor.hpp"

namespace infid {

struct GraphRecord {
  std::string file;
  std::vector<std::string> weights;
  std::vector<TensorSpec> inputs, outputs;

  const TensorSpec* input(const std::string& name) const;   // null if there is none
};

struct EngineRecord {
  std::string graph, backend, target, file;
  bool strip = false;  // it has no weights
};

struct FileRecord {
  std::string sha256;
  std::uint64_t size = 0;
};

struct Defaults {
  std::int64_t steps = 0;
  double guidance = 0, style_strength = 0, identity_strength = 0;
  std::optional<std::string> negative_prompt;
  std::string sampler;
  std::optional<std::string> spacing;
};

struct FaceModels {
  std::string detector;                                 // drawn, centerface, insightface
  std::optional<std::string> detector_path, recognizer_path;  // within the folder
  std::string crop, embedding;  // what the identity weights read of a photo; empty in older folders
};

struct Manifest {
  std::string folder;
  std::string model_id, model_name;
  std::string text_model_id;  // `infid_export.runtime.template.text_model_id`
  std::string precision;
  int height = 0, width = 0, batch = 0, people = 0, identity_tokens = 0, vae_scale_factor = 8;
  std::map<std::string, GraphRecord> graphs;
  std::vector<EngineRecord> engines;
  std::map<std::string, FileRecord> files;
  ScheduleConfig scheduler;
  Defaults defaults;
  FaceModels faces;

  // Reads and checks `folder`/manifest.json: its seal, schema version, every entry's type, and that paths stay inside.
  // Throws engine_folder, with Python's sentences.
  static Manifest load(const std::string& folder);

  // Throws engine_folder if the folder was built without the graph.
  const GraphRecord& graph(const std::string& name) const;
  // Whether the steps have the identity stream alone.
  bool one_stream() const;
  // The graph of a step from a prompt.
  std::string step() const;
  // The engine of a graph; null if there is none. `target` narrows the choice.
  const EngineRecord* engine(const std::string& graph, const std::string& backend,
                             const std::optional<std::string>& target) const;
  std::vector<std::string> targets(const std::string& backend) const;  // sorted, each once
};

// Compares a file of the folder with its size and sha256 in the manifest, and returns its path. Throws engine_folder.
std::string verify_file(const Manifest& manifest, const std::string& name);

}  // namespace infid
