// Turns images: see decoded.hpp.
#include <cstring>

#include "images/decoded.hpp"

namespace infid {

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
