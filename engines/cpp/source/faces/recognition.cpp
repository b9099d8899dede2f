// Face recognition with an ArcFace-type ONNX model.
#include "faces/recognition.hpp"

#include <array>
#include <cmath>
#include <optional>

#include "errors.hpp"
#include "faces/model_files.hpp"
#include "folder/safetensors.hpp"

namespace infid {
namespace {

constexpr int kFloat = 1, kUint8 = 2;  // ONNX's element types

// Whether an input's channels are its last dimension; none if it does not take such a face.
std::optional<bool> layout(const Shape& shape) {
  const std::int64_t side = ArcFaceRecognizer::kSize;
  for (bool last : {false, true}) {
    const std::array<std::int64_t, 4> wanted = {1, last ? side : 3, side, last ? 3 : side};
    bool fits = shape.size() == wanted.size();
    for (std::size_t i = 0; fits && i < wanted.size(); ++i) fits = shape[i] < 0 || shape[i] == wanted[i];
    if (fits) return last;
  }
  return std::nullopt;
}

std::string takes(const OnnxSession& session) {
  std::string all;
  for (const std::string& name : session.inputs()) {
    all += (all.empty() ? "" : ", ") + shape_text(session.input(name).shape);
  }
  return all;
}

}  // namespace

ArcFaceRecognizer::ArcFaceRecognizer(std::shared_ptr<OnnxRuntime> runtime, const std::string& path, int width)
    : path_(path), session_(open_onnx(std::move(runtime), path)), width_(width) {
  const OnnxInput given = session_.inputs().size() == 1 ? session_.input(session_.inputs()[0]) : OnnxInput();
  const std::optional<bool> last = layout(given.shape);
  bytes_ = given.element_type == kUint8;
  if (!last || (!bytes_ && given.element_type != kFloat)) {
    input_error(path + " takes [" + takes(session_) + "], not [N, 3, 112, 112] in fp32.",
                "Use an ArcFace-type recognizer.");
  }
  channels_last_ = *last;
  range_ = bytes_ ? kRaw : read_range();
  run({kSize, kSize, std::vector<std::uint8_t>(kSize * kSize * 3)});  // checks the output's shape
}

PixelRange ArcFaceRecognizer::read_range() const {
  try {
    const MappedFile file(path_);
    return expected_range(file.data(), file.size(), session_.inputs()[0]);
  } catch (const Malformed&) {
    input_error(path_ + " is not an ONNX model in protobuf's format.", "Use the recognizer's .onnx file.");
  }
}

// The face in the range, type and layout that the model takes.
Tensor ArcFaceRecognizer::input(const Image& aligned) const {
  const Shape shape = channels_last_ ? Shape{1, kSize, kSize, 3} : Shape{1, 3, kSize, kSize};
  Tensor tensor(bytes_ ? Dtype::uint8 : Dtype::float32, shape);
  const double step = 255 / (range_.high - range_.low);  // pixel values per unit
  const auto shift = static_cast<float>(range_.low * step), unit = static_cast<float>(step);
  const std::size_t pixels = static_cast<std::size_t>(kSize) * kSize;
  for (std::size_t from = 0; from < aligned.pixels.size(); ++from) {
    const std::size_t to = channels_last_ ? from : from % 3 * pixels + from / 3;
    if (bytes_) {
      tensor.as<std::uint8_t>()[to] = aligned.pixels[from];
    } else {
      tensor.as<float>()[to] = (static_cast<float>(aligned.pixels[from]) + shift) / unit;
    }
  }
  return tensor;
}

Tensor ArcFaceRecognizer::run(const Image& aligned) const {
  const Tensor face = input(aligned);
  Tensors outputs = run_onnx(session_, path_, {{session_.inputs()[0], face.view()}});
  std::string returned;
  for (const std::string& name : session_.outputs()) {
    returned += (returned.empty() ? "" : ", ") + shape_text(outputs.at(name).shape());
  }
  Tensor& first = outputs.begin()->second;
  if (outputs.size() != 1 || first.dtype() != Dtype::float32 || first.shape() != Shape{1, width_}) {
    input_error(path_ + " returns [" + returned + "], not [N, " + std::to_string(width_) + "].",
                "Use the recognizer that the identity weights were trained with.");
  }
  return std::move(first);
}

Tensor ArcFaceRecognizer::embed(const Image& aligned) const {
  Tensor embedding = run(aligned);
  double sum = 0;
  for (int i = 0; i < width_; ++i) sum += std::pow(static_cast<double>(embedding.as<float>()[i]), 2);
  const double length = std::sqrt(sum);
  if (!std::isfinite(length) || length == 0) {
    input_error("The recognizer returned no usable embedding (its norm is " + python_number(length) + ").",
                "Check the recognizer's ONNX file.");
  }
  for (int i = 0; i < width_; ++i) {
    float& value = embedding.as<float>()[i];
    value = static_cast<float>(static_cast<double>(value) / length);
  }
  return embedding;
}

}  // namespace infid
