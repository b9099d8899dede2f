// See manifest_document.hpp.
#include "folder/manifest_document.hpp"

#include <algorithm>
#include <set>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/paths.hpp"
#include "folder/sha256.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr std::int64_t largest = 1 << 16;  // pixels per side, images per batch, tokens: more than any engine has
constexpr std::int64_t longest_axis = std::int64_t{1} << 40;  // longer than any; products with it cannot overflow
const char* const dtypes = "float16, float32, int8, int32, int64";
const std::pair<const char*, int Manifest::*> sizes[] = {
    {"height", &Manifest::height}, {"width", &Manifest::width},
    {"batch", &Manifest::batch},   {"people", &Manifest::people},
    {"identity_tokens", &Manifest::identity_tokens}, {"vae_scale_factor", &Manifest::vae_scale_factor}};

Kind graph_kind() {
  const Kind integer = Kind::integer(), text = Kind::text();
  const Kind spec = Kind::record(
      {{"name", text}, {"dtype", text}, {"shape", Kind::list_of(Kind::either(integer, Kind::list_of(integer)))}});
  return Kind::record({{"file", text},
                       {"sha256", text},
                       {"key", text},
                       {"key_fields", Kind::mapping_of(Kind::any())},
                       {"weights", Kind::list_of(text)},
                       {"parameters", integer},
                       {"inputs", Kind::list_of(spec)},
                       {"outputs", Kind::list_of(spec)}});
}

Kind engine_kind() {
  const Kind text = Kind::text(), mapping = Kind::mapping_of(Kind::any());
  return Kind::record({{"graph", text},
                       {"backend", text},
                       {"target", text},
                       {"file", text},
                       {"sha256", text},
                       {"size", Kind::integer()},
                       {"key", text},
                       {"key_fields", mapping},
                       {"flags", mapping},
                       {"tool_versions", Kind::mapping_of(text)}});
}

Kind file_kind() {
  return Kind::record({{"sha256", Kind::text()},
                       {"size", Kind::integer()},
                       {"key", Kind::text(), true},
                       {"key_fields", Kind::mapping_of(Kind::any()), true},
                       {"seconds", Kind::number(), true},
                       {"peak_bytes", Kind::integer(), true}});
}

Kind manifest_kind() {
  const Kind integer = Kind::integer(), text = Kind::text(), mapping = Kind::mapping_of(Kind::any());
  return Kind::record({{"infid_export", text},
                       {"model", mapping},
                       {"options", mapping},
                       {"precision", text},
                       {"height", integer},
                       {"width", integer},
                       {"batch", integer},
                       {"people", integer},
                       {"identity_tokens", integer},
                       {"graphs", Kind::mapping_of(graph_kind())},
                       {"engines", Kind::list_of(engine_kind())},
                       {"files", Kind::mapping_of(file_kind())},
                       {"scheduler", mapping},
                       {"defaults", mapping},
                       {"faces", mapping},
                       {"notes", Kind::list_of(text), true},
                       {"vae_scale_factor", integer, true},
                       {"schema_version", integer, true}});
}

const Json& at(const Json& object, const char* name) { return *object.find(name); }  // of a checked document

std::vector<std::string> texts(const Json& list) {
  std::vector<std::string> found;
  for (const Json& each : list.list) found.push_back(each.text);
  return found;
}

Dtype dtype_of(const std::string& name, const Json& dtype) {
  for (const Dtype each : {Dtype::float16, Dtype::float32, Dtype::int8, Dtype::int32, Dtype::int64}) {
    if (dtype.text == dtype_name(each)) return each;
  }
  throw Malformed(name + " has the type " + python_repr(dtype) + ", not one of " + dtypes);
}

Dimension dimension_of(const std::string& name, const Json& extent) {
  std::vector<std::int64_t> ends(3, extent.is(Json::Kind::integer) ? extent.integer() : 0);
  if (extent.is(Json::Kind::list)) {
    ends.clear();
    for (const Json& end : extent.list) ends.push_back(end.integer());
  }
  if (ends.size() != 3 || !std::is_sorted(ends.begin(), ends.end()) || ends.front() < 0) {
    throw Malformed(name + " has the dimension " + python_repr(extent) +
                    ", which is neither a size nor [smallest, usual, largest]");
  }
  for (std::int64_t& end : ends) end = std::min(end, longest_axis);
  return {ends[0], ends[1], ends[2]};
}

std::vector<TensorSpec> specs_of(const std::string& graph, const Json& list) {
  std::vector<TensorSpec> specs;
  for (const Json& each : list.list) {
    TensorSpec spec{at(each, "name").text, Dtype::float32, {}};
    const std::string name = "graphs." + graph + "." + spec.name;
    spec.dtype = dtype_of(name, at(each, "dtype"));
    for (const Json& extent : at(each, "shape").list) spec.shape.push_back(dimension_of(name, extent));
    specs.push_back(std::move(spec));
  }
  return specs;
}

void read_sizes(Manifest& manifest, const Json& content) {
  for (const auto& [name, member] : sizes) {
    const Json* given = content.find(name);
    if (given == nullptr) continue;  // vae_scale_factor has a default
    const std::int64_t value = given->integer();
    if (value < 1 || value > largest) {
      throw Malformed(std::string(name) + " is " + given->text + ", not from 1 to " + std::to_string(largest));
    }
    manifest.*member = static_cast<int>(value);
  }
}

void read_model(Manifest& manifest, const Json& model) {
  const Json *id = model.find("id"), *name = model.find("name");
  const auto is_text = [](const Json* value) { return value != nullptr && value->is(Json::Kind::text); };
  if (!is_text(id) || !is_text(name)) throw Malformed("model has no id or no name");
  manifest.model_id = id->text;
  manifest.model_name = name->text;
}

// What a template depends on besides its settings: weights, precision and noise schedule.
std::string text_model_id(const Json& content) {
  Json files, schedule, key, precision = at(content, "precision");
  files.kind = key.kind = Json::Kind::object;
  const Json* weights = at(content, "model").find("files");
  for (const char* part : {"text_encoder", "text_encoder_2", "unet"}) {
    const Json* found = weights == nullptr ? nullptr : weights->find(part);
    files.object.push_back({part, found == nullptr ? Json() : *found});
  }
  schedule = at(content, "scheduler");
  const auto is_derived = [](const JsonEntry& each) { return each.name == "table" || each.name == "initial_scale"; };
  auto& entries = schedule.object;
  entries.erase(std::remove_if(entries.begin(), entries.end(), is_derived), entries.end());
  key.object = {{"files", files}, {"precision", precision}, {"scheduler", schedule}};
  return sha256_of(canonical_json(key));
}

void read_records(Manifest& manifest, const Json& content) {
  for (const auto& [name, graph] : at(content, "graphs").object) {
    manifest.graphs[name] = {at(graph, "file").text, texts(at(graph, "weights")), specs_of(name, at(graph, "inputs")),
                             specs_of(name, at(graph, "outputs"))};
  }
  for (const Json& engine : at(content, "engines").list) {
    const Json* strip = at(engine, "flags").find("strip");
    manifest.engines.push_back({at(engine, "graph").text, at(engine, "backend").text, at(engine, "target").text,
                                at(engine, "file").text, strip != nullptr && strip->is_true()});
  }
  for (const auto& [name, file] : at(content, "files").object) {
    manifest.files[name] = {at(file, "sha256").text, static_cast<std::uint64_t>(at(file, "size").integer())};
  }
}

void check_names(const Manifest& manifest, const Json& content) {
  std::vector<std::string> names;
  for (const auto& [name, _] : at(content, "files").object) names.push_back(name);
  const auto& graphs = at(content, "graphs").object;
  for (const auto& [_, graph] : graphs) names.push_back(at(graph, "file").text);
  for (const auto& [_, graph] : graphs) {
    for (const Json& weights : at(graph, "weights").list) names.push_back(weights.text);
  }
  for (const EngineRecord& engine : manifest.engines) names.push_back(engine.file);
  for (const std::string& name : names) {
    if (!is_inside(name)) throw Malformed(python_repr(name) + " is not the path of a file within the folder");
    if (manifest.files.count(name) == 0) throw Malformed("files lacks " + python_repr(name));
  }
}

FaceModels face_models(const Json& faces) {
  const auto text = [&](const char* name) {
    const Json* found = faces.find(name);
    return found != nullptr && found->is(Json::Kind::text) ? found->text : "";
  };
  const auto path = [&](const char* name) {
    std::string found = text(name);
    return found.empty() ? std::nullopt : std::optional<std::string>(std::move(found));
  };
  return {text("detector"), path("detector_path"), path("recognizer_path"), text("crop"), text("embedding")};
}

// The named entries of an object, in this order.
Json chosen(std::initializer_list<Field> fields, const Json& object) {
  Json found;
  found.kind = Json::Kind::object;
  for (const Field& field : fields) {
    const Json* value = object.find(field.name);
    if (value != nullptr) found.object.push_back({field.name, *value});
  }
  return found;
}

double number_of(const Json& value) {
  return value.is(Json::Kind::integer) ? static_cast<double>(value.integer()) : value.number;
}

std::optional<std::string> optional_text(const Json& value) {
  return value.is(Json::Kind::text) ? std::optional<std::string>(value.text) : std::nullopt;
}

Defaults defaults_of(const Json& object) {
  const Kind optional = Kind::either(Kind::text(), Kind::null());
  const auto fields = {Field{"steps", Kind::integer()},
                       Field{"guidance", Kind::number()},
                       Field{"style_strength", Kind::number()},
                       Field{"identity_strength", Kind::number()},
                       Field{"negative_prompt", optional},
                       Field{"sampler", Kind::text()},
                       Field{"spacing", optional}};
  const Json values = chosen(fields, object);
  Kind::record(fields).check(values, "defaults");
  return {at(values, "steps").integer(),
          number_of(at(values, "guidance")),
          number_of(at(values, "style_strength")),
          number_of(at(values, "identity_strength")),
          optional_text(at(values, "negative_prompt")),
          at(values, "sampler").text,
          optional_text(at(values, "spacing"))};
}

[[noreturn]] void reject_schedule(const char* name, const Json& value, const std::string& supported) {
  input_error("The noise schedule has " + std::string(name) + " = " + python_repr(value) + "; supported: " + supported +
                  ".",
              "Use a base model with SDXL's schedule.");
}

// Entries that Python leaves to the samplers; those check the values, and this the types.
void read_prediction(ScheduleConfig& schedule, const Json& object) {
  const auto read = [&](const char* name, std::string& into, const char* supported) {
    const Json* found = object.find(name);
    if (found == nullptr) return;
    if (!found->is(Json::Kind::text)) reject_schedule(name, *found, supported);
    into = found->text;
  };
  read("beta_schedule", schedule.beta_schedule, "scaled_linear");
  const Json* clip = object.find("clip_sample");
  if (clip != nullptr && (clip->is_true() || clip->kind == Json::Kind::null || clip->kind > Json::Kind::number)) {
    reject_schedule("clip_sample", *clip, "False");
  }
  read("timestep_spacing", schedule.timestep_spacing, "leading, trailing, linspace");
  read("prediction_type", schedule.prediction_type, "epsilon, v_prediction, sample");
  const auto is_set = [&](const char* name) {
    const Json* found = object.find(name);
    return found != nullptr && found->is_true();
  };
  schedule.set_alpha_to_one = is_set("set_alpha_to_one");
  schedule.rescale_betas_zero_snr = is_set("rescale_betas_zero_snr");
  const Json* distilled = object.find("original_inference_steps");
  if (distilled == nullptr) return;
  if (!distilled->is(Json::Kind::integer)) {
    input_error("The noise schedule's original_inference_steps must be a whole number, not " +
                    python_repr(*distilled) + ".",
                "Use a base model with SDXL's schedule.");
  }
  schedule.original_inference_steps = distilled->integer();
}

ScheduleConfig schedule_of(const Json& object) {
  const auto fields = {Field{"num_train_timesteps", Kind::integer()}, Field{"beta_start", Kind::number()},
                       Field{"beta_end", Kind::number()}, Field{"steps_offset", Kind::integer()}};
  const Json values = chosen(fields, object);
  Kind::record(fields).check(values, "scheduler");
  const Json& timesteps = at(values, "num_train_timesteps");
  if (timesteps.integer() < 2 || timesteps.integer() > 100'000) {
    throw Malformed("scheduler.num_train_timesteps is " + timesteps.text);
  }
  ScheduleConfig schedule;
  schedule.num_train_timesteps = static_cast<int>(timesteps.integer());
  schedule.beta_start = number_of(at(values, "beta_start"));
  schedule.beta_end = number_of(at(values, "beta_end"));
  schedule.steps_offset = at(values, "steps_offset").integer();
  const bool rises = 0 < schedule.beta_start && schedule.beta_start <= schedule.beta_end && schedule.beta_end < 1;
  if (!rises || schedule.steps_offset < 0 || schedule.steps_offset > 1) {
    throw Malformed("scheduler has impossible betas, or a steps_offset other than 0 or 1");
  }
  return schedule;
}

}  // namespace

Manifest manifest_of(const Json& content) {
  static const Kind kind = manifest_kind();
  kind.check(content, "it");
  Manifest manifest;
  read_sizes(manifest, content);
  read_model(manifest, at(content, "model"));
  read_records(manifest, content);
  check_names(manifest, content);
  manifest.precision = at(content, "precision").text;
  manifest.text_model_id = text_model_id(content);
  manifest.faces = face_models(at(content, "faces"));
  return manifest;
}

void read_settings(Manifest& manifest, const Json& content) {
  manifest.defaults = defaults_of(at(content, "defaults"));
  manifest.scheduler = schedule_of(at(content, "scheduler"));
  read_prediction(manifest.scheduler, at(content, "scheduler"));
  const Defaults& usual = manifest.defaults;
  sampler_table(manifest.scheduler, usual.steps, usual.sampler, usual.spacing);
  const auto step = manifest.graphs.find(manifest.step());
  if (step == manifest.graphs.end()) return;
  const auto& inputs = step->second.inputs;
  const auto is_latents = [](const TensorSpec& spec) { return spec.name == "identity_latents"; };
  const auto latents = std::find_if(inputs.begin(), inputs.end(), is_latents);
  if (std::count_if(inputs.begin(), inputs.end(), is_latents) != 1 || latents->shape.size() != 4) {
    throw Malformed("graphs." + step->first + " has no four-dimensional input identity_latents");
  }
}

}  // namespace infid
