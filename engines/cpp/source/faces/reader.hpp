// From a photo to the inputs of the identity encoder, equal to `infid_export.faces`.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/onnxruntime.hpp"
#include "infid/infid.hpp"
#include "tensor.hpp"

namespace infid {

struct FaceInputs {
  Tensor face_crop;       // [1, 3, size, size] float32 RGB in [0, 1]
  Tensor face_embedding;  // [1, width] float32, L2-normalized
};

class FaceReader {
 public:
  // Paths of verified files; `crop_size` and `width` are the last extents of the identity encoder's inputs.
  // Throws input if a model cannot be used. Its sessions are made as in `infid_export.faces`.
  FaceReader(std::shared_ptr<OnnxRuntime> runtime, const std::string& detector, const std::string& recognizer,
             int crop_size, int width, bool drawn_only);
  ~FaceReader();

  // The limits of its detector as a sentence, or empty.
  const std::string& limits() const;
  // Throws input, with Python's sentences. `face`: index into the plausible faces.
  FaceInputs read(const Image& photo, std::optional<int> face) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace infid
