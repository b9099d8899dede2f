// A detected face.
#include "faces/face.hpp"

#include <cmath>

namespace infid {

double distance(const Point& first, const Point& second) {
  const double x = first.x - second.x, y = first.y - second.y;
  return std::sqrt(x * x + y * y);
}

double Face::eye_distance() const { return distance(landmarks[1], landmarks[0]); }

Face Face::moved(double x, double y) const {
  Face face = *this;
  face.box = {box.left + x, box.top + y, box.right + x, box.bottom + y};
  for (Point& point : face.landmarks) point = {point.x + x, point.y + y};
  return face;
}

}  // namespace infid
