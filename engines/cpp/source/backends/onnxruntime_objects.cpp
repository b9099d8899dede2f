#include "backends/onnxruntime_objects.hpp"

#include <array>
#include <optional>

namespace infid {
namespace {

// The library's error codes, from 1, as its Python package names them.
constexpr std::array<const char*, 11> kCodes = {"FAIL", "INVALID_ARGUMENT", "NO_SUCHFILE", "NO_MODEL", "ENGINE_ERROR",
                                                "RUNTIME_EXCEPTION", "INVALID_PROTOBUF", "MODEL_LOADED",
                                                "NOT_IMPLEMENTED", "INVALID_GRAPH", "EP_FAIL"};

// The library's numbers of element types, in the order of our dtypes.
constexpr std::array<int, 6> kTypes = {10, 1, 3, 6, 7, 2};

std::optional<Dtype> dtype_of(int type) {
  for (std::size_t i = 0; i < kTypes.size(); ++i) {
    if (kTypes[i] == type) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

}  // namespace

void check(const OrtTable& ort, OrtStatus status) {
  if (status == nullptr) return;
  const int code = ort.GetErrorCode(status);
  const bool known = code >= 1 && code <= static_cast<int>(kCodes.size());
  const std::string name = known ? kCodes[static_cast<std::size_t>(code - 1)] : "GENERAL ERROR";
  std::string message = "[ONNXRuntimeError] : " + std::to_string(code) + " : " + name + " : " +
                        ort.GetErrorMessage(status);
  ort.ReleaseStatus(status);
  throw Malformed(message);
}

OrtObject cpu_memory(const OrtTable& ort) {
  constexpr int kArenaAllocator = 1, kDefaultMemory = 0;
  OrtHandle memory = nullptr;
  check(ort, ort.CreateMemoryInfo("Cpu", kArenaAllocator, 0, kDefaultMemory, &memory));
  return {memory, ort.ReleaseMemoryInfo};
}

int element_type(Dtype dtype) { return kTypes[static_cast<std::size_t>(dtype)]; }

OrtObject borrowed(const OrtTable& ort, const OrtObject& memory, const TensorView& view) {
  OrtHandle value = nullptr;
  check(ort, ort.CreateTensorWithDataAsOrtValue(memory.get(), const_cast<void*>(view.data), view.bytes(),
                                                view.shape.data(), view.shape.size(), element_type(view.dtype),
                                                &value));
  return {value, ort.ReleaseValue};
}

Shape shape_of(const OrtTable& ort, OrtHandle info) {
  std::size_t rank = 0;
  check(ort, ort.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  check(ort, ort.GetDimensions(info, shape.data(), rank));
  return shape;
}

Tensor copied(const OrtTable& ort, const OrtObject& value) {
  OrtHandle info = nullptr;
  check(ort, ort.GetTensorTypeAndShape(value.get(), &info));
  const OrtObject held(info, ort.ReleaseTensorTypeAndShapeInfo);
  int type = 0;
  check(ort, ort.GetTensorElementType(info, &type));
  const auto dtype = dtype_of(type);
  if (!dtype) throw Malformed("an output has a type that is not supported");
  void* data = nullptr;
  check(ort, ort.GetTensorMutableData(value.get(), &data));
  return Tensor(*dtype, shape_of(ort, info), data);
}

}  // namespace infid
