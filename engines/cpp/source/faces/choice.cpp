// Chooses the face of a photo: which detections are plausible, their order, and the one to use. The numbers and the
// measurements behind them are those of `infid_export.faces.choice`.
#include "faces/choice.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "errors.hpp"
#include "faces/alignment.hpp"

namespace infid {
namespace {

constexpr double kMinEyeDistance = 12.0;  // pixels
constexpr double kMinScore = 0.6;
constexpr double kFarLower = 0.15;  // a larger face with a score lower by more than this goes behind a smaller one
constexpr double kMaxMisfit = 0.35;  // in eye distances
constexpr double kOutside = 0.25;    // how far outside the photo a landmark may be, in eye distances
const char* const kFix = "Use a sharp, upright photo with a face seen from the front.";

std::string two_digits(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

bool is_finite(const Face& face) {
  bool finite = std::isfinite(face.score) && std::isfinite(face.box.left) && std::isfinite(face.box.top) &&
                std::isfinite(face.box.right) && std::isfinite(face.box.bottom);
  for (const Point& point : face.landmarks) finite = finite && std::isfinite(point.x) && std::isfinite(point.y);
  return finite;
}

// The distance of landmarks from ArcFace's frame after fitting, in eye distances.
double misfit(const Landmarks& marks) {
  const Landmarks& frame = arcface_template();
  const Affine matrix = similarity(marks, frame);
  double sum = 0;
  for (std::size_t i = 0; i < marks.size(); ++i) {
    const double apart = distance(applied(matrix, marks[i]), frame[i]);
    sum += apart * apart;
  }
  return std::sqrt(sum / marks.size()) / distance(frame[1], frame[0]);
}

bool is_outside(const Face& face, int width, int height) {
  const double reach = kOutside * face.eye_distance();
  return std::any_of(face.landmarks.begin(), face.landmarks.end(), [&](const Point& point) {
    return point.x < -reach || point.y < -reach || point.x > width - 1 + reach || point.y > height - 1 + reach;
  });
}

std::string why_none(const std::vector<Face>& faces, int width, int height) {
  const auto likeliest = std::max_element(faces.begin(), faces.end(),
                                          [](const Face& a, const Face& b) { return a.score < b.score; });
  if (likeliest == faces.end()) return "";
  return ": the best of " + std::to_string(faces.size()) + " detection(s) is not one, " +
         doubt(*likeliest, width, height);
}

}  // namespace

std::string doubt(const Face& face, int width, int height) {
  if (!is_finite(face)) return "its coordinates or its score are not finite";
  if (face.score < kMinScore) {
    return "its score is " + two_digits(face.score) + ", but at least " + two_digits(kMinScore) + " is needed";
  }
  const Landmarks& marks = face.landmarks;
  if ((marks[3].y + marks[4].y) / 2 <= (marks[0].y + marks[1].y) / 2) return "its mouth is not below its eyes";
  if (face.eye_distance() == 0 || misfit(marks) > kMaxMisfit) {
    return "eyes, nose and mouth are not placed as in a face seen from the front";
  }
  return is_outside(face, width, height) ? "a part of it is outside the photo" : "";
}

std::vector<Face> plausible_faces(const std::vector<Face>& faces, int width, int height) {
  std::vector<Face> kept;
  double best = 0;
  for (const Face& face : faces) {
    if (!doubt(face, width, height).empty()) continue;
    best = kept.empty() ? face.score : std::max(best, face.score);
    kept.push_back(face);
  }
  std::stable_sort(kept.begin(), kept.end(), [best](const Face& a, const Face& b) {
    const bool a_lower = a.score < best - kFarLower, b_lower = b.score < best - kFarLower;
    return a_lower != b_lower ? b_lower : a.area() > b.area();
  });
  return kept;
}

Face choose_face(const std::vector<Face>& faces, std::optional<int> index, int width, int height,
                 const std::string& limits) {
  const std::string photo = "photo (" + std::to_string(width) + " × " + std::to_string(height) + ")";
  const std::vector<Face> plausible = plausible_faces(faces, width, height);
  if (plausible.empty()) {
    input_error("No face was found in the " + photo + why_none(faces, width, height) + ".",
                limits.empty() ? kFix : std::string(kFix) + " " + limits);
  }
  const int count = static_cast<int>(plausible.size());
  if (index && (*index < 0 || *index >= count)) {
    input_error("The " + photo + " has " + std::to_string(count) + " face(s), so there is no face " +
                    std::to_string(*index) + ".",
                "Choose a face index from 0 (the default) to " + std::to_string(count - 1) + ".");
  }
  const Face& face = plausible[static_cast<std::size_t>(index.value_or(0))];
  if (face.eye_distance() < kMinEyeDistance) {
    input_error("The face in the " + photo + " is too small: " +
                    std::to_string(static_cast<int>(face.eye_distance())) +
                    " pixels between the eyes, but at least 12 are needed.",
                "Use a closer or larger photo.");
  }
  return face;
}

}  // namespace infid
