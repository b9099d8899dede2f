// Resampling of 8-bit RGB images, equal to Pillow's in every byte.
#include "faces/resampling.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace infid {
namespace {

constexpr int kChannels = 3;
constexpr int kWeightBits = 22;  // of the fixed-point weights of `resized`
constexpr std::int32_t kHalf = 1 << (kWeightBits - 1);

std::size_t place(const Image& image, int x, int y) {
  return (static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) + static_cast<std::size_t>(x)) *
         kChannels;
}

Image blank(int width, int height) {
  Image image;
  image.width = width, image.height = height;
  image.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * kChannels);
  return image;
}

// Weights of the pixels from `first` on that make up one pixel of the result.
struct Taps {
  int first = 0;
  std::vector<std::int32_t> weights;
};

// The triangle filter, widened where the image is made smaller.
std::vector<Taps> triangle_taps(int from, int to) {
  const double scale = static_cast<double>(from) / to, reach = std::max(scale, 1.0), narrow = 1.0 / reach;
  std::vector<Taps> all(static_cast<std::size_t>(to));
  std::vector<double> weights;
  for (int i = 0; i < to; ++i) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - reach + 0.5));
    const int end = std::min(from, static_cast<int>(center + reach + 0.5));
    double sum = 0;
    weights.clear();
    for (int x = first; x < end; ++x) {
      weights.push_back(std::max(0.0, 1.0 - std::abs((x - center + 0.5) * narrow)));
      sum += weights.back();
    }
    Taps& taps = all[static_cast<std::size_t>(i)];
    taps.first = first;
    for (double weight : weights) {
      const double share = sum != 0 ? weight / sum : weight;
      taps.weights.push_back(static_cast<std::int32_t>(0.5 + share * (1 << kWeightBits)));
    }
  }
  return all;
}

// Fixed-point sums as bytes.
std::uint8_t* put(const std::int32_t* sums, std::size_t count, std::uint8_t* out) {
  for (std::size_t i = 0; i < count; ++i) *out++ = static_cast<std::uint8_t>(std::min(sums[i] >> kWeightBits, 255));
  return out;
}

Image with_width(const Image& image, int width) {
  const std::vector<Taps> all = triangle_taps(image.width, width);
  Image result = blank(width, image.height);
  std::uint8_t* out = result.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    for (const Taps& taps : all) {
      const std::uint8_t* pixel = image.pixels.data() + place(image, taps.first, y);
      std::array<std::int32_t, kChannels> sums;
      sums.fill(kHalf);
      for (std::int32_t weight : taps.weights) {
        for (std::int32_t& sum : sums) sum += *pixel++ * weight;
      }
      out = put(sums.data(), sums.size(), out);
    }
  }
  return result;
}

Image with_height(const Image& image, int height) {
  const std::size_t row = static_cast<std::size_t>(image.width) * kChannels;
  Image result = blank(image.width, height);
  std::uint8_t* out = result.pixels.data();
  std::vector<std::int32_t> sums(row);
  for (const Taps& taps : triangle_taps(image.height, height)) {
    const std::uint8_t* pixel = image.pixels.data() + place(image, 0, taps.first);
    std::fill(sums.begin(), sums.end(), kHalf);
    for (std::int32_t weight : taps.weights) {
      for (std::size_t i = 0; i < row; ++i) sums[i] += *pixel++ * weight;
    }
    out = put(sums.data(), row, out);
  }
  return result;
}

// The cubic through four equidistant values, between the second and the third.
double cubic(double v1, double v2, double v3, double v4, double along) {
  const double slope = v3 - v1, bend = 2 * (v1 - v2) + v3 - v4, twist = v2 - v1 - v3 + v4;
  return v2 + along * (slope + along * (bend + along * twist));
}

// Pixels around a place, and where between them it is.
struct Around {
  std::array<std::size_t, 4> columns, rows;
  double across, down;
};

Around around(const Image& image, double x, double y) {
  const double left = std::floor(x - 0.5), top = std::floor(y - 0.5);
  Around found{{}, {}, x - 0.5 - left, y - 0.5 - top};
  for (int i = 0; i < 4; ++i) {
    const auto at = static_cast<std::size_t>(i);
    found.columns[at] = place(image, std::clamp(static_cast<int>(left) - 1 + i, 0, image.width - 1), 0);
    found.rows[at] = place(image, 0, std::clamp(static_cast<int>(top) - 1 + i, 0, image.height - 1));
  }
  return found;
}

std::uint8_t interpolated(const std::uint8_t* pixels, const Around& at) {
  std::array<double, 4> values;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint8_t* row = pixels + at.rows[i];
    values[i] = cubic(row[at.columns[0]], row[at.columns[1]], row[at.columns[2]], row[at.columns[3]], at.across);
  }
  const double value = cubic(values[0], values[1], values[2], values[3], at.down);
  return static_cast<std::uint8_t>(std::clamp(value, 0.0, 255.0));  // Pillow does not round here
}

}  // namespace

Image cropped(const Image& image, int left, int top, int width, int height) {
  Image result = blank(std::min(width, image.width - left), std::min(height, image.height - top));
  const std::size_t row = static_cast<std::size_t>(result.width) * kChannels;
  for (int y = 0; y < result.height; ++y) {
    std::memcpy(result.pixels.data() + place(result, 0, y), image.pixels.data() + place(image, left, top + y), row);
  }
  return result;
}

Image reduced(const Image& image, int factor) {
  if (factor == 1) return image;
  Image result = blank((image.width - 1) / factor + 1, (image.height - 1) / factor + 1);
  std::uint8_t* out = result.pixels.data();
  for (int top = 0; top < image.height; top += factor) {
    const int bottom = top + std::min(factor, image.height - top);
    for (int left = 0; left < image.width; left += factor) {
      const int right = left + std::min(factor, image.width - left);
      const auto count = static_cast<std::uint64_t>(right - left) * static_cast<std::uint64_t>(bottom - top);
      std::array<std::uint64_t, kChannels> sums;
      sums.fill(count / 2);
      for (int y = top; y < bottom; ++y) {
        const std::uint8_t* pixel = image.pixels.data() + place(image, left, y);
        for (int x = left; x < right; ++x) {
          for (std::uint64_t& sum : sums) sum += *pixel++;
        }
      }
      // Pillow divides by multiplication, which rounds a few sums down
      const std::uint64_t reciprocal = (std::uint64_t{1} << 24) / count;
      for (std::uint64_t sum : sums) *out++ = static_cast<std::uint8_t>(sum * reciprocal >> 24);
    }
  }
  return result;
}

Image resized(const Image& image, int width, int height) {
  // Each pass rounds, so their order matters. Pillow 13 has this rule, and earlier releases begin with the width.
  const bool height_first = height < image.height && image.height - height > 2 * (image.width - width);
  if (height_first) return resized(with_height(image, height), width, height);
  if (width != image.width) return resized(with_width(image, width), width, height);
  return height != image.height ? with_height(image, height) : image;
}

Image warped(const Image& image, int width, int height, const Affine& matrix) {
  Image result = blank(width, height);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const double from_x = matrix[0] * (x + 0.5) + matrix[1] * (y + 0.5) + matrix[2];
      const double from_y = matrix[3] * (x + 0.5) + matrix[4] * (y + 0.5) + matrix[5];
      if (!(from_x >= 0 && from_x < image.width && from_y >= 0 && from_y < image.height)) continue;
      const Around at = around(image, from_x, from_y);
      const std::uint8_t* from = image.pixels.data();
      std::uint8_t* to = result.pixels.data() + place(result, x, y);
      for (int channel = 0; channel < kChannels; ++channel) *to++ = interpolated(from++, at);
    }
  }
  return result;
}

}  // namespace infid
