// Noise schedules, samplers and random numbers; the Python tests compare all of them with numpy.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "infid/infid.hpp"
#include "sampling/noise_schedule.hpp"
#include "sampling/random.hpp"
#include "sampling/samplers.hpp"

using namespace infid;

namespace {

ScheduleConfig sdxl() {
  ScheduleConfig config;
  config.beta_start = 0.00085;
  config.beta_end = 0.012;
  config.steps_offset = 1;
  return config;
}

}  // namespace

TEST_CASE("ddim starts at the noisiest timestep and ends at the first") {
  const SamplerTable table = sampler_table(sdxl(), 20, "ddim", std::nullopt);
  REQUIRE(table.rows.size() == 20);
  CHECK(table.rows.front()[0] == 951);
  CHECK(table.rows.back()[0] == 1);
  CHECK(table.initial_scale == 1);
  CHECK_FALSE(table.stochastic());
}

TEST_CASE("samplers that add noise say so") {
  CHECK(sampler_table(sdxl(), 4, "lcm", std::nullopt).stochastic());
  CHECK(sampler_table(sdxl(), 4, "euler_a", std::nullopt).stochastic());
  CHECK_FALSE(sampler_table(sdxl(), 4, "dpmpp_2m", "karras").stochastic());
}

TEST_CASE("a schedule that no table can be made for is an error") {
  ScheduleConfig config = sdxl();
  config.num_train_timesteps = 0;
  CHECK_THROWS_AS(sampler_table(config, 1, "ddim", std::nullopt), Error);
  config = sdxl();
  config.steps_offset = 400;  // the first of 600 timesteps would be 999
  CHECK_NOTHROW(sampler_table(config, 600, "ddim", std::nullopt));
  CHECK_THROWS_AS(sampler_table(config, 500, "ddim", std::nullopt), Error);
}

TEST_CASE("the model's own spacing is that of its own sampler") {
  using Chosen = std::pair<std::string, std::optional<std::string>>;
  CHECK(chosen_sampler({}, {}, "euler", "karras") == Chosen("euler", "karras"));
  CHECK(chosen_sampler({}, "leading", "euler", "karras") == Chosen("euler", "leading"));
  CHECK(chosen_sampler("ddim", {}, "euler", "karras") == Chosen("ddim", std::nullopt));
  CHECK(chosen_sampler("ddim", "trailing", "euler", "karras") == Chosen("ddim", "trailing"));
}

TEST_CASE("interpolation goes through the given values and stops at the ends") {
  const std::vector<double> places{1, 2, 4}, values{10, 20, 0};
  CHECK(interpolated(0, places, values) == 10);
  CHECK(interpolated(1.5, places, values) == 15);
  CHECK(interpolated(2, places, values) == 20);
  CHECK(interpolated(3, places, values) == 10);
  CHECK(interpolated(9, places, values) == 0);
}

TEST_CASE("a seed always gives the same numbers") {
  std::vector<float> first(1000), second(1000), other(1000);
  Generator(5).normal(first.data(), first.size());
  Generator(5).normal(second.data(), second.size());
  Generator(6).normal(other.data(), other.size());
  CHECK(first == second);
  CHECK(first != other);
  CHECK(random_seed() < std::uint64_t{1} << 32);
  CHECK((random_seed() != random_seed() || random_seed() != random_seed()));
}
