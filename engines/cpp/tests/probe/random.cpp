// Numbers and samplers, whose floats are printed as their bits.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "probe.hpp"
#include "sampling/random.hpp"
#include "sampling/samplers.hpp"

namespace {

using infid::ScheduleConfig;
using nlohmann::json;

void print_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  std::printf("%08" PRIx32, bits);
}

// normal SEED COUNT [FIRST]: the first values are one call of their own.
void normal(const std::vector<std::string>& words) {
  infid::Generator generator(std::strtoull(words.at(0).c_str(), nullptr, 10));
  std::vector<float> values(std::stoul(words.at(1)));
  const std::size_t first = words.size() > 2 ? std::stoul(words[2]) : 0;
  generator.normal(values.data(), first);
  generator.normal(values.data() + first, values.size() - first);
  for (const float value : values) print_bits(value);
}

ScheduleConfig config_of(const json& given) {
  ScheduleConfig config;
  config.num_train_timesteps = given["num_train_timesteps"];
  config.beta_start = given["beta_start"];
  config.beta_end = given["beta_end"];
  config.beta_schedule = given["beta_schedule"];
  config.clip_sample = given["clip_sample"];
  config.steps_offset = given["steps_offset"];
  config.timestep_spacing = given["timestep_spacing"];
  config.set_alpha_to_one = given["set_alpha_to_one"];
  config.prediction_type = given["prediction_type"];
  config.rescale_betas_zero_snr = given["rescale_betas_zero_snr"];
  config.original_inference_steps = given.value("original_inference_steps", std::int64_t{50});
  config.distilled_timesteps = given.value("distilled_timesteps", std::vector<std::int64_t>());
  return config;
}

// One table per line of stdin: {"config": …, "steps": …, "sampler": …, "spacing": …}.
void samplers(const std::vector<std::string>&) {
  for (std::string line; std::getline(std::cin, line);) {
    const json given = json::parse(line);
    const json& spacing = given["spacing"];
    try {
      const infid::SamplerTable table = infid::sampler_table(
          config_of(given["config"]), given["steps"], given["sampler"],
          spacing.is_null() ? std::nullopt : std::optional<std::string>(spacing.get<std::string>()));
      std::printf("%s %d ", infid::python_number(table.initial_scale).c_str(), table.stochastic());
      for (const infid::SamplerRow& row : table.rows) {
        for (const float value : row) print_bits(value);
      }
      std::printf("\n");
    } catch (const infid::Error& error) {
      std::printf("%s|%s\n", error.problem().c_str(), error.fix().c_str());
    }
  }
}

// Each line of stdin is a double.
void numbers(const std::vector<std::string>&) {
  for (std::string line; std::getline(std::cin, line);) {
    std::puts(infid::python_number(std::strtod(line.c_str(), nullptr)).c_str());
  }
}

const Probe normal_probe{"normal", normal};
const Probe samplers_probe{"samplers", samplers};
const Probe numbers_probe{"numbers", numbers};

}  // namespace
