// How an ONNX face model scales pixels in its first nodes, equal to `infid_export.faces.onnx_start`.
#pragma once

#include <cstddef>
#include <string>

namespace infid {

// A range that a photo's pixels can be scaled to: the lowest and the highest value.
struct PixelRange {
  const char* name;
  double low, high;
};

inline constexpr PixelRange kSigned = {"signed", -1, 1}, kUnit = {"unit", 0, 1}, kRaw = {"raw", 0, 255};

// The range of pixels that a face model expects. The linear operations at its start are followed. The input of the
// first layer should be centered and of about unit size, so the range that comes closest to this is the model's. A
// model without such operations expects [-1, 1]. Throws Malformed.
PixelRange expected_range(const std::byte* model, std::size_t size, const std::string& input);

}  // namespace infid
