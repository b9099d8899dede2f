// Engine folders, people and templates, for tests/cpp/test_{json,manifest,safetensors,person,template_file}.py.
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/manifest.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"
#include "folder/sha256.hpp"
#include "half.hpp"
#include "probe.hpp"
#include "runtime/person.hpp"
#include "runtime/template.hpp"

using nlohmann::json;
using Words = std::vector<std::string>;

namespace {

void print(const json& value) { std::printf("%s\n", value.dump().c_str()); }
void print(const std::string& text) { std::printf("%s\n", text.c_str()); }

template <class T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json();
}

json specs_of(const std::vector<infid::TensorSpec>& specs) {
  json found = json::array();
  for (const infid::TensorSpec& spec : specs) {
    json shape = json::array();
    for (const infid::Dimension& each : spec.shape) {
      shape.push_back(each.fixed() ? json(each.most) : json{each.least, each.usual, each.most});
    }
    found.push_back({spec.name, infid::dtype_name(spec.dtype), shape});
  }
  return found;
}

json facts_of(const infid::Manifest& manifest) {
  json graphs, engines = json::array(), files;
  for (const auto& [name, graph] : manifest.graphs) {
    graphs[name] = {graph.file, graph.weights, specs_of(graph.inputs), specs_of(graph.outputs)};
  }
  for (const auto& each : manifest.engines) {
    engines.push_back({each.graph, each.backend, each.target, each.file, each.strip});
  }
  for (const auto& [name, file] : manifest.files) files[name] = {file.sha256, file.size};
  const infid::Defaults& usual = manifest.defaults;
  const infid::ScheduleConfig& schedule = manifest.scheduler;
  return {{"model", {manifest.model_id, manifest.model_name, manifest.text_model_id, manifest.precision}},
          {"sizes",
           {manifest.height, manifest.width, manifest.batch, manifest.people, manifest.identity_tokens,
            manifest.vae_scale_factor}},
          {"graphs", graphs},
          {"engines", engines},
          {"files", files},
          {"defaults",
           {usual.steps, usual.guidance, usual.style_strength, usual.identity_strength,
            or_null(usual.negative_prompt), usual.sampler, or_null(usual.spacing), or_null(usual.preset)}},
          {"scheduler",
           {schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end, schedule.beta_schedule,
            schedule.clip_sample, schedule.steps_offset, schedule.timestep_spacing, schedule.set_alpha_to_one,
            schedule.prediction_type, schedule.rescale_betas_zero_snr, schedule.original_inference_steps,
            schedule.distilled_timesteps}},
          {"faces",
           {manifest.faces.detector, or_null(manifest.faces.detector_path), or_null(manifest.faces.recognizer_path)}}};
}

json layouts_of(const infid::Views& tensors) {
  json found = json::object();
  for (const auto& [name, view] : tensors) found[name] = {infid::dtype_name(view.dtype), view.shape};
  return found;
}

std::vector<infid::Person> people_of(const Words& words, std::size_t first) {
  std::vector<infid::Person> people;
  for (std::size_t i = first; i < words.size(); ++i) people.push_back(infid::Person::load(words[i]));
  return people;
}

// Each file's canonical text, or why it is no JSON.
const Probe canonical("canonical_json", [](const Words& files) {
  for (const std::string& file : files) {
    try {
      print("= " + infid::canonical_json(infid::read_json(file)));
    } catch (const infid::Malformed& problem) {
      print(std::string("! ") + problem.what());
    }
  }
});

const Probe inside("inside", [](const Words& names) {
  for (const std::string& name : names) {
    print(infid::plain_path(name) + (infid::is_inside(name) ? " is inside" : " is not inside"));
  }
});

const Probe sha256("sha256", [](const Words& files) {
  for (const std::string& file : files) print(infid::sha256_of_file(file));
});

const Probe manifest("manifest", [](const Words& words) { print(facts_of(infid::Manifest::load(words[0]))); });

// For each folder what is wrong, as a list of the problem and the fix, or null.
const Probe manifests("manifests", [](const Words& folders) {
  for (const std::string& folder : folders) {
    try {
      infid::Manifest::load(folder);
      print(json());
    } catch (const infid::Error& error) {
      print(json{error.problem(), error.fix()});
    }
  }
});

const Probe verify("verify", [](const Words& words) {
  print(infid::verify_file(infid::Manifest::load(words[0]), words[1]));
});

const Probe graph("graph", [](const Words& words) { print(infid::Manifest::load(words[0]).graph(words[1]).file); });

// FOLDER GRAPH BACKEND [TARGET]
const Probe engine("engine", [](const Words& words) {
  const infid::Manifest found = infid::Manifest::load(words[0]);
  const auto target = words.size() > 3 ? std::optional(words[3]) : std::nullopt;
  const infid::EngineRecord* record = found.engine(words[1], words[2], target);
  print({{"file", record == nullptr ? json() : json(record->file)}, {"targets", found.targets(words[2])}});
});

// Each file's content, or why it is not intact.
const Probe safetensors("safetensors", [](const Words& files) {
  for (const std::string& file : files) {
    try {
      const infid::MappedFile content(file);
      const infid::Safetensors found = infid::parse_safetensors(content.data(), content.size());
      print(json{found.metadata, layouts_of(found.tensors), infid::array_seal(found)});
    } catch (const infid::Malformed& problem) {
      print(std::string("! ") + problem.what());
    }
  }
});

// FILE [COPY]
const Probe person("person", [](const Words& words) {
  const infid::Person found = infid::Person::load(words[0]);
  print(json{found.name(), found.model()});
  if (words.size() > 1) found.save(words[1]);
});

// OUT NAME FILE…
const Probe mix("mix", [](const Words& words) { infid::averaged(people_of(words, 2), words[1]).save(words[0]); });

// FOLDER FILE OUT
const Probe fit("fit", [](const Words& words) {
  infid::fitted_person(infid::Manifest::load(words[0]), infid::Person::load(words[1])).save(words[2]);
});

// The file's float32 rounded to float16, and back.
const Probe rounded("rounded", [](const Words& words) {
  const std::string content = infid::read_file(words[0], std::size_t{1} << 28);
  std::string halves, floats;
  for (std::size_t i = 0; i + 4 <= content.size(); i += 4) {
    float value = 0;
    std::memcpy(&value, content.data() + i, 4);
    const std::uint16_t half = infid::half_of_float(value);
    const float back = infid::float_of_half(half);
    halves.append(reinterpret_cast<const char*>(&half), 2);
    floats.append(reinterpret_cast<const char*>(&back), 4);
  }
  infid::write_file(words[1], halves + floats);
});

// FILE [FOLDER] [unchecked]
const Probe template_file("template", [](const Words& words) {
  const infid::Template found = infid::Template::load(words[0], words.back() != "unchecked");
  const auto& data = found.data();
  if (words.size() > 1 && words[1] != "unchecked") infid::check_template(infid::Manifest::load(words[1]), data);
  print({{"tensors", layouts_of(data.tensors)},
         {"model", data.model},
         {"settings",
          {found.prompt(), or_null(data.negative_prompt), found.seed(), data.height, data.width, found.steps(),
           data.guidance, data.sampler, or_null(data.spacing)}}});
});

// FOLDER [HEIGHT WIDTH]
const Probe image_size("image_size", [](const Words& words) {
  std::optional<int> height, width;
  if (words.size() > 1) height = std::atoi(words[1].c_str());
  if (words.size() > 2) width = std::atoi(words[2].c_str());
  print(json(infid::image_size(infid::Manifest::load(words[0]), height, width)));
});

}  // namespace
