// Numbers of 16 bits, converted as numpy does: to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace infid {

inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;
  std::uint32_t bits = 0;
  float value = 0;
  if (exponent == 0) {  // subnormal: exact as an integer times 2^-24
    value = static_cast<float>(fraction) * 0x1p-24F;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  }
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint16_t half_of_float(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {  // NaN, whose fraction must not become 0
    const std::uint32_t fraction = bits >> 13 & 0x3ff;
    return static_cast<std::uint16_t>(sign | 0x7c00 | (fraction == 0 ? 1 : fraction));
  }
  if (bits >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (bits < 0x38800000) {  // subnormal, or zero: adding 0.5 leaves the fraction rounded in the last bits
    float shifted = 0;
    std::memcpy(&shifted, &bits, sizeof shifted);
    shifted += 0.5F;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<std::uint16_t>(sign | (bits - 0x38000000) >> 13);
}

}  // namespace infid
