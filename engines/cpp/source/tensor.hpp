// Tensors in host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace infid {

enum class Dtype { float16, float32, int8, int32, int64, uint8 };

// numpy's name of a dtype, as in the manifest.
inline const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return "float16";
    case Dtype::float32: return "float32";
    case Dtype::int8: return "int8";
    case Dtype::int32: return "int32";
    case Dtype::uint8: return "uint8";
    default: return "int64";
  }
}

inline std::size_t dtype_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::int8:
    case Dtype::uint8: return 1;
    case Dtype::float16: return 2;
    case Dtype::int64: return 8;
    default: return 4;
  }
}

using Shape = std::vector<std::int64_t>;

inline std::size_t count_of(const Shape& shape) {
  std::size_t count = 1;
  for (std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  return count;
}

// "[2, 77, 64]", as Python writes a list.
inline std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// A tensor that somebody else owns, contiguous.
struct TensorView {
  Dtype dtype = Dtype::float32;
  Shape shape;
  const void* data = nullptr;

  std::size_t count() const { return count_of(shape); }
  std::size_t bytes() const { return count() * dtype_size(dtype); }
  template <class T>
  const T* as() const { return static_cast<const T*>(data); }
};

// A tensor with its memory, aligned to 64 bytes.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Dtype dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
    data_.reset(static_cast<std::byte*>(::operator new(bytes() ? bytes() : 1, std::align_val_t{64})));
  }
  Tensor(Dtype dtype, Shape shape, const void* content) : Tensor(dtype, std::move(shape)) {
    if (bytes()) std::memcpy(data(), content, bytes());
  }
  explicit Tensor(const TensorView& view) : Tensor(view.dtype, view.shape, view.data) {}

  Dtype dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::size_t count() const { return count_of(shape_); }
  std::size_t bytes() const { return count() * dtype_size(dtype_); }
  void* data() { return data_.get(); }
  const void* data() const { return data_.get(); }
  template <class T>
  T* as() { return reinterpret_cast<T*>(data_.get()); }
  template <class T>
  const T* as() const { return reinterpret_cast<const T*>(data_.get()); }
  TensorView view() const { return {dtype_, shape_, data_.get()}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  Dtype dtype_ = Dtype::float32;
  Shape shape_ = {0};
  std::unique_ptr<std::byte, Free> data_;
};

using Views = std::map<std::string, TensorView>;
using Tensors = std::map<std::string, Tensor>;

// A dimension of a graph's input or output: fixed if `least` == `most`; dynamic dimensions of graphs are 0.
struct Dimension {
  std::int64_t least = 0, usual = 0, most = 0;
  bool fixed() const { return least == most; }
};

// An input or output of a graph.
struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::float32;
  std::vector<Dimension> shape;
};

}  // namespace infid
