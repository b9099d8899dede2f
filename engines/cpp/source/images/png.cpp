// Writes PNG files.
#include <png.h>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"
#include "infid/infid.hpp"

namespace infid {
namespace {

constexpr int kMostSide = 1'000'000;  // libpng's limit

void check_image(const Image& image) {
  const bool has_size = image.width > 0 && image.height > 0 && image.width <= kMostSide && image.height <= kMostSide;
  const std::uint64_t bytes = static_cast<std::uint64_t>(image.width) * static_cast<std::uint64_t>(image.height) * 3;
  if (has_size && image.pixels.size() == bytes) return;
  input_error("An image of " + std::to_string(image.width) + " × " + std::to_string(image.height) + " pixels has " +
                  std::to_string(image.pixels.size()) + " bytes.",
              "Give three bytes per pixel.");
}

}  // namespace

std::vector<std::uint8_t> Image::png() const {
  check_image(*this);
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(width);
  header.height = static_cast<png_uint_32>(height);
  header.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(header);
  std::vector<std::uint8_t> content(size);
  if (!png_image_write_to_memory(&header, content.data(), &size, 0, pixels.data(), 0, nullptr)) {
    input_error(std::string("The image cannot be written as PNG (") + header.message + ").", "Give a smaller image.");
  }
  content.resize(size);
  return content;
}

void Image::save(const std::string& path) const {
  const std::string target = path_of("The path of an image", path, "Give the path of a file.");
  const std::vector<std::uint8_t> content = png();
  try {
    write_file(target, {content.begin(), content.end()});
  } catch (const Malformed& error) {
    input_error(target + " cannot be written (" + error.what() + ").", "Choose another path.");
  }
}

}  // namespace infid
