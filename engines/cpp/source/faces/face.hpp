// A detected face.
#pragma once

#include <array>

namespace infid {

struct Point {
  double x = 0, y = 0;
};

// Left eye, right eye, nose, left and right mouth corner; left is the image's left.
using Landmarks = std::array<Point, 5>;

// A rectangle in pixels of the photo.
struct Box {
  double left = 0, top = 0, right = 0, bottom = 0;

  double width() const { return right - left; }
  double height() const { return bottom - top; }
};

// A detected face, in pixels of the photo, which count from the center of the first pixel.
struct Face {
  Box box;
  double score = 0;  // the detector's confidence, 0 to 1
  Landmarks landmarks;

  double area() const { return box.width() * box.height(); }
  double eye_distance() const;
  // The face in a photo that begins at another pixel.
  Face moved(double x, double y) const;
};

double distance(const Point& first, const Point& second);

}  // namespace infid
