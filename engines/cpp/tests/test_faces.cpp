// Resampling, alignment and the choice of a face.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "errors.hpp"
#include "faces/alignment.hpp"
#include "faces/choice.hpp"
#include "faces/detection.hpp"
#include "faces/onnx_start.hpp"
#include "faces/resampling.hpp"
#include "faces/search.hpp"

using namespace infid;

namespace {

// Pixels that differ from their neighbors, from 1 on.
Image numbered(int width, int height) {
  Image image{width, height, {}};
  for (int i = 0; i < width * height * 3; ++i) image.pixels.push_back(static_cast<std::uint8_t>(1 + i * 37 % 255));
  return image;
}

// A face with ArcFace's proportions.
Face face(double score, double side, double left = 200, double top = 150) {
  Face found{{left, top, left + side, top + side}, score, arcface_template()};
  for (Point& point : found.landmarks) point = {point.x * side + left, point.y * side + top};
  return found;
}

Affine turn(double degrees, double scale, double x, double y) {
  const double angle = degrees * std::acos(-1.0) / 180;
  return {scale * std::cos(angle), -scale * std::sin(angle), x, scale * std::sin(angle), scale * std::cos(angle), y};
}

std::string problem_of(const std::vector<Face>& faces, std::optional<int> index) {
  try {
    choose_face(faces, index, 640, 480, "It sees drawings only.");
  } catch (const Error& error) {
    return error.problem() + " " + error.fix();
  }
  return "";
}

}  // namespace

TEST_CASE("an image that keeps its size keeps its pixels") {
  const Image image = numbered(7, 5);
  CHECK(resized(image, 7, 5).pixels == image.pixels);
  CHECK(reduced(image, 1).pixels == image.pixels);
  CHECK(warped(image, 7, 5, {1, 0, 0, 0, 1, 0}).pixels == image.pixels);
}

TEST_CASE("reduce averages blocks, also those that the image cuts off") {
  const Image image{3, 2, {10, 0, 0, 20, 0, 0, 7, 1, 255, 30, 0, 0, 41, 0, 0, 8, 1, 255}};
  const Image small = reduced(image, 2);
  CHECK(small.width == 2);
  CHECK(small.height == 1);
  CHECK(small.pixels == std::vector<std::uint8_t>{25, 0, 0, 8, 1, 255});
  CHECK(reduced(image, 100).pixels.size() == 3);
}

TEST_CASE("a constant image stays constant at any size") {
  const Image gray{31, 17, std::vector<std::uint8_t>(31 * 17 * 3, 201)};
  for (const auto& [width, height] : {std::pair{1, 1}, std::pair{5, 40}, std::pair{100, 3}, std::pair{16, 9}}) {
    const Image other = resized(gray, width, height);
    CHECK(other.pixels == std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3), 201));
  }
}

TEST_CASE("a warp is black outside the image") {
  const Image moved = warped(numbered(4, 4), 4, 4, {1, 0, 2, 0, 1, 0});
  for (int y = 0; y < 4; ++y) {
    CHECK(moved.pixels[static_cast<std::size_t>(y * 12 + 3)] != 0);
    for (int x = 6; x < 12; ++x) CHECK(moved.pixels[static_cast<std::size_t>(y * 12 + x)] == 0);
  }
  const Image nowhere = warped(numbered(4, 4), 2, 2, {std::nan(""), 0, 0, 0, 1, 0});
  CHECK(nowhere.pixels == std::vector<std::uint8_t>(12, 0));
}

TEST_CASE("a crop ends where the image does") {
  const Image image = numbered(5, 4);
  const Image part = cropped(image, 3, 2, 10, 10);
  CHECK(part.width == 2);
  CHECK(part.height == 2);
  CHECK(part.pixels[0] == image.pixels[(2 * 5 + 3) * 3]);
}

TEST_CASE("similarity recovers a known transform and never mirrors") {
  for (double degrees : {0.0, 30.0, -75.0, 180.0}) {
    const Affine known = turn(degrees, 13, 5, -7);
    Landmarks target = arcface_template();
    for (Point& point : target) point = applied(known, point);
    const Affine found = similarity(arcface_template(), target);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(found[i] == doctest::Approx(known[i]).epsilon(1e-12));
  }
  Landmarks mirrored = arcface_template();
  for (Point& point : mirrored) point.x = -point.x;
  const Affine found = similarity(arcface_template(), mirrored);
  CHECK(found[0] * found[4] - found[1] * found[3] > 0);
}

TEST_CASE("what cannot be a face is rejected with the reason") {
  CHECK(doubt(face(0.9, 100), 640, 480).empty());
  CHECK(doubt(face(0.59, 100), 640, 480) == "its score is 0.59, but at least 0.60 is needed");
  CHECK(doubt(face(0.9, 100, -60), 640, 480) == "a part of it is outside the photo");
  CHECK(doubt(face(std::nan(""), 100), 640, 480) == "its coordinates or its score are not finite");
  CHECK(doubt(face(0.9, 0), 640, 480) == "its mouth is not below its eyes");
  CHECK(problem_of({}, {}) ==
        "No face was found in the photo (640 × 480). Use a sharp, upright photo with a face seen from the front. It "
        "sees drawings only.");
  CHECK(problem_of({face(0.9, 100)}, 1).rfind("The photo (640 × 480) has 1 face(s), so there is no face 1.", 0) == 0);
  CHECK(problem_of({face(0.9, 30)}, {}).rfind("The face in the photo (640 × 480) is too small: 9 pixels", 0) == 0);
}

TEST_CASE("size does not beat a far better score") {
  const Face rocket = face(0.62, 150), person = face(0.95, 80, 20);
  CHECK(choose_face({rocket, person}, {}, 640, 480, "").score == person.score);
  CHECK(choose_face({rocket, person}, 1, 640, 480, "").score == rocket.score);
  CHECK(choose_face({face(0.85, 150), person}, 0, 640, 480, "").score == 0.85);
}

TEST_CASE("of several detections of one face the best remains") {
  const std::vector<Face> kept = without_repeats({face(0.7, 100), face(0.9, 104), face(0.8, 50, 20, 20)});
  REQUIRE(kept.size() == 2);
  CHECK(kept[0].score == 0.9);
  CHECK(kept[1].score == 0.8);
}

TEST_CASE("a large photo is searched in tiles until there is a face") {
  int shown = 0;
  const Detect detect = [&shown](const Image& image) {
    ++shown;
    return image.width > 1280 ? std::vector<Face>() : std::vector<Face>{face(0.9, 100)};
  };
  CHECK(find_faces(detect, numbered(1500, 1300)).size() == 2);
  CHECK(shown == 1 + 2 * 2);
  shown = 0;
  CHECK(find_faces(detect, numbered(640, 480)).size() == 1);
  CHECK(shown == 1);
}

TEST_CASE("a model whose nodes form a circle, and one that is cut off, are malformed") {
  const std::string node = std::string("\x0a\x01") + "f\x12\x01" + "f\x22\x08" + "Identity";
  const std::string graph = std::string("\x0a") + static_cast<char>(node.size()) + node;
  const std::string model = std::string("\x3a") + static_cast<char>(graph.size()) + graph;
  const auto range = [&model](std::size_t size, const std::string& input) {
    return expected_range(reinterpret_cast<const std::byte*>(model.data()), size, input);
  };
  CHECK(std::string(range(model.size(), "other").name) == "signed");
  CHECK_THROWS_AS(range(model.size(), "f"), Malformed);
  for (std::size_t size = 0; size < model.size(); ++size) CHECK_THROWS_AS(range(size, "other"), Malformed);
}
