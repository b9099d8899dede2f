// Photos as their decoders return them, and what makes sRGB images of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "infid/infid.hpp"

namespace infid {

using Bytes = std::vector<std::uint8_t>;

// Throws input if a photo has too many pixels; called before memory is taken for them.
void check_pixels(const std::string& name, std::uint64_t width, std::uint64_t height);

struct Decoded {
  int width = 0;
  int height = 0;
  int samples = 3;                     // per pixel: 1 for gray, 3 for RGB, 4 for CMYK
  Bytes pixels;                        // as stored; of CMYK, 255 is most ink
  Bytes alpha;                         // one per pixel, or empty
  std::optional<std::string> profile;  // ICC; empty if it says nothing
  std::string exif;                    // TIFF data, with or without the mark `Exif`, or empty
  std::string xmp;                     // or empty
  bool may_have_broken_exif = false;   // it is ignored, with the XMP data
};

// Throw Malformed if a photo is damaged, and input with the sentences of `infid_export.faces.photos`.
Decoded read_png(const std::string& name, const Bytes& content);
Decoded read_jpeg(const std::string& name, const Bytes& content);

// How a photo is turned, 1 to 8 as in EXIF. Throws Malformed if the EXIF data are broken, as the next one.
int orientation(const Decoded& photo);
// Whether a camera notes that the colors are Adobe RGB.
bool notes_adobe_rgb(const Decoded& photo);

// The sRGB colors on white, equal to `infid_export.faces.color`. As there, a profile that cannot be used is ignored.
Image to_srgb(Decoded photo);
// The image as a viewer shows it.
Image upright(Image image, int orientation);

}  // namespace infid
