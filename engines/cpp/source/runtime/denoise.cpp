#include "runtime/denoise.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.hpp"

namespace infid {
namespace {

Views views_of(const Tensors& tensors) {
  Views views;
  for (const auto& [name, tensor] : tensors) views.emplace(name, tensor.view());
  return views;
}

Tensor zeros(const Shape& shape) {
  Tensor tensor(Dtype::float32, shape);
  std::fill_n(tensor.as<float>(), tensor.count(), 0.0f);
  return tensor;
}

// The first state of the streams; a sampler that adds no noise gets zeros for it.
void initial_state(const Streams& streams, const std::vector<std::size_t>& batch, const SamplerTable& table,
                   Tensors& state, Tensors& constant) {
  for (const auto& [stream, noise] : streams) {
    Tensor latents = noise->first(batch);
    const auto scale = static_cast<float>(table.initial_scale);
    for (std::size_t i = 0; i < latents.count(); ++i) latents.as<float>()[i] *= scale;
    state.emplace(stream + "_denoised", zeros(latents.shape()));
    if (!table.stochastic()) constant.emplace(stream + "_noise", zeros(latents.shape()));
    state.emplace(stream + "_latents", std::move(latents));
  }
}

// The inputs of each step that differ from step to step.
class StepInputs {
 public:
  StepInputs(const Streams& streams, const std::vector<std::size_t>& batch, const SamplerTable& table,
             const Further& further)
      : streams_(streams), batch_(batch), table_(table), further_(further) {}

  Views at(int index) {
    const SamplerRow& row = table_.rows[static_cast<std::size_t>(index)];
    Views inputs = further_(index);
    inputs["timestep"] = {Dtype::float32, {1}, row.data()};
    inputs["coefficients"] = {Dtype::float32, {static_cast<std::int64_t>(row.size()) - 1}, row.data() + 1};
    if (!table_.stochastic()) return inputs;
    std::map<const Noise*, Tensor> drawn;  // streams with the same noise get the same
    for (const auto& [stream, noise] : streams_) {
      if (drawn.count(noise.get()) == 0) drawn.emplace(noise.get(), noise->fresh(batch_));
      inputs[stream + "_noise"] = drawn.at(noise.get()).view();
    }
    fresh_ = std::move(drawn);
    return inputs;
  }

 private:
  const Streams& streams_;
  const std::vector<std::size_t>& batch_;
  const SamplerTable& table_;
  const Further& further_;
  std::map<const Noise*, Tensor> fresh_;
};

}  // namespace

Noise::Noise(const std::vector<std::uint64_t>& seeds, LatentSize size) : size_(size) {
  for (const std::uint64_t seed : seeds) {
    generators_.emplace_back(seed);
    first_.emplace_back(size.count());
    generators_.back().normal(first_.back().data(), size.count());
  }
}

Tensor Noise::first(const std::vector<std::size_t>& batch) const {
  Tensor noise(Dtype::float32, {static_cast<std::int64_t>(batch.size()), size_.channels, size_.height, size_.width});
  float* place = noise.as<float>();
  for (const std::size_t image : batch) place = std::copy(first_[image].begin(), first_[image].end(), place);
  return noise;
}

Tensor Noise::fresh(const std::vector<std::size_t>& batch) {
  Tensor noise(Dtype::float32, {static_cast<std::int64_t>(batch.size()), size_.channels, size_.height, size_.width});
  std::map<std::size_t, const float*> drawn;
  float* place = noise.as<float>();
  for (const std::size_t image : batch) {
    if (const auto known = drawn.find(image); known != drawn.end()) {
      std::copy_n(known->second, size_.count(), place);
    } else {
      generators_[image].normal(place, size_.count());
      drawn.emplace(image, place);
    }
    place += size_.count();
  }
  return noise;
}

Tensor denoise(Engine& engine, const Views& fixed, const Streams& streams, const std::vector<std::size_t>& batch,
               const SamplerTable& table, const Further& further, const OnStep& on_step, const Cancel* cancel) {
  reject_cancelled(cancel);
  Tensors state, constant;
  initial_state(streams, batch, table, state, constant);
  Views unchanged = fixed;
  for (const auto& [name, tensor] : constant) unchanged.emplace(name, tensor.view());
  Carry carry;
  for (const auto& [stream, _] : streams) {
    for (const char* part : {"_latents", "_denoised"}) carry.emplace(stream + part, "next_" + stream + part);
  }
  StepInputs inputs(streams, batch, table, further);
  const int steps = static_cast<int>(table.rows.size());
  const auto loop = engine.loop(unchanged, carry, views_of(state), steps, [&](int index) { return inputs.at(index); });
  for (int index = 0; index < steps; ++index) {
    reject_cancelled(cancel);
    loop->step();
    on_step(index);
  }
  reject_cancelled(cancel);
  Tensor latents = loop->read("next_identity_latents");
  reject_non_finite(latents, "latents");
  return latents;
}

void reject_cancelled(const Cancel* cancel) {
  if (cancel != nullptr && cancel->is_set()) {
    fail(ErrorKind::cancelled, "The generation was cancelled.", "Run it again to get the image.");
  }
}

void reject_non_finite(const Tensor& values, const std::string& what) {
  const bool half = values.dtype() == Dtype::float16;
  std::size_t bad = 0;
  for (std::size_t i = 0; i < values.count(); ++i) {
    const float value = half ? float_of_half(values.as<std::uint16_t>()[i]) : values.as<float>()[i];
    if (!std::isfinite(value)) ++bad;
  }
  if (bad == 0) return;
  fail(ErrorKind::non_finite,
       "The engines returned " + what + " with " + std::to_string(bad) + " non-finite values out of " +
           std::to_string(values.count()) + ".",
       "Run `infid-export verify` on the folder; if it was built with --fp16, build it with --precision fp32.");
}

std::vector<std::vector<std::size_t>> batches(std::size_t count, std::size_t size) {
  std::vector<std::vector<std::size_t>> all;
  for (std::size_t start = 0; start < count; start += size) {
    std::vector<std::size_t> batch;
    for (std::size_t i = 0; i < size; ++i) batch.push_back(std::min(start + i, count - 1));
    all.push_back(std::move(batch));
  }
  return all;
}

}  // namespace infid
