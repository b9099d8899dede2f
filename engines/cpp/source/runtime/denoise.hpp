// The denoising loop on an engine, equal to `infid_export.runtime.denoise`.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backends/engine.hpp"
#include "infid/infid.hpp"
#include "sampling/random.hpp"
#include "sampling/samplers.hpp"

namespace infid {

// Shape of one image's latents.
struct LatentSize {
  std::int64_t channels = 4, height = 0, width = 0;
  std::size_t count() const { return static_cast<std::size_t>(channels * height * width); }
};

// Standard normal noise for several images, from one generator each.
class Noise {
 public:
  Noise(const std::vector<std::uint64_t>& seeds, LatentSize size);

  std::size_t images() const { return generators_.size(); }
  // The noise that images start from, `[B, 4, h, w]`.
  Tensor first(const std::vector<std::size_t>& batch) const;
  // The next noise of images; one that occurs twice gets the same.
  Tensor fresh(const std::vector<std::size_t>& batch);

 private:
  LatentSize size_;
  std::vector<Generator> generators_;
  std::vector<std::vector<float>> first_;
};

// Noise by stream of a graph, `text` or `identity`.
using Streams = std::map<std::string, std::shared_ptr<Noise>>;
using OnStep = std::function<void(int index)>;
// Further inputs of a step.
using Further = std::function<Views(int index)>;

// Runs all steps of one batch, and returns the final latents of the identity stream. Throws cancelled or non_finite.
Tensor denoise(Engine& engine, const Views& fixed, const Streams& streams, const std::vector<std::size_t>& batch,
               const SamplerTable& table, const Further& further, const OnStep& on_step, const Cancel* cancel);

void reject_cancelled(const Cancel* cancel);
// Throws non_finite instead of returning a black image; `values` are float16 or float32.
void reject_non_finite(const Tensor& values, const std::string& what);

// Splits images into batches of an engine's size; the last one is padded by repeating its last image.
std::vector<std::vector<std::size_t>> batches(std::size_t count, std::size_t size);

}  // namespace infid
