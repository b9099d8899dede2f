// From a photo to the inputs of the identity encoder: detect, align, recognize.
#include "faces/reader.hpp"

#include "errors.hpp"
#include "faces/alignment.hpp"
#include "faces/choice.hpp"
#include "faces/detection.hpp"
#include "faces/recognition.hpp"
#include "faces/search.hpp"

namespace infid {
namespace {

constexpr std::int64_t kMaxPixels = 100'000'000;
// The note at each enrollment with a folder that was built with `--detector drawn`.
const char* const kDrawnOnly =
    "These engines find faces with the demo model's detector, which knows drawn people only; for photos, build the "
    "folder again with --detector centerface.";

void check_photo(const Image& photo) {
  const std::int64_t pixels = static_cast<std::int64_t>(photo.width) * photo.height;
  if (photo.width <= 0 || photo.height <= 0 || photo.pixels.size() != static_cast<std::size_t>(pixels) * 3) {
    input_error("A photo must have three bytes per pixel, but this one has " + std::to_string(photo.pixels.size()) +
                    " bytes for " + std::to_string(photo.width) + " × " + std::to_string(photo.height) + " pixels.",
                "Convert it to 8-bit RGB.");
  }
  if (pixels > kMaxPixels) {
    input_error("the image is larger than 100 megapixels (" + std::to_string(photo.width) + " × " +
                    std::to_string(photo.height) + ").",
                "Scale the photo down first.");
  }
}

// [1, 3, size, size] in [0, 1].
Tensor unit_tensor(const Image& image) {
  Tensor tensor(Dtype::float32, {1, 3, image.height, image.width});
  const std::size_t pixels = image.pixels.size() / 3;
  for (std::size_t i = 0; i < image.pixels.size(); ++i) {
    tensor.as<float>()[i % 3 * pixels + i / 3] = static_cast<float>(image.pixels[i]) / 255;
  }
  return tensor;
}

}  // namespace

struct FaceReader::Parts {
  CenterFaceDetector detector;
  ArcFaceRecognizer recognizer;
  int crop_size;
  std::string limits;
};

FaceReader::FaceReader(std::shared_ptr<OnnxRuntime> runtime, const std::string& detector,
                       const std::string& recognizer, int crop_size, int width, bool drawn_only)
    : parts_(new Parts{{runtime, detector}, {runtime, recognizer, width}, crop_size, drawn_only ? kDrawnOnly : ""}) {}

FaceReader::~FaceReader() = default;

const std::string& FaceReader::limits() const { return parts_->limits; }

FaceInputs FaceReader::read(const Image& photo, std::optional<int> face) const {
  check_photo(photo);
  const auto detect = [this](const Image& image) { return parts_->detector.detect(image); };
  const std::vector<Face> found = find_faces(detect, photo);
  const Face chosen = choose_face(found, face, photo.width, photo.height, parts_->limits);
  const Image crop = align(photo, chosen.landmarks, portrait_template(), parts_->crop_size);
  const Image aligned = align(photo, chosen.landmarks, arcface_template(), ArcFaceRecognizer::kSize);
  return {unit_tensor(crop), parts_->recognizer.embed(aligned)};
}

}  // namespace infid
