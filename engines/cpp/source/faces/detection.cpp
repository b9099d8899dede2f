// Face detection with five landmarks by CenterFace. The numbers and the measurements behind them are those of
// `infid_export.faces.detection`.
#include "faces/detection.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "errors.hpp"
#include "faces/exponential.hpp"
#include "faces/model_files.hpp"
#include "faces/resampling.hpp"

namespace infid {
namespace {

constexpr int kLongSides[] = {480, 960};   // at which a photo is searched
constexpr int kLooks[] = {96, 128, 160};   // face sizes in pixels at which detection is repeated
constexpr int kMoreLooks[] = {64, 80, 192};  // further sizes, only for averaging the score
constexpr double kCertain = 0.9;           // a score that needs no confirmation
constexpr double kSurroundings = 1.0;      // margin on each side for repeated detection, relative to the face's size
constexpr float kThreshold = 0.5f;
constexpr double kOverlap = 0.3;   // intersection over union
constexpr double kCoincide = 0.5;  // of the eye distance
constexpr int kLargestLook = 4096;  // pixels; only a box far smaller than a pixel needs more, and that is no face
constexpr int kMultiple = 32;      // of which the network's image size must be
constexpr std::array<std::int64_t, 4> kChannels = {1, 2, 2, 10};  // of heatmap, scale, offset, landmarks
const char* const kFix = "Build the engine folder again.";

std::string not_centerface(const std::string& path) {
  return path + " is not a CenterFace model with dynamic image size.";
}

// Intersection over union of two boxes.
double overlap(const Box& first, const Box& second) {
  const double width = std::min(first.right, second.right) - std::max(first.left, second.left);
  const double height = std::min(first.bottom, second.bottom) - std::max(first.top, second.top);
  const double shared = std::max(width, 0.0) * std::max(height, 0.0);
  const double whole = first.width() * first.height() + second.width() * second.height() - shared;
  return whole > 0 ? shared / whole : 0.0;
}

// Whether boxes overlap or landmarks coincide; a face that fills the photo is also found in nested boxes.
bool same_face(const Face& first, const Face& second) {
  double apart = 0;
  for (std::size_t i = 0; i < first.landmarks.size(); ++i) apart += distance(first.landmarks[i], second.landmarks[i]);
  apart /= static_cast<double>(first.landmarks.size());
  return overlap(first.box, second.box) > kOverlap || apart < kCoincide * second.eye_distance();
}

// The photo as the network's input, padded and not stretched, so that landmarks keep their proportions.
Tensor padded(const Image& image) {
  const auto up = [](int extent) { return (extent + kMultiple - 1) / kMultiple * kMultiple; };
  const int height = up(image.height), width = up(image.width);
  Tensor tensor(Dtype::float32, {1, 3, height, width});
  std::fill_n(tensor.as<float>(), tensor.count(), 0.0f);
  const std::uint8_t* pixel = image.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        tensor.as<float>()[(static_cast<std::ptrdiff_t>(channel) * height + y) * width + x] = *pixel++;
      }
    }
  }
  return tensor;
}

// The detection of one cell of CenterFace's maps; a cell is 4 × 4 pixels. What is float32 in Python is float here.
Face decoded(const std::vector<Tensor>& maps, std::size_t cell, std::size_t row, std::size_t column) {
  const std::size_t cells = maps[0].count();
  const auto value = [&](std::size_t map, std::size_t channel) {
    return maps[map].as<float>()[channel * cells + cell];
  };
  const float height = numpy_exp(value(1, 0)) * 4, width = numpy_exp(value(1, 1)) * 4;
  const double center_y = (static_cast<double>(row) + static_cast<double>(value(2, 0)) + 0.5) * 4;
  const double center_x = (static_cast<double>(column) + static_cast<double>(value(2, 1)) + 0.5) * 4;
  Face face;
  face.score = value(0, 0);
  face.box.left = center_x - static_cast<double>(width / 2);
  face.box.top = center_y - static_cast<double>(height / 2);
  face.box.right = face.box.left + static_cast<double>(width);
  face.box.bottom = face.box.top + static_cast<double>(height);
  for (std::size_t i = 0; i < face.landmarks.size(); ++i) {
    const float down = value(3, 2 * i) * height, across = value(3, 2 * i + 1) * width;
    face.landmarks[i] = {static_cast<double>(across) + face.box.left, static_cast<double>(down) + face.box.top};
  }
  return face;
}

// The network's coordinates count from the first pixel's corner, a face's from its center.
Face stretched(Face face, double across, double down) {
  face.box = {face.box.left * across - 0.5, face.box.top * down - 0.5, face.box.right * across - 0.5,
              face.box.bottom * down - 0.5};
  for (Point& point : face.landmarks) point = {point.x * across - 0.5, point.y * down - 0.5};
  return face;
}

int rounded(double value) { return static_cast<int>(std::nearbyint(value)); }

// The mean of several detections' landmarks.
Landmarks mean_landmarks(const std::vector<Landmarks>& all) {
  Landmarks sum = all[0];
  const auto count = static_cast<double>(all.size());
  for (std::size_t i = 0; i < sum.size(); ++i) {
    for (std::size_t look = 1; look < all.size(); ++look) sum[i].x += all[look][i].x, sum[i].y += all[look][i].y;
    sum[i] = {sum[i].x / count, sum[i].y / count};
  }
  return sum;
}

}  // namespace

CenterFaceDetector::CenterFaceDetector(std::shared_ptr<OnnxRuntime> runtime, const std::string& path)
    : path_(path), session_(open_onnx(std::move(runtime), path)) {
  const Shape shape = session_.inputs().size() == 1 ? session_.input(session_.inputs()[0]).shape : Shape();
  if (shape.size() != 4 || shape[1] != 3 || shape[2] >= 0 || session_.outputs().size() != kChannels.size()) {
    input_error(not_centerface(path), kFix);
  }
  run({kMultiple, kMultiple, std::vector<std::uint8_t>(kMultiple * kMultiple * 3)});  // checks the outputs' shapes
}

std::vector<Face> CenterFaceDetector::detect(const Image& photo) const {
  const int longest = std::max(photo.width, photo.height);
  std::vector<Face> found;
  int before = 0;
  for (int side : kLongSides) {
    side = std::min(side, longest);
    if (side == before) continue;
    for (const Face& face : at(photo, side)) found.push_back(face);
    before = side;
  }
  std::vector<Face> faces = without_repeats(std::move(found));
  for (Face& face : faces) face = looked_at_again(photo, face);
  sort_by_area(faces);
  return faces;
}

// The face with landmarks and score averaged over detections at the network's best sizes. A repetition that does not
// find the face counts as a score of 0.
Face CenterFaceDetector::looked_at_again(const Image& photo, const Face& face) const {
  const double x = (face.box.left + face.box.right) / 2, y = (face.box.top + face.box.bottom) / 2;
  const double reach = std::max(face.box.width(), face.box.height()) * (0.5 + kSurroundings);
  const double left = std::trunc(std::max(x - reach, 0.0)), top = std::trunc(std::max(y - reach, 0.0));
  const double right = std::trunc(std::min<double>(x + reach + 1, photo.width));
  const double bottom = std::trunc(std::min<double>(y + reach + 1, photo.height));
  if (!(right - left >= 2 && bottom - top >= 2)) return face;  // also where a value is not finite
  const Image crop = cropped(photo, static_cast<int>(left), static_cast<int>(top), static_cast<int>(right - left),
                             static_cast<int>(bottom - top));
  const Face sought = face.moved(-left, -top);
  std::vector<Landmarks> marks;
  double scores = 0;
  for (int size : kLooks) {
    const std::optional<Face> found = look(crop, sought, size);
    if (!found) continue;
    marks.push_back(found->moved(left, top).landmarks);
    scores += found->score;
  }
  Face result = face;
  if (!marks.empty()) result.landmarks = mean_landmarks(marks);
  if (face.score >= kCertain) return result;
  for (int size : kMoreLooks) {
    const std::optional<Face> found = look(crop, sought, size);
    scores += found ? found->score : 0.0;
  }
  result.score = scores / static_cast<double>(std::size(kLooks) + std::size(kMoreLooks));
  return result;
}

// A face as detected at another size in pixels; none if it is not found.
std::optional<Face> CenterFaceDetector::look(const Image& crop, const Face& sought, int size) const {
  const double side = std::max(crop.width, crop.height) * static_cast<double>(size) /
                      std::max(sought.box.width(), sought.box.height());
  if (!(side < kLargestLook)) return std::nullopt;
  std::optional<Face> best;
  double most = kOverlap;
  for (const Face& face : at(crop, std::max(32, rounded(side)))) {
    const double shared = overlap(face.box, sought.box);
    if (shared > most) best = face, most = shared;
  }
  return best;
}

// Detect at one resolution.
std::vector<Face> CenterFaceDetector::at(const Image& photo, int long_side) const {
  const double scale = static_cast<double>(long_side) / std::max(photo.width, photo.height);
  const Image small =
      resized(photo, std::max(1, rounded(photo.width * scale)), std::max(1, rounded(photo.height * scale)));
  const std::vector<Tensor> maps = run(small);
  const double across = static_cast<double>(photo.width) / small.width;
  const double down = static_cast<double>(photo.height) / small.height;
  const auto columns = static_cast<std::size_t>(maps[0].shape()[3]);
  std::vector<Face> faces;
  for (std::size_t cell = 0; cell < maps[0].count(); ++cell) {
    if (!(maps[0].as<float>()[cell] > kThreshold)) continue;
    faces.push_back(stretched(decoded(maps, cell, cell / columns, cell % columns), across, down));
  }
  return faces;
}

// The network's maps: heatmap, scale, offset, landmarks.
std::vector<Tensor> CenterFaceDetector::run(const Image& small) const {
  const Tensor input = padded(small);
  Tensors outputs = run_onnx(session_, path_, {{session_.inputs()[0], input.view()}});
  std::vector<Tensor> maps;
  for (const std::string& name : session_.outputs()) maps.push_back(std::move(outputs.at(name)));
  for (std::size_t i = 0; i < maps.size(); ++i) {
    const Shape& shape = maps[i].shape();
    const bool fits = shape.size() == 4 && shape[0] == 1 && shape[1] == kChannels[i];
    if (!fits || maps[i].dtype() != Dtype::float32 || shape[2] != maps[0].shape()[2] ||
        shape[3] != maps[0].shape()[3]) {
      input_error(not_centerface(path_), kFix);
    }
  }
  return maps;
}

std::vector<Face> without_repeats(std::vector<Face> found) {
  std::stable_sort(found.begin(), found.end(), [](const Face& a, const Face& b) { return a.score > b.score; });
  std::vector<Face> kept;
  for (const Face& face : found) {
    const bool is_new =
        std::none_of(kept.begin(), kept.end(), [&face](const Face& other) { return same_face(face, other); });
    if (is_new) kept.push_back(face);
  }
  return kept;
}

void sort_by_area(std::vector<Face>& faces) {
  // an order must exist for a damaged detector's values, too
  const auto area = [](const Face& face) { return std::isnan(face.area()) ? -1.0 : face.area(); };
  std::stable_sort(faces.begin(), faces.end(), [&](const Face& a, const Face& b) { return area(a) > area(b); });
}

}  // namespace infid
