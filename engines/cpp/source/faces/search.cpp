// Finds the faces of a photo: in the whole photo, and if there are none, in tiles.
#include "faces/search.hpp"

#include <algorithm>
#include <cmath>

#include "faces/choice.hpp"
#include "faces/detection.hpp"
#include "faces/resampling.hpp"

namespace infid {
namespace {

constexpr int kFinest = 1280;     // side of the smallest tiles in pixels
constexpr double kShared = 0.2;  // overlap of neighboring tiles, relative to their side

// The sides of the tiles, largest first.
std::vector<int> sides(int longest) {
  std::vector<int> all;
  for (int side = longest / 2; side > 1.5 * kFinest; side /= 2) all.push_back(side);
  if (longest > kFinest) all.push_back(kFinest);
  return all;
}

// Where the tiles that cover an extent begin.
std::vector<int> starts(int extent, int side) {
  const int stride = static_cast<int>(side * (1 - kShared));
  const int last = std::max(0, extent - side), more = (last + stride - 1) / stride;
  std::vector<int> all = {0};
  const double step = static_cast<double>(last) / std::max(1, more);
  for (int i = 1; i < more; ++i) all.push_back(static_cast<int>(std::nearbyint(i * step)));
  if (more > 0) all.push_back(last);
  return all;
}

}  // namespace

std::vector<Face> find_faces(const Detect& detect, const Image& photo) {
  std::vector<Face> found = detect(photo);
  for (int side : sides(std::max(photo.width, photo.height))) {
    if (!plausible_faces(found, photo.width, photo.height).empty()) break;
    std::vector<Face> all;
    for (int top : starts(photo.height, side)) {
      for (int left : starts(photo.width, side)) {
        for (const Face& face : detect(cropped(photo, left, top, side, side))) all.push_back(face.moved(left, top));
      }
    }
    all.insert(all.end(), found.begin(), found.end());
    found = without_repeats(std::move(all));
    sort_by_area(found);
  }
  return found;
}

}  // namespace infid
