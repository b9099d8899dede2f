// Face recognition with an ArcFace-type ONNX model (Deng et al., arXiv 1801.07698), equal to
// `infid_export.faces.recognition`.
#pragma once

#include <memory>
#include <string>

#include "backends/onnxruntime.hpp"
#include "faces/onnx_start.hpp"
#include "infid/infid.hpp"
#include "tensor.hpp"

namespace infid {

class ArcFaceRecognizer {
 public:
  static constexpr int kSize = 112;

  // Throws input if the model has other shapes. That it tells faces apart was checked when the folder was built.
  ArcFaceRecognizer(std::shared_ptr<OnnxRuntime> runtime, const std::string& path, int width);

  // The L2-normalized [1, width] float32 embedding of an aligned face. Throws input if it is zero or not finite.
  Tensor embed(const Image& aligned) const;

 private:
  PixelRange read_range() const;
  Tensor input(const Image& aligned) const;
  Tensor run(const Image& aligned) const;

  std::string path_;
  OnnxSession session_;
  int width_;
  bool channels_last_ = false, bytes_ = false;
  PixelRange range_ = kRaw;
};

}  // namespace infid
