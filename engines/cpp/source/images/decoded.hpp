// What the decoders of photos return.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "infid/infid.hpp"

namespace infid {

using Bytes = std::vector<std::uint8_t>;

// Throws input if a photo has too many pixels; called before memory is taken for them.
void check_pixels(const std::string& name, std::uint64_t width, std::uint64_t height);

struct Decoded {
  Image image;       // as stored
  std::string exif;  // TIFF data, or empty
  std::string xmp;   // or empty
};

// Throw Malformed if a photo is damaged, and input with the sentences of `infid_export.faces.photos`.
Decoded read_png(const std::string& name, const Bytes& content);
Decoded read_jpeg(const std::string& name, const Bytes& content);

// How a photo is turned, 1 to 8 as in EXIF.
int orientation(const Decoded& photo);
// The image as a viewer shows it.
Image upright(Image image, int orientation);

}  // namespace infid
