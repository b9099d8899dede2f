// See samplers.hpp, and `infid_export.sampling.samplers` for the mathematics and its sources. Every operation has
// numpy's type and order.
#include "sampling/samplers.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "sampling/noise_schedule.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

constexpr double kRho = 7;    // of Karras spacing
constexpr double kEta = 0.3;  // of TCD
constexpr double kTimestepScaling = 10, kSigmaData = 0.5;  // of LCM's boundary condition

using Numbers = std::vector<double>;

// The share of signal and noise in latents: x = signal·data + noise·ε.
struct Level {
  double signal, noise;

  static Level of_alpha(double alpha) { return {std::pow(alpha, 0.5), std::pow(1 - alpha, 0.5)}; }
  static Level of_sigma(double sigma) {
    const double signal = std::pow(sigma * sigma + 1, -0.5);
    return {signal, sigma * signal};
  }
};

// A weighted sum of x and e.
struct Sum {
  double x, e;
};

// The data and the noise that the prediction e implies for latents x of a level.
std::pair<Sum, Sum> estimates(const std::string& prediction, const Level& level) {
  const auto [signal, noise] = level;
  if (prediction == "epsilon") return {{1 / signal, -noise / signal}, {0, 1}};
  if (prediction == "sample") return {{0, 1}, {1 / noise, -signal / noise}};
  const double power = signal * signal + noise * noise;  // 1 except for Euler's latents, whose signal is 1
  const double root = std::pow(power, 0.5);
  return {{signal / power, -noise / root}, {noise / power, signal / root}};
}

struct RowOptions {
  double c_in = 1, c_n = 0;
  double skip = 0;      // factor of x itself, added to the result
  double momentum = 0;  // factor of the change of the data prediction since the last step, added to the result
};

// The step from a level to the following one, which is that without the fresh noise.
SamplerRow row(const NoiseSchedule& schedule, double timestep, const Level& level, const Level& following,
               const RowOptions& options) {
  const auto [data, noise] = estimates(schedule.prediction, level);
  const double of_data = following.signal + options.momentum;
  const double c_x = of_data * data.x + following.noise * noise.x + options.skip;
  const double c_e = of_data * data.e + following.noise * noise.e;
  const Numbers exact{timestep, options.c_in, c_x, c_e, -options.momentum, options.c_n, data.x, data.e};
  SamplerRow found;
  std::transform(exact.begin(), exact.end(), found.begin(), [](double value) { return static_cast<float>(value); });
  return found;
}

// numpy.linspace.
Numbers linspace(double last, std::int64_t count) {
  Numbers found = whole_numbers(count);
  if (count == 1) return found;
  for (double& each : found) each *= last / static_cast<double>(count - 1);
  found.back() = last;
  return found;
}

// The noisiest first.
Numbers spaced_timesteps(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  const auto trained = static_cast<double>(schedule.trained());
  Numbers found = whole_numbers(steps);
  if (spacing == "trailing") {
    for (double& each : found) each = std::nearbyint(trained - each * (trained / static_cast<double>(steps))) - 1;
    return found;
  }
  if (spacing == "leading") {
    const auto stride = static_cast<double>(schedule.trained() / steps);
    for (double& each : found) each = each * stride + static_cast<double>(schedule.steps_offset);
  } else {
    found = linspace(trained - 1, steps);
  }
  std::reverse(found.begin(), found.end());
  return found;
}

struct Spaced {
  Numbers timesteps, sigmas;
};

// Timesteps with fractions; spaced over the whole schedule.
Spaced karras(const NoiseSchedule& schedule, std::int64_t steps) {
  Numbers known = schedule.sigmas();
  const double first = std::pow(known.back(), 1 / kRho), last = std::pow(known.front(), 1 / kRho);
  Spaced found;
  for (const double share : linspace(1, steps)) {
    found.sigmas.push_back(std::pow(first + share * (last - first), kRho));
  }
  for (double& each : known) each = std::log(each);
  const Numbers indices = whole_numbers(schedule.trained());
  for (const double sigma : found.sigmas) found.timesteps.push_back(interpolated(std::log(sigma), known, indices));
  return found;
}

Spaced with_sigmas(const NoiseSchedule& schedule, Numbers timesteps) {
  const Numbers indices = whole_numbers(schedule.trained()), known = schedule.sigmas();
  Spaced found{std::move(timesteps), {}};
  for (const double timestep : found.timesteps) found.sigmas.push_back(interpolated(timestep, indices, known));
  return found;
}

SamplerTable ddim(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  const std::int64_t stride = schedule.trained() / steps;
  SamplerTable table;
  for (const double exact : spaced_timesteps(schedule, spacing, steps)) {
    const auto timestep = static_cast<std::int64_t>(std::nearbyint(exact));
    if (timestep >= schedule.trained()) {
      input_error("The noise schedule's steps_offset is too large for " + std::to_string(steps) + " steps.",
                  "Use fewer steps.");
    }
    const std::int64_t previous = timestep - stride;
    const double after = previous >= 0 ? schedule.alpha(previous) : schedule.final_alpha_cumprod;
    const Level level = Level::of_alpha(schedule.alpha(timestep));
    table.rows.push_back(row(schedule, static_cast<double>(timestep), level, Level::of_alpha(after), {}));
  }
  return table;
}

// Latents are data + σ·ε here; the network gets them scaled to variance 1.
SamplerTable euler_steps(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps,
                         bool ancestral) {
  const auto [timesteps, sigmas] = spacing == "karras"
                                       ? karras(schedule, steps)
                                       : with_sigmas(schedule, spaced_timesteps(schedule, spacing, steps));
  SamplerTable table;
  for (std::size_t i = 0; i < sigmas.size(); ++i) {
    const double sigma = sigmas[i], after = i + 1 < sigmas.size() ? sigmas[i + 1] : 0;
    const double ratio = after / sigma;
    const double fresh = ancestral ? after * std::pow(1 - ratio * ratio, 0.5) : 0;
    const Level following{1, std::pow(after * after - fresh * fresh, 0.5)};
    table.rows.push_back(row(schedule, timesteps[i], {1, sigma}, following, {Level::of_sigma(sigma).signal, fresh}));
  }
  const double largest = *std::max_element(sigmas.begin(), sigmas.end());
  table.initial_scale = spacing == "leading" ? std::pow(largest * largest + 1, 0.5) : largest;
  return table;
}

SamplerTable euler(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  return euler_steps(schedule, spacing, steps, false);
}

SamplerTable euler_a(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  return euler_steps(schedule, spacing, steps, true);
}

Spaced dpmpp_steps(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  if (spacing == "karras") return karras(schedule, steps);
  // as in diffusers, one more timestep is spaced, except for trailing, and the last is dropped
  Numbers timesteps = spaced_timesteps(schedule, spacing, steps + (spacing != "trailing"));
  timesteps.resize(static_cast<std::size_t>(steps));
  for (double& each : timesteps) each = std::nearbyint(each);
  return with_sigmas(schedule, std::move(timesteps));
}

// Steps of second order by the midpoint rule; the first and the last are of first order.
SamplerTable dpmpp_2m(const NoiseSchedule& schedule, const std::string& spacing, std::int64_t steps) {
  const auto [timesteps, sigmas] = dpmpp_steps(schedule, spacing, steps);
  SamplerTable table;
  for (std::size_t i = 0; i < sigmas.size(); ++i) {
    const Level level = Level::of_sigma(sigmas[i]);
    const Level following = Level::of_sigma(i + 1 < sigmas.size() ? sigmas[i + 1] : 0);
    RowOptions options;
    if (i > 0 && i + 1 < sigmas.size()) {
      const double ratio = std::log(sigmas[i - 1] / sigmas[i]) / std::log(sigmas[i] / sigmas[i + 1]);
      options.momentum = (following.signal - following.noise * level.signal / level.noise) / (2 * ratio);
    }
    table.rows.push_back(row(schedule, std::nearbyint(timesteps[i]), level, following, options));
  }
  return table;
}

// Each step goes to the data, mixed with x by the boundary condition, then to the next level by fresh noise.
SamplerTable lcm(const NoiseSchedule& schedule, const std::string&, std::int64_t steps) {
  const auto timesteps = schedule.distilled_timesteps(steps);
  SamplerTable table;
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const Level after = last ? Level{1, 0} : Level::of_alpha(schedule.alpha(timesteps[i + 1]));
    const double scaled = static_cast<double>(timesteps[i]) * kTimestepScaling;
    const double power = scaled * scaled + kSigmaData * kSigmaData;
    const double c_out = scaled / std::pow(power, 0.5), c_skip = kSigmaData * kSigmaData / power;
    RowOptions options;
    options.skip = after.signal * c_skip;
    options.c_n = after.noise;
    const Level level = Level::of_alpha(schedule.alpha(timesteps[i]));
    table.rows.push_back(row(schedule, static_cast<double>(timesteps[i]), level, {after.signal * c_out, 0}, options));
  }
  return table;
}

// Each step goes below the next level, and up to it by fresh noise.
SamplerTable tcd(const NoiseSchedule& schedule, const std::string&, std::int64_t steps) {
  const auto timesteps = schedule.distilled_timesteps(steps);
  SamplerTable table;
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const std::int64_t following = last ? 0 : timesteps[i + 1];
    const float lower = std::floor(static_cast<float>(1 - kEta) * static_cast<float>(following));
    const double below = schedule.alpha(static_cast<std::int64_t>(lower));
    const double shrink = last ? 1 : std::pow(schedule.alpha(following) / below, 0.5);
    const Level level = Level::of_alpha(schedule.alpha(timesteps[i])), target = Level::of_alpha(below);
    RowOptions options;
    options.c_n = std::pow(1 - shrink * shrink, 0.5);
    const Level reached{shrink * target.signal, shrink * target.noise};
    table.rows.push_back(row(schedule, static_cast<double>(timesteps[i]), level, reached, options));
  }
  return table;
}

// Without spacings, its timesteps come from the model's distillation.
struct Sampler {
  std::string name;
  SamplerTable (*table)(const NoiseSchedule&, const std::string& spacing, std::int64_t steps);
  std::vector<std::string> spacings;

  bool supports(const std::string& spacing) const {
    return std::find(spacings.begin(), spacings.end(), spacing) != spacings.end();
  }
};

const std::vector<Sampler>& samplers() {
  static const std::vector<std::string> all{"leading", "trailing", "linspace", "karras"};
  static const std::vector<Sampler> found{
      {"ddim", ddim, kTimestepSpacings},       {"euler", euler, all}, {"dpmpp_2m", dpmpp_2m, all},
      {"euler_a", euler_a, kTimestepSpacings}, {"lcm", lcm, {}},      {"tcd", tcd, {}},
  };
  return found;
}

const Sampler& sampler_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Sampler& each : samplers()) {
    if (each.name == name) return each;
    names.push_back(each.name);
  }
  input_error("There is no sampler " + shown(name) + ".", "Use one of " + joined(names, ", ") + ".");
}

void check_spacing(const Sampler& sampler, const std::string& spacing) {
  if (sampler.supports(spacing)) return;
  const bool none = sampler.spacings.empty();
  input_error("The sampler " + sampler.name + " does not support the spacing " + shown(spacing) +
                  (none ? ": its timesteps are those of the model's distillation." : "."),
              none ? "Leave the spacing out." : "Use one of " + joined(sampler.spacings, ", ") + ".");
}

void check_exact_steps(const std::vector<std::int64_t>& timesteps, std::int64_t steps) {
  if (steps == static_cast<std::int64_t>(timesteps.size())) return;
  std::vector<std::string> texts;
  for (const std::int64_t each : timesteps) texts.push_back(std::to_string(each));
  input_error("The number of steps must be " + std::to_string(timesteps.size()) + ", not " + std::to_string(steps) +
                  ": the model was distilled at t = " + joined(texts, ", ") + ".",
              "Leave the number of steps out.");
}

// Rejects a number of steps for which there are not that many timesteps.
void check_steps(const NoiseSchedule& schedule, const std::string& sampler, const std::string& spacing,
                 std::int64_t steps) {
  std::int64_t least = 1, most = schedule.trained();
  std::string fix = "30 is usual.";
  if (spacing.empty() && !schedule.exact_timesteps.empty()) return check_exact_steps(schedule.exact_timesteps, steps);
  if (spacing.empty()) {
    most = schedule.distilled_steps;
    fix = "A model for " + sampler + " was distilled to 4 to 8 steps.";
  }
  if (spacing == "linspace" && sampler != "dpmpp_2m") least = 2;  // a single step would be at timestep 0
  if (spacing == "leading") most -= schedule.steps_offset;
  if (sampler == "dpmpp_2m" && (spacing == "leading" || spacing == "linspace")) most -= 1;
  if (least <= steps && steps <= most) return;
  input_error("The number of steps must be a whole number from " + std::to_string(least) + " to " +
                  std::to_string(most) + ", not " + std::to_string(steps) + ".",
              fix);
}

}  // namespace

bool SamplerTable::stochastic() const {
  return std::any_of(rows.begin(), rows.end(), [](const SamplerRow& each) { return each[5] != 0; });
}

SamplerTable sampler_table(const ScheduleConfig& config, std::int64_t steps, const std::string& sampler,
                           const std::optional<std::string>& spacing) {
  const Sampler& chosen = sampler_named(sampler);
  const NoiseSchedule schedule = noise_schedule(config);
  if (spacing) check_spacing(chosen, *spacing);
  if (sampler == "euler_a" && schedule.prediction == "sample") {
    input_error("The sampler euler_a does not support a model that predicts the data.", "Use euler.");
  }
  const std::string used = chosen.spacings.empty() ? "" : spacing.value_or(config.timestep_spacing);
  check_steps(schedule, sampler, used, steps);
  return chosen.table(schedule, used, steps);
}

std::pair<std::string, std::optional<std::string>> chosen_sampler(const std::optional<std::string>& sampler,
                                                                  const std::optional<std::string>& spacing,
                                                                  const std::string& own_sampler,
                                                                  const std::optional<std::string>& own_spacing) {
  if (!sampler) return {own_sampler, spacing ? spacing : own_spacing};
  return {*sampler, spacing};
}

}  // namespace infid
