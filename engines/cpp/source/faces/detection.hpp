// Face detection with five landmarks by CenterFace (Xu et al., arXiv 1911.03599) in ONNX Runtime, equal to
// `infid_export.faces.detection`.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/onnxruntime.hpp"
#include "faces/face.hpp"
#include "infid/infid.hpp"

namespace infid {

class CenterFaceDetector {
 public:
  // Throws input if the file is not a CenterFace model with dynamic image size.
  CenterFaceDetector(std::shared_ptr<OnnxRuntime> runtime, const std::string& path);

  // The faces of a photo, largest first.
  std::vector<Face> detect(const Image& photo) const;

 private:
  Face looked_at_again(const Image& photo, const Face& face) const;
  std::optional<Face> look(const Image& crop, const Face& sought, int size) const;
  std::vector<Face> at(const Image& photo, int long_side) const;
  std::vector<Tensor> run(const Image& small) const;

  std::string path_;
  OnnxSession session_;
};

// Only the best of several detections of one face.
std::vector<Face> without_repeats(std::vector<Face> found);

void sort_by_area(std::vector<Face>& faces);

}  // namespace infid
