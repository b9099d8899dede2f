// The noise schedule of a model, equal to `infid_export.sampling.noise_schedule`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sampling/samplers.hpp"

namespace infid {

struct NoiseSchedule {
  std::vector<double> alphas_cumprod;  // ᾱ of each timestep
  std::string prediction;
  std::int64_t steps_offset = 0;
  double final_alpha_cumprod = 1;    // ᾱ after DDIM's last step
  std::int64_t distilled_steps = 0;  // timesteps that a few-step model (LCM, TCD) was distilled with
  std::vector<std::int64_t> exact_timesteps;  // all that it can be sampled at; empty where it leaves a choice

  std::int64_t trained() const { return static_cast<std::int64_t>(alphas_cumprod.size()); }
  // ᾱ of a timestep; a negative one counts from the end.
  double alpha(std::int64_t timestep) const;
  // Noise over signal of each timestep; finite at the last one too.
  std::vector<double> sigmas() const;
  // Timesteps of a few-step model, the noisiest first: its own, or evenly spaced by index.
  std::vector<std::int64_t> distilled_timesteps(std::int64_t steps) const;
};

// Throws input if the schedule is not supported.
NoiseSchedule noise_schedule(const ScheduleConfig& config);

// numpy.interp, for places in increasing order.
double interpolated(double place, const std::vector<double>& places, const std::vector<double>& values);
// 0, 1, …, count - 1.
std::vector<double> whole_numbers(std::int64_t count);

extern const std::vector<std::string> kTimestepSpacings;  // leading, trailing, linspace

}  // namespace infid
