// Photos of any bytes, by their first byte PNG or JPEG.
#include "errors.hpp"
#include "images/decoded.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* content, std::size_t size) {
  if (size == 0) return 0;
  const infid::Bytes photo(content, content + size);
  try {
    infid::Decoded found = photo[0] == 0xff ? infid::read_jpeg("it", photo) : infid::read_png("it", photo);
    const int turned = infid::orientation(found);
    infid::upright(infid::to_srgb(std::move(found)), turned);
  } catch (const infid::Malformed&) {
  } catch (const infid::Error&) {
  }
  return 0;
}
