// Turns photos as their EXIF data say: see decoded.hpp.
#include <cstring>
#include <optional>

#include "images/decoded.hpp"

namespace infid {
namespace {

constexpr std::uint32_t kOrientation = 0x0112;

// Numbers of a TIFF file, in its byte order; 0 behind its end.
class Tiff {
 public:
  explicit Tiff(const std::string& content) : content_(content), big_(content.compare(0, 2, "MM") == 0) {}

  bool is_valid() const { return (big_ || content_.compare(0, 2, "II") == 0) && number(2, 2) == 42; }

  std::uint32_t number(std::size_t place, std::size_t bytes) const {
    if (place > content_.size() || bytes > content_.size() - place) return 0;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      const auto byte = static_cast<unsigned char>(content_[place + i]);
      value |= std::uint32_t{byte} << 8 * (big_ ? bytes - 1 - i : i);
    }
    return value;
  }

 private:
  const std::string& content_;
  const bool big_;
};

// A single whole number of the first directory; the last one counts.
std::optional<std::uint32_t> exif_orientation(const std::string& exif) {
  const Tiff tiff(exif);
  if (!tiff.is_valid()) return std::nullopt;
  std::optional<std::uint32_t> found;
  std::size_t place = tiff.number(4, 4);
  const std::uint32_t entries = tiff.number(place, 2);
  place += 2;
  for (std::uint32_t i = 0; i < entries && place + 12 <= exif.size(); ++i, place += 12) {
    if (tiff.number(place, 2) != kOrientation) continue;
    const std::uint32_t type = tiff.number(place + 2, 2);
    const bool is_short = type == 3 || type == 8, is_long = type == 4 || type == 9;
    if (is_short || is_long) found = tiff.number(place + 4, 4) == 1 ? tiff.number(place + 8, is_short ? 2 : 4) : 1;
  }
  return found;
}

// The digit behind tiff:Orientation=" or tiff:Orientation>.
int xmp_orientation(const std::string& xmp) {
  const std::string name = "tiff:Orientation";
  for (std::size_t place = 0; (place = xmp.find(name, place)) != std::string::npos;) {
    place += name.size();
    const std::size_t mark = xmp.compare(place, 2, "=\"") == 0 ? 2 : xmp.compare(place, 1, ">") == 0 ? 1 : 0;
    const char digit = mark && place + mark < xmp.size() ? xmp[place + mark] : '\0';
    if (digit >= '0' && digit <= '9') return digit - '0';
  }
  return 1;
}

}  // namespace

int orientation(const Decoded& photo) {
  const auto found = exif_orientation(photo.exif);
  const std::uint32_t value = found ? *found : static_cast<std::uint32_t>(xmp_orientation(photo.xmp));
  return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
}

Image upright(Image image, int orientation) {
  if (orientation == 1) return image;
  const bool swaps = orientation >= 5;  // rows become columns
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image found{swaps ? image.height : image.width, swaps ? image.width : image.height, Bytes(image.pixels.size())};
  std::uint8_t* pixel = found.pixels.data();
  for (int y = 0; y < found.height; ++y) {
    for (int x = 0; x < found.width; ++x, pixel += 3) {
      const int across = swaps ? y : x, down = swaps ? x : y;
      const int column = from_right ? image.width - 1 - across : across;
      const int row = from_below ? image.height - 1 - down : down;
      const auto place = static_cast<std::size_t>(row) * static_cast<std::size_t>(image.width);
      std::memcpy(pixel, &image.pixels[(place + static_cast<std::size_t>(column)) * 3], 3);
    }
  }
  return found;
}

}  // namespace infid
