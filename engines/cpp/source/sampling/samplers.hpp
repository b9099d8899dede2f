// Samplers as tables, equal to `infid_export.sampling`.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace infid {

// The fields of the manifest's `scheduler` that the tables depend on.
struct ScheduleConfig {
  int num_train_timesteps = 1000;
  double beta_start = 0, beta_end = 0;
  std::string beta_schedule = "scaled_linear";
  bool clip_sample = false;
  std::int64_t steps_offset = 0;
  std::string timestep_spacing = "leading";
  bool set_alpha_to_one = false;
  std::string prediction_type = "epsilon";
  bool rescale_betas_zero_snr = false;
  std::int64_t original_inference_steps = 50;
  std::vector<std::int64_t> distilled_timesteps;  // all that a few-step model can be sampled at; empty: any
};

// Columns: timestep, c_in, c_x, c_e, c_d, c_n, k_x, k_e.
using SamplerRow = std::array<float, 8>;

struct SamplerTable {
  std::vector<SamplerRow> rows;  // the first step first
  double initial_scale = 1;      // standard deviation of the first latents
  bool stochastic() const;       // whether a step adds fresh noise
};

// Throws input, with Python's sentences.
SamplerTable sampler_table(const ScheduleConfig& config, std::int64_t steps, const std::string& sampler,
                           const std::optional<std::string>& spacing);

// The asked-for sampler and spacing, or the folder's own; its own spacing is that of its own sampler.
std::pair<std::string, std::optional<std::string>> chosen_sampler(const std::optional<std::string>& sampler,
                                                                  const std::optional<std::string>& spacing,
                                                                  const std::string& own_sampler,
                                                                  const std::optional<std::string>& own_spacing);

}  // namespace infid
