// numpy's random numbers, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infid {

// numpy.random.default_rng(seed): SeedSequence, PCG64, and the ziggurat of float32 normals.
class Generator {
 public:
  explicit Generator(std::uint64_t seed);
  // The next values of `standard_normal(dtype=float32)`.
  void normal(float* values, std::size_t count);

 private:
  std::uint32_t next32();
  std::uint64_t next64();
  __extension__ using Wide = unsigned __int128;
  Wide state_, increment_;
  std::uint32_t kept_ = 0;
  bool has_kept_ = false;
};

// A seed from the operating system's entropy, of 32 bits.
std::uint64_t random_seed();

}  // namespace infid
