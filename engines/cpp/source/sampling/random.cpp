// See random.hpp. SeedSequence: O'Neill, "C++ seeding surprises" (2015). PCG64: O'Neill, HMC-CS-2014-0905. Ziggurat:
// Marsaglia and Tsang, Journal of Statistical Software 5(8), 2000, with Doornik's layout, as in numpy.
#include "sampling/random.hpp"

#include <sys/random.h>

#include <array>
#include <cmath>

#include "errors.hpp"

namespace infid {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr Wide wide(std::uint64_t high, std::uint64_t low) { return Wide{high} << 64 | low; }

constexpr Wide kMultiplier = wide(2549297995355413924u, 4865540595714422341u);
constexpr int kPool = 4, kWords = 8;

// Spreads one word over all bits; the factor changes with each word.
class Hash {
 public:
  Hash(std::uint32_t factor, std::uint32_t growth) : factor_(factor), growth_(growth) {}
  std::uint32_t operator()(std::uint32_t value) {
    value ^= factor_;
    factor_ *= growth_;
    value *= factor_;
    return value ^ value >> 16;
  }

 private:
  std::uint32_t factor_, growth_;
};

std::uint32_t mixed(std::uint32_t left, std::uint32_t right) {
  const std::uint32_t value = 0xca01f9ddu * left - 0x4973f715u * right;
  return value ^ value >> 16;
}

// The first 256 bits of `SeedSequence(seed)`, as `generate_state(8)`.
std::array<std::uint32_t, kWords> seed_words(std::uint64_t seed) {
  const std::array<std::uint32_t, kPool> entropy{static_cast<std::uint32_t>(seed),
                                                 static_cast<std::uint32_t>(seed >> 32), 0, 0};
  Hash hash(0x43b0d7e5u, 0x931e8875u);
  std::array<std::uint32_t, kPool> pool{};
  for (int i = 0; i < kPool; ++i) pool[i] = hash(entropy[i]);
  for (int from = 0; from < kPool; ++from) {
    for (int to = 0; to < kPool; ++to) {
      if (from != to) pool[to] = mixed(pool[to], hash(pool[from]));
    }
  }
  Hash last(0x8b51f9ddu, 0x58f38dedu);
  std::array<std::uint32_t, kWords> words{};
  for (int i = 0; i < kWords; ++i) words[i] = last(pool[i % kPool]);
  return words;
}

constexpr int kLayers = 256;
constexpr double kTailStart = 3.6541528853610087963519472518;
constexpr double kLayerArea = 0.0049286732339746519;
constexpr float kTailStartFloat = 3.6541528853610087963519472518f;
constexpr float kTailScale = 0.27366123732975827203338247596f;  // 1 / kTailStart
constexpr double kUnits = 8388608.0;  // 2^23 distances from 0 in a layer

// The layers of equal area under exp(-x²/2).
struct Layers {
  std::array<std::uint32_t, kLayers> inside{};  // distances below are under the curve for sure
  std::array<float, kLayers> width{};           // of one unit of distance
  std::array<float, kLayers> height{};          // of the curve at a layer's edge

  Layers() {
    const double tail = std::exp(-0.5 * kTailStart * kTailStart), base = kLayerArea / tail;
    inside[0] = units(kTailStart / base);
    width[0] = static_cast<float>(base / kUnits);
    height[0] = 1.0f;
    width[kLayers - 1] = static_cast<float>(kTailStart / kUnits);
    height[kLayers - 1] = static_cast<float>(tail);
    double edge = kTailStart;
    for (int i = kLayers - 2; i > 0; --i) {
      const double outer = edge;
      edge = std::sqrt(-2.0 * std::log(kLayerArea / outer + std::exp(-0.5 * outer * outer)));
      inside[i + 1] = units(edge / outer);
      width[i] = static_cast<float>(edge / kUnits);
      height[i] = static_cast<float>(std::exp(-0.5 * edge * edge));
    }
  }

 private:
  static std::uint32_t units(double share) { return static_cast<std::uint32_t>(std::lround(share * kUnits)); }
};

}  // namespace

Generator::Generator(std::uint64_t seed) {
  const auto words = seed_words(seed);
  const auto part = [&](int i) { return std::uint64_t{words[2 * i + 1]} << 32 | words[2 * i]; };
  increment_ = wide(part(2), part(3)) << 1 | 1;
  state_ = (increment_ + wide(part(0), part(1))) * kMultiplier + increment_;
}

std::uint64_t Generator::next64() {
  state_ = state_ * kMultiplier + increment_;
  const auto value = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
  const auto turn = static_cast<unsigned>(state_ >> 122);
  return value >> turn | value << (-turn & 63);
}

// The low half of a word first.
std::uint32_t Generator::next32() {
  has_kept_ = !has_kept_;
  if (!has_kept_) return kept_;
  const std::uint64_t both = next64();
  kept_ = static_cast<std::uint32_t>(both >> 32);
  return static_cast<std::uint32_t>(both);
}

void Generator::normal(float* values, std::size_t count) {
  static const Layers layers;
  const auto uniform = [this] { return static_cast<float>(next32() >> 8) * (1.0f / 16777216.0f); };
  const auto tail = [&] {
    for (;;) {
      const float beyond = -kTailScale * std::log1p(-uniform());
      const float limit = -std::log1p(-uniform());
      if (limit + limit > beyond * beyond) return kTailStartFloat + beyond;
    }
  };
  const auto one = [&] {
    for (;;) {
      const std::uint32_t bits = next32(), layer = bits & 0xff, distance = bits >> 9;
      const float size = static_cast<float>(distance) * layers.width[layer];
      const float value = bits & 0x100 ? -size : size;
      if (distance < layers.inside[layer]) return value;
      // numpy takes the sign of the tail from another bit
      if (layer == 0) return distance & 0x100 ? -tail() : tail();
      const float low = layers.height[layer], high = layers.height[layer - 1];
      if ((high - low) * uniform() + low < std::exp(-0.5 * value * value)) return value;
    }
  };
  for (std::size_t i = 0; i < count; ++i) values[i] = one();
}

std::uint64_t random_seed() {
  std::uint32_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != static_cast<ssize_t>(sizeof seed)) {
    input_error("The system gives no random numbers.", "Give a seed.");
  }
  return seed;
}

}  // namespace infid
