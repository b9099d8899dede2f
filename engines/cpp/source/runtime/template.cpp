// See template.hpp.
#include "runtime/template.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>
#include <system_error>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/paths.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

using detail::TemplateData;

const char* const again = "Make the template again with `infid-export template make`.";
const char* const with_these = "Make it again with these engines.";
const char *const settings_key = "infid_template", *const model_key = "infid_model";
const std::string features = "text_features.", scales = "text_scales.";  // begin the names of the features' inputs
const char* const conditioning[] = {"prompt_embeds", "pooled_prompt_embeds", "time_ids"};

bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

bool is_template(const Safetensors& file) {
  const auto has = [&](const char* name) { return file.tensors.count(name) > 0; };
  const auto needed = {"prompt_embeds", "pooled_prompt_embeds", "time_ids", "rows", "initial_scale", "latents"};
  return file.metadata.count(settings_key) > 0 && std::all_of(needed.begin(), needed.end(), has);
}

// Throws Malformed for tensors that templates do not have, or that could not be read in place.
void check_tensors(const Views& tensors) {
  for (const auto& [name, view] : tensors) {
    if (view.dtype == Dtype::int32 || view.dtype == Dtype::int64) {
      throw Malformed(view.dtype == Dtype::int32 ? "'I32'" : "'I64'");
    }
    if (reinterpret_cast<std::uintptr_t>(view.data) % dtype_size(view.dtype) != 0) {
      throw Malformed("tensor `" + name + "` is not aligned to its type");
    }
  }
}

template <class Number>
Number natural(const Json& settings, const char* name) {
  const Json& value = *settings.find(name);
  Number found = 0;
  const auto problem = std::from_chars(value.text.data(), value.text.data() + value.text.size(), found).ec;
  if (problem != std::errc() || value.text[0] == '-') {
    throw Malformed(std::string(settings_key) + "." + name + " is " + value.text + ", which is out of range");
  }
  return found;
}

std::optional<std::string> optional_text(const Json& value) {
  return value.is(Json::Kind::text) ? std::optional<std::string>(value.text) : std::nullopt;
}

void read_settings(TemplateData& data, const std::string& text) {
  const Kind optional = Kind::either(Kind::text(), Kind::null());
  static const Kind kind = Kind::record({{"prompt", Kind::text()},
                                         {"negative_prompt", optional},
                                         {"seed", Kind::integer()},
                                         {"height", Kind::integer()},
                                         {"width", Kind::integer()},
                                         {"steps", Kind::integer()},
                                         {"guidance", Kind::number()},
                                         {"sampler", Kind::text()},
                                         {"spacing", optional}});
  const Json settings = parse_json(text);
  kind.check(settings, settings_key);
  data.prompt = settings.find("prompt")->text;
  data.negative_prompt = optional_text(*settings.find("negative_prompt"));
  data.seed = natural<std::uint64_t>(settings, "seed");
  data.height = natural<int>(settings, "height");
  data.width = natural<int>(settings, "width");
  data.steps = natural<int>(settings, "steps");
  const Json& guidance = *settings.find("guidance");
  data.guidance = guidance.is(Json::Kind::integer) ? static_cast<double>(guidance.integer()) : guidance.number;
  data.sampler = settings.find("sampler")->text;
  data.spacing = optional_text(*settings.find("spacing"));
}

// Throws Malformed if the file is damaged, input if it is another one.
TemplateData read_template(const std::string& path, bool check) {
  TemplateData data;
  data.file = std::make_shared<const MappedFile>(path);
  Safetensors found = parse_safetensors(data.file->data(), data.file->size());
  if (!is_template(found)) input_error(path + " is not a template file.", again);
  check_tensors(found.tensors);
  const auto seal = found.metadata.find(kSealKey);
  if (check && (seal == found.metadata.end() || seal->second != array_seal(found))) {
    throw Malformed("its content has changed");
  }
  read_settings(data, found.metadata[settings_key]);
  const auto model = found.metadata.find(model_key);
  if (model == found.metadata.end()) throw Malformed("'infid_model'");
  data.model = model->second;
  data.tensors = std::move(found.tensors);
  return data;
}

// Dtype and shape of a tensor in a template.
struct Layout {
  Dtype dtype = Dtype::float32;
  Shape shape;
  bool operator==(const Layout& other) const { return dtype == other.dtype && shape == other.shape; }
  std::string text() const { return std::string(dtype_name(dtype)) + " " + shape_text(shape); }
};

using Layouts = std::map<std::string, Layout>;

// usual · area / own, or -1, which no tensor has, where that is too large.
std::int64_t scaled(std::int64_t usual, std::int64_t area, std::int64_t own) {
  const bool fits = area == 0 || usual <= std::numeric_limits<std::int64_t>::max() / area;
  return fits ? usual * area / own : -1;
}

const GraphRecord& template_graph(const Manifest& manifest, const char* name) {
  if (!manifest.one_stream()) return manifest.graph(name);
  folder_error("A template is a text stream, but these engines have one stream, the identity's.",
               "Leave the template out, or build with --streams two --graph default --graph text_step "
               "--graph identity_step.");
}

// Of an input for images of a size; its dynamic dimension is the number of tokens.
Layout layout_of(const TensorSpec& spec, const Manifest& manifest, const TemplateData& given) {
  Layout layout{spec.dtype, {}};
  const std::int64_t own = std::int64_t{manifest.height} * manifest.width;
  const std::int64_t area = std::int64_t{given.height} * given.width;
  for (const Dimension& each : spec.shape) {
    layout.shape.push_back(each.fixed() ? each.most : scaled(each.usual, area, own));
  }
  return layout;
}

Layouts expected_layouts(const Manifest& manifest, const TemplateData& given) {
  const GraphRecord& step = template_graph(manifest, "identity_step");
  Layouts layouts;
  for (const char* name : conditioning) {
    const TensorSpec* spec = step.input(name);
    if (spec == nullptr) {
      folder_error("The graph identity_step has no input " + std::string(name) + ".", "Build the engine folder again.");
    }
    layouts[name] = layout_of(*spec, manifest, given);
  }
  bool has_scales = false;
  for (const TensorSpec& spec : step.inputs) {
    has_scales = has_scales || starts_with(spec.name, scales);
    if (!starts_with(spec.name, features) && !starts_with(spec.name, scales)) continue;
    Layout& layout = layouts[spec.name] = layout_of(spec, manifest, given);
    layout.shape.insert(layout.shape.begin(), given.steps);
  }
  const int factor = manifest.vae_scale_factor;
  layouts["rows"] = {Dtype::float32, {given.steps, 8}};
  layouts["initial_scale"] = {Dtype::float32, {1}};
  layouts["latents"] = {Dtype::float32, {1, 4, given.height / factor, given.width / factor}};
  if (has_scales) layouts["snr"] = {Dtype::float32, {given.steps}};
  return layouts;
}

// Throws input for the first tensor that differs, features first.
void check_layouts(const Layouts& expected, const Layouts& found) {
  std::set<std::pair<bool, std::string>> names;
  for (const Layouts* each : {&expected, &found}) {
    for (const auto& [name, _] : *each) names.emplace(!starts_with(name, features), name);
  }
  const auto text_in = [](const Layouts& layouts, const std::string& name) {
    const auto layout = layouts.find(name);
    return layout == layouts.end() ? "nothing" : layout->second.text();
  };
  for (const auto& [_, name] : names) {
    const std::string given = text_in(found, name), wanted = text_in(expected, name);
    if (given == wanted) continue;
    input_error("The template's " + name + " is " + given + ", but these engines take " + wanted + ".", with_these);
  }
}

void check_guidance(const Manifest& manifest, const TemplateData& given) {
  const Shape& rows = given.tensors.at("time_ids").shape;
  const bool has = !rows.empty() && rows[0] == 2;
  if (has == (manifest.graph(manifest.step()).input("guidance") != nullptr)) return;
  const std::string own = has ? "with" : "without", theirs = has ? "without" : "with";
  input_error("The template was made " + own + " guidance, but these engines were built " + theirs + ".", with_these);
}

void check_side(const std::string& name, int pixels, const Dimension& latents, int factor) {
  const std::int64_t smallest = latents.least * factor, largest = latents.most * factor;
  if (smallest <= pixels && pixels <= largest && pixels % 32 == 0) return;
  const std::string range = std::to_string(smallest) + " to " + std::to_string(largest) + " in steps of 32";
  const std::string given = std::to_string(pixels), allowed = smallest == largest ? std::to_string(smallest) : range;
  input_error("The engines were built for a " + name + " of " + allowed + ", not " + given + ".",
              "Use that, or build with --" + name + " " + given + " or --" + name + "-range.");
}

}  // namespace

Tensors conditioning_of(const TemplateData& made) {
  Tensors inputs;
  for (const char* name : conditioning) inputs.emplace(name, Tensor(made.tensors.at(name)));
  return inputs;
}

Views features_of(const TemplateData& made, int step) {
  Views inputs;
  for (const auto& [name, tensor] : made.tensors) {
    if (!starts_with(name, features) && !starts_with(name, scales)) continue;
    const Shape each(tensor.shape.begin() + 1, tensor.shape.end());
    const std::size_t bytes = count_of(each) * dtype_size(tensor.dtype);
    inputs[name] = {tensor.dtype, each, tensor.as<std::byte>() + bytes * static_cast<std::size_t>(step)};
  }
  return inputs;
}

SamplerTable table_of(const TemplateData& made) {
  SamplerTable table;
  table.initial_scale = made.tensors.at("initial_scale").as<float>()[0];
  const float* rows = made.tensors.at("rows").as<float>();
  for (int step = 0; step < made.steps; ++step, rows += 8) {
    std::copy_n(rows, 8, table.rows.emplace_back().begin());
  }
  return table;
}

void check_template(const Manifest& manifest, const TemplateData& given) {
  const std::string& own = manifest.text_model_id;
  if (given.model != own) {
    input_error("The template was made with the model " + first_codes(given.model, 12) +
                    "…, but these engines are of " + own.substr(0, 12) + "….",
                with_these);
  }
  template_graph(manifest, "identity_step");
  check_guidance(manifest, given);
  image_size(manifest, given.height, given.width);
  Layouts found;
  for (const auto& [name, view] : given.tensors) found[name] = {view.dtype, view.shape};
  check_layouts(expected_layouts(manifest, given), found);
}

std::pair<int, int> image_size(const Manifest& manifest, std::optional<int> height, std::optional<int> width) {
  const std::pair<int, int> chosen = {height.value_or(manifest.height), width.value_or(manifest.width)};
  const TensorSpec* latents = manifest.graph(manifest.step()).input("identity_latents");
  check_side("height", chosen.first, latents->shape[2], manifest.vae_scale_factor);
  check_side("width", chosen.second, latents->shape[3], manifest.vae_scale_factor);
  return chosen;
}

Template Template::load(const std::string& path, bool check) {
  const std::string place = path_of("The template file", path, "Give a file that Template.save wrote.");
  if (!is_file(place)) input_error("There is no template file at " + place + ".", again);
  try {
    return Template(std::make_shared<const TemplateData>(read_template(place, check)));
  } catch (const Malformed& problem) {
    input_error(place + " is not an intact template file (" + problem.what() + ").", again);
  }
}

const std::string& Template::prompt() const noexcept { return data_->prompt; }
std::uint64_t Template::seed() const noexcept { return data_->seed; }
int Template::steps() const noexcept { return data_->steps; }

}  // namespace infid
