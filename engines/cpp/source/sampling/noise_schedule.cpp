// See noise_schedule.hpp. Every operation has numpy's type and order, so that the numbers are equal bit for bit.
#include "sampling/noise_schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.hpp"
#include "folder/unicode.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

const std::string kFix = "Use a base model with SDXL's schedule.";
// ᾱ of the last timestep where it is rescaled to zero and a sampler divides by it: the least of fp16
constexpr double kNearlyZero = 0x1p-24;

void require_supported(const std::string& name, const std::string& value, const std::vector<std::string>& supported) {
  if (std::find(supported.begin(), supported.end(), value) != supported.end()) return;
  const std::string list = joined(supported, ", ");
  input_error("The noise schedule has " + name + " = " + python_repr(value) + "; supported: " + list + ".", kFix);
}

void require_least(const std::string& name, std::int64_t value, std::int64_t least) {
  if (value >= least) return;
  input_error("The noise schedule's " + name + " must be at least " + std::to_string(least) + ", not " +
                  std::to_string(value) + ".",
              kFix);
}

void require_falling(const std::vector<std::int64_t>& timesteps, std::int64_t trained) {
  std::int64_t before = trained;
  bool falls = true;
  for (const std::int64_t each : timesteps) {
    falls = falls && each < before && each >= 0;
    before = each;
  }
  if (falls) return;
  input_error("The noise schedule's distilled_timesteps must be whole numbers from " + std::to_string(trained - 1) +
                  " down to 0, each less than the one before.",
              kFix);
}

// The cumulative product, multiplied in fp64 and rounded to fp32, as PyTorch does.
std::vector<float> product(const std::vector<float>& factors) {
  std::vector<float> found;
  double running = 1;
  for (const float factor : factors) found.push_back(static_cast<float>(running *= factor));
  return found;
}

// Lin et al., arXiv 2305.08891, algorithm 1.
std::vector<float> with_zero_terminal_snr(const std::vector<float>& alphas) {
  std::vector<float> signal = product(alphas);
  for (float& each : signal) each = std::sqrt(each);
  const float first = signal.front(), last = signal.back();
  const float scale = first / (first - last);
  std::vector<float> powers;
  for (const float each : signal) {
    const float rescaled = (each - last) * scale;
    powers.push_back(rescaled * rescaled);
  }
  std::vector<float> found = powers;
  for (std::size_t i = 1; i < found.size(); ++i) found[i] = powers[i] / powers[i - 1];
  for (float& each : found) each = 1.0f - (1.0f - each);
  return found;
}

std::vector<double> alphas_cumprod(const ScheduleConfig& config) {
  const auto first = static_cast<float>(std::pow(config.beta_start, 0.5));
  const auto last = static_cast<float>(std::pow(config.beta_end, 0.5));
  const int count = config.num_train_timesteps;
  const double step = (last - first) / static_cast<float>(count - 1);
  std::vector<float> alphas;
  for (int i = 0; i < count; ++i) {  // interpolated from both ends, as PyTorch does
    const auto root = static_cast<float>(i < count / 2 ? first + step * i : last - step * (count - 1 - i));
    alphas.push_back(1.0f - root * root);
  }
  if (config.rescale_betas_zero_snr) alphas = with_zero_terminal_snr(alphas);
  const std::vector<float> found = product(alphas);
  return {found.begin(), found.end()};
}

}  // namespace

const std::vector<std::string> kTimestepSpacings{"leading", "trailing", "linspace"};

double NoiseSchedule::alpha(std::int64_t timestep) const {
  return alphas_cumprod.at(static_cast<std::size_t>(timestep < 0 ? timestep + trained() : timestep));
}

std::vector<double> NoiseSchedule::sigmas() const {
  std::vector<double> found = alphas_cumprod;
  found.back() = std::max(found.back(), kNearlyZero);
  for (double& each : found) each = std::sqrt((1 - each) / each);
  return found;
}

std::vector<std::int64_t> NoiseSchedule::distilled_timesteps(std::int64_t steps) const {
  if (!exact_timesteps.empty()) return exact_timesteps;
  const std::int64_t stride = trained() / distilled_steps;
  const double spread = static_cast<double>(distilled_steps) / static_cast<double>(steps);
  std::vector<std::int64_t> found;
  for (std::int64_t i = 0; i < steps; ++i) {
    const auto index = static_cast<std::int64_t>(std::floor(static_cast<double>(i) * spread));
    found.push_back((distilled_steps - index) * stride - 1);
  }
  return found;
}

NoiseSchedule noise_schedule(const ScheduleConfig& config) {
  require_supported("beta_schedule", config.beta_schedule, {"scaled_linear"});
  if (config.clip_sample) input_error("The noise schedule has clip_sample = True; supported: False.", kFix);
  require_supported("timestep_spacing", config.timestep_spacing, kTimestepSpacings);
  require_supported("prediction_type", config.prediction_type, {"epsilon", "v_prediction", "sample"});
  require_least("num_train_timesteps", config.num_train_timesteps, 2);
  NoiseSchedule found;
  found.alphas_cumprod = alphas_cumprod(config);
  found.prediction = config.prediction_type;
  if (found.prediction == "epsilon" && found.alphas_cumprod.back() == 0) {
    input_error(
        "The noise schedule has zero terminal SNR, where the noise tells nothing about the data, but the model's "
        "prediction_type is epsilon.",
        "If the model predicts v, set prediction_type to v_prediction in its scheduler_config.json.");
  }
  require_least("steps_offset", config.steps_offset, 0);
  require_least("original_inference_steps", config.original_inference_steps, 1);
  found.steps_offset = config.steps_offset;
  found.final_alpha_cumprod = config.set_alpha_to_one ? 1.0 : found.alphas_cumprod.front();
  found.distilled_steps = config.original_inference_steps;
  require_falling(config.distilled_timesteps, found.trained());
  found.exact_timesteps = config.distilled_timesteps;
  return found;
}

double interpolated(double place, const std::vector<double>& places, const std::vector<double>& values) {
  const auto above = std::upper_bound(places.begin(), places.end(), place);
  if (above == places.begin()) return values.front();
  const auto left = static_cast<std::size_t>(above - places.begin()) - 1;
  if (left + 1 == places.size() || places[left] == place) return values[left];
  const double slope = (values[left + 1] - values[left]) / (places[left + 1] - places[left]);
  return slope * (place - places[left]) + values[left];
}

std::vector<double> whole_numbers(std::int64_t count) {
  std::vector<double> found(static_cast<std::size_t>(count));
  std::iota(found.begin(), found.end(), 0.0);
  return found;
}

}  // namespace infid
