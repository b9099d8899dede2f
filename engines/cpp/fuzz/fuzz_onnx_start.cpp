// The reader of an ONNX file's first nodes.
#include <cstddef>
#include <cstdint>

#include "errors.hpp"
#include "faces/onnx_start.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    infid::expected_range(reinterpret_cast<const std::byte*>(data), size, "face");
  } catch (const infid::Malformed&) {
  }
  return 0;
}
