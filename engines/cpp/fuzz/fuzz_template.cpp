// Template files, as they are and resealed, with and without a check; an accepted one is compared with small engines.
#include <cstdlib>

#include "errors.hpp"
#include "runtime/template.hpp"
#include "sealed_file.hpp"

namespace {

infid::Manifest small_engines() {
  const auto spec = [](const char* name, infid::Shape shape) {
    infid::TensorSpec made{name, infid::Dtype::float32, {}};
    for (const std::int64_t extent : shape) made.shape.push_back({extent, extent, extent});
    return made;
  };
  infid::Manifest manifest;
  manifest.text_model_id = "m";
  manifest.height = manifest.width = 32;
  auto latents = spec("identity_latents", {1, 4, 4, 4}), features = spec("text_features.a", {2, 4, 1});
  latents.shape[2] = latents.shape[3] = {4, 4, 8};
  features.shape[1] = {4, 4, 16};
  manifest.graphs["denoise_step"].inputs = {latents, spec("guidance", {1})};
  manifest.graphs["identity_step"].inputs = {features, spec("prompt_embeds", {2, 1, 1}),
                                             spec("pooled_prompt_embeds", {2, 1}), spec("time_ids", {2, 6})};
  return manifest;
}

void attempt(const std::string& content, bool check) {
  static const infid::Manifest manifest = small_engines();
  const infid::MemoryFile file(content);
  try {
    const infid::Template found = infid::Template::load(file.path(), check);
    infid::check_template(manifest, found.data());
    const auto& rows = found.data().tensors.at("rows");
    if (rows.count() != 8 * static_cast<std::size_t>(found.steps())) std::abort();
  } catch (const infid::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  attempt(content, false);
  if (const auto copy = infid::resealed(content)) attempt(*copy, true);
  return 0;
}
