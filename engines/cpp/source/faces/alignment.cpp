// Five-point similarity alignment of a face to a fixed frame.
#include "faces/alignment.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace infid {
namespace {

constexpr double kPortraitScale = 0.6;  // share of the image encoder's crop that the ArcFace frame fills

Landmarks scaled(const Landmarks& points, double scale, double shift) {
  Landmarks result;
  for (std::size_t i = 0; i < points.size(); ++i) {
    result[i] = {points[i].x * scale + shift, points[i].y * scale + shift};
  }
  return result;
}

Point center(const Landmarks& points) {
  Point sum;
  for (const Point& point : points) sum.x += point.x, sum.y += point.y;
  return {sum.x / points.size(), sum.y / points.size()};
}

// The inverse of a similarity transform.
Affine inverse(const Affine& matrix) {
  const double determinant = matrix[0] * matrix[4] - matrix[1] * matrix[3];
  const double a = matrix[4] / determinant, b = -matrix[1] / determinant;
  const double d = -matrix[3] / determinant, e = matrix[0] / determinant;
  return {a, b, -(a * matrix[2] + b * matrix[5]), d, e, -(d * matrix[2] + e * matrix[5])};
}

}  // namespace

const Landmarks& arcface_template() {
  static const Landmarks points = [] {
    Landmarks pixels{{{38.2946, 51.6963}, {73.5318, 51.5014}, {56.0252, 71.7366}, {41.5493, 92.3655},
                      {70.7299, 92.2041}}};
    for (Point& point : pixels) point = {point.x / 112, point.y / 112};
    return pixels;
  }();
  return points;
}

const Landmarks& portrait_template() {
  static const Landmarks points = scaled(scaled(arcface_template(), 1, -0.5), kPortraitScale, 0.5);
  return points;
}

Affine similarity(const Landmarks& source, const Landmarks& target) {
  const Point from = center(source), to = center(target);
  // In two dimensions, the rotation that Umeyama takes from a singular value decomposition is the direction of these
  // two sums.
  double along = 0, across = 0, spread = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const double x = source[i].x - from.x, y = source[i].y - from.y;
    const double u = target[i].x - to.x, v = target[i].y - to.y;
    along += u * x + v * y;
    across += v * x - u * y;
    spread += x * x + y * y;
  }
  const double a = along / spread, b = across / spread;
  return {a, -b, to.x - (a * from.x - b * from.y), b, a, to.y - (b * from.x + a * from.y)};
}

Point applied(const Affine& matrix, const Point& point) {
  return {matrix[0] * point.x + matrix[1] * point.y + matrix[2], matrix[3] * point.x + matrix[4] * point.y + matrix[5]};
}

Image align(const Image& photo, const Landmarks& landmarks, const Landmarks& frame, int size) {
  const Affine fitted = similarity(landmarks, scaled(frame, size, 0));
  const double shrink = 1 / std::hypot(fitted[0], fitted[3]);  // photo pixels per crop pixel
  int finer = 1;
  Landmarks points = landmarks;
  Image smaller;
  const Image* image = &photo;
  if (shrink > 1) {
    // An affine warp samples single points and would alias. So average whole pixels first, which leaves a factor below
    // 2, and warp the result to twice the size.
    const int whole = static_cast<int>(std::min<double>(shrink, std::numeric_limits<std::int16_t>::max()));
    finer = 2;
    smaller = reduced(photo, whole);
    image = &smaller;
    for (Point& point : points) point = {(point.x + 0.5) / whole - 0.5, (point.y + 0.5) / whole - 0.5};
  }
  // pixel centers are at ½ in a warp's coordinates, and at 0 in the landmarks'
  const Landmarks goal = scaled(scaled(frame, size, 0.5), finer, 0);
  const Affine matrix = inverse(similarity(scaled(points, 1, 0.5), goal));
  return reduced(warped(*image, size * finer, size * finer, matrix), finer);
}

}  // namespace infid
