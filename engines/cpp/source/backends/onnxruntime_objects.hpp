// ONNX Runtime's objects: errors as exceptions, ownership, and tensors as its values.
#pragma once

#include <string>
#include <utility>

#include "backends/onnxruntime_api.hpp"
#include "errors.hpp"
#include "tensor.hpp"

namespace infid {

// An object of the library, released with this.
class OrtObject {
 public:
  OrtObject() = default;
  OrtObject(OrtHandle handle, void (*release)(OrtHandle)) : handle_(handle), release_(release) {}
  OrtObject(OrtObject&& other) noexcept { *this = std::move(other); }
  OrtObject& operator=(OrtObject&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~OrtObject() {
    if (handle_ != nullptr) release_(handle_);
  }
  OrtHandle get() const { return handle_; }

 private:
  OrtHandle handle_ = nullptr;
  void (*release_)(OrtHandle) = nullptr;
};

// Throws Malformed with the library's message, written as the Python package writes it.
void check(const OrtTable& ort, OrtStatus status);

OrtObject cpu_memory(const OrtTable& ort);
// A tensor of ours as a value; it must outlive the value.
OrtObject borrowed(const OrtTable& ort, const OrtObject& memory, const TensorView& view);
// A copy of a value in host memory. Throws Malformed if its type is none of ours.
Tensor copied(const OrtTable& ort, const OrtObject& value);

int element_type(Dtype dtype);
// The shape in a TensorTypeAndShapeInfo.
Shape shape_of(const OrtTable& ort, OrtHandle info);

}  // namespace infid
