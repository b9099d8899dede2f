// Template files, equal to `infid_export.runtime.template`, for reading.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "folder/manifest.hpp"
#include "folder/safetensors.hpp"
#include "infid/infid.hpp"

namespace infid {
namespace detail {

struct TemplateData {
  std::shared_ptr<const MappedFile> file;
  Views tensors;  // into the file
  std::string model;
  std::string prompt, sampler;
  std::optional<std::string> negative_prompt, spacing;
  std::uint64_t seed = 0;
  int height = 0, width = 0, steps = 0;
  double guidance = 0;
};

}  // namespace detail

// The prompt's inputs of a step, and the features of a step as the inputs of `identity_step`.
Tensors conditioning_of(const detail::TemplateData& made);
Views features_of(const detail::TemplateData& made, int step);
// The sampler's table that the template was made with.
SamplerTable table_of(const detail::TemplateData& made);

// Throws input or engine_folder if the engines of a folder cannot use a template, with Python's sentences.
void check_template(const Manifest& manifest, const detail::TemplateData& given);
// Height and width of images. Throws input, as `infid_export.runtime.denoise.image_size`.
std::pair<int, int> image_size(const Manifest& manifest, std::optional<int> height, std::optional<int> width);

}  // namespace infid
