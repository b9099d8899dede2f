// The exponential function in float32, equal to numpy's in every bit. With the C library's, the crops or embeddings of
// 20 of 51 photos of drawn people had other last bits: embeddings by up to 6e-5 of their largest value.
#include "faces/exponential.hpp"

#include <cmath>
#include <initializer_list>

namespace infid {
namespace {

// On processors with AVX2, numpy takes a rational approximation, elsewhere the C library's function.
bool approximates() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_avx2;
#else
  return false;
#endif
}

// exp(rest) for |rest| ≤ ½ log 2, as a quotient of polynomials.
float near_one(float rest) {
  float numerator = 5.082762527590693718096e-04f;
  for (float coefficient : {6.757896990527504603057e-03f, 5.114512081637298353406e-02f, 2.473615434895520810817e-01f,
                            7.257664613233124478488e-01f, 9.999999999980870924916e-01f}) {
    numerator = std::fma(numerator, rest, coefficient);
  }
  float denominator = std::fma(2.159509375685829852307e-02f, rest, -2.742335390411667452936e-01f);
  denominator = std::fma(denominator, rest, 1.0f);
  return numerator / denominator;
}

}  // namespace

float numpy_exp(float value) {
  constexpr float kLargest = 88.0f, kSmallest = -87.0f;  // beyond, the result is near the limits of float32
  if (!approximates() || !(value > kSmallest && value < kLargest)) return std::exp(value);
  const float power = std::nearbyint(value * 1.44269504088896341f);
  // log 2 in two parts, so that the difference keeps its last bits
  const float rest = std::fma(power, -1.42860677e-6f, std::fma(power, -6.93145752e-1f, value));
  return std::ldexp(near_one(rest), static_cast<int>(power));
}

}  // namespace infid
