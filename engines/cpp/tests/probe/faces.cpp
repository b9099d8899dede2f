// The parts of faces/, each for many cases in one process: a line of stdin is one case.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "errors.hpp"
#include "faces/alignment.hpp"
#include "faces/choice.hpp"
#include "faces/exponential.hpp"
#include "faces/onnx_start.hpp"
#include "faces/reader.hpp"
#include "faces/resampling.hpp"
#include "faces/search.hpp"
#include "probe.hpp"

namespace {

using namespace infid;

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A photo's raw pixels, after their path, width and height.
Image read_image(std::istream& line) {
  std::string path;
  Image image;
  line >> path >> image.width >> image.height;
  const std::string content = content_of(path);
  image.pixels.assign(content.begin(), content.end());
  return image;
}

// Also `nan` and `inf`, which streams do not read.
double read_number(std::istream& line) {
  std::string word;
  line >> word;
  return std::stod(word);
}

Landmarks read_points(std::istream& line) {
  Landmarks points;
  for (Point& point : points) point.x = read_number(line), point.y = read_number(line);
  return points;
}

Face read_face(std::istream& line) {
  Face face;
  face.score = read_number(line);
  for (double* side : {&face.box.left, &face.box.top, &face.box.right, &face.box.bottom}) *side = read_number(line);
  face.landmarks = read_points(line);
  return face;
}

void write(const std::string& path, std::initializer_list<std::pair<const void*, std::size_t>> parts) {
  std::ofstream file(path, std::ios::binary);
  for (const auto& [data, size] : parts) file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

void write(const std::string& path, const Image& image) { write(path, {{image.pixels.data(), image.pixels.size()}}); }

template <class Case>
void for_each_line(const Case& run) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    try {
      run(words);
    } catch (const Error& error) {
      std::printf("%s %s\n", error.problem().c_str(), error.fix().c_str());
    }
  }
}

// LIBRARY DETECTOR RECOGNIZER CROP WIDTH DRAWN; a line: OUT PIXELS WIDTH HEIGHT [FACE]
const Probe read{"faces", [](const auto& words) {
  const FaceReader reader(OnnxRuntime::open(words[0]), words[1], words[2], std::stoi(words[3]), std::stoi(words[4]),
                          words[5] == "drawn");
  for_each_line([&reader](std::istream& line) {
    std::string out;
    line >> out;
    const Image photo = read_image(line);
    int face = 0;
    const bool chosen = static_cast<bool>(line >> face);
    const FaceInputs found = reader.read(photo, chosen ? std::optional<int>(face) : std::nullopt);
    write(out, {{found.face_crop.data(), found.face_crop.bytes()},
                {found.face_embedding.data(), found.face_embedding.bytes()}});
    std::printf("read\n");
  });
}};

// A line: OUT PIXELS WIDTH HEIGHT, then `reduce` FACTOR, `resize` WIDTH HEIGHT, `warp` WIDTH HEIGHT and six numbers, or
// `align` SIZE and ten
const Probe resample{"resampling", [](const auto&) {
  for_each_line([](std::istream& line) {
    std::string out, what;
    line >> out;
    const Image photo = read_image(line);
    int first = 0, second = 0;
    line >> what >> first;
    if (what == "reduce") return write(out, reduced(photo, first));
    if (what == "align") return write(out, align(photo, read_points(line), portrait_template(), first));
    line >> second;
    if (what == "resize") return write(out, resized(photo, first, second));
    Affine matrix;
    for (double& value : matrix) line >> value;
    write(out, warped(photo, first, second, matrix));
  });
}};

// A line: ten numbers from, ten numbers to
const Probe similar{"similarity", [](const auto&) {
  for_each_line([](std::istream& line) {
    const Landmarks from = read_points(line);
    for (double value : similarity(from, read_points(line))) std::printf("%.17g ", value);
    std::printf("\n");
  });
}};

// A line: WIDTH HEIGHT INDEX COUNT, and 15 numbers for each face; prints the box of the chosen one
const Probe choose{"choice", [](const auto& words) {
  for_each_line([&words](std::istream& line) {
    int width = 0, height = 0, index = 0, count = 0;
    line >> width >> height >> index >> count;
    std::vector<Face> faces;
    for (int i = 0; i < count; ++i) faces.push_back(read_face(line));
    const std::optional<int> asked = index == -100 ? std::nullopt : std::optional<int>(index);
    const Face face = choose_face(faces, asked, width, height, words.empty() ? "" : words[0]);
    std::printf("%.17g %.17g\n", face.box.left, face.box.top);
  });
}};

// A line: WIDTH HEIGHT, and nothing is found; prints the sizes of the images that the detector sees
const Probe searched{"search", [](const auto&) {
  for_each_line([](std::istream& line) {
    Image photo;
    line >> photo.width >> photo.height;
    photo.pixels.resize(static_cast<std::size_t>(photo.width) * static_cast<std::size_t>(photo.height) * 3);
    for (std::size_t i = 0; i < photo.pixels.size(); ++i) photo.pixels[i] = static_cast<std::uint8_t>(i / 3 % 251);
    find_faces([](const Image& image) {
      std::printf("%dx%d:%d ", image.width, image.height, image.pixels[0]);
      return std::vector<Face>();
    }, photo);
    std::printf("\n");
  });
}};

// A line: MODEL INPUT
const Probe range{"onnx_start", [](const auto&) {
  for_each_line([](std::istream& line) {
    std::string path, input;
    line >> path >> input;
    const std::string model = content_of(path);
    try {
      std::printf("%s\n", expected_range(reinterpret_cast<const std::byte*>(model.data()), model.size(), input).name);
    } catch (const Malformed&) {
      std::printf("malformed\n");
    }
  });
}};

// FLOATS OUT: two files of float32
const Probe exponential{"exponential", [](const auto& words) {
  const std::string content = content_of(words[0]);
  std::vector<float> values(content.size() / sizeof(float));
  std::memcpy(values.data(), content.data(), values.size() * sizeof(float));
  for (float& value : values) value = numpy_exp(value);
  write(words[1], {{values.data(), values.size() * sizeof(float)}});
}};

}  // namespace
