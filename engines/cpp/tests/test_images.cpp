// Images as files; the Python tests compare photos with Pillow.
#include <doctest/doctest.h>


#include "errors.hpp"
#include "images/decoded.hpp"

using namespace infid;

TEST_CASE("an image is the same after it was a PNG file") {
  Image image{3, 2, {}};
  for (std::uint8_t i = 0; i < 18; ++i) image.pixels.push_back(static_cast<std::uint8_t>(i * 13));
  const Decoded found = read_png("it", image.png());
  CHECK(found.width == 3);
  CHECK(found.height == 2);
  CHECK(found.pixels == image.pixels);
}

TEST_CASE("an image without the pixels that it claims is an input error") {
  for (const Image& image : {Image{}, Image{2, 2, Bytes(11)}, Image{2, 2, Bytes(13)}, Image{-2, -2, Bytes(12)},
                             Image{2000000, 1, Bytes(6000000)}, Image{65536, 65536, {}}}) {
    CHECK_THROWS_AS(image.png(), Error);
  }
}

TEST_CASE("each orientation turns an image") {
  // 1 2 3
  // 4 5 6
  const auto turned = [](int orientation) {
    Image image{3, 2, {}};
    for (int i = 1; i <= 6; ++i) image.pixels.insert(image.pixels.end(), 3, static_cast<std::uint8_t>(i));
    const Image found = upright(image, orientation);
    CHECK(found.width == (orientation < 5 ? 3 : 2));
    std::string text;
    for (std::size_t i = 0; i < found.pixels.size(); i += 3) text += static_cast<char>('0' + found.pixels[i]);
    return text;
  };
  const char* expected[] = {"123456", "321654", "654321", "456123", "142536", "415263", "635241", "362514"};
  for (int i = 0; i < 8; ++i) CHECK(turned(i + 1) == expected[i]);
}

TEST_CASE("orientation data of any kind do no harm") {
  const std::string ii("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", 22);
  Decoded photo;
  photo.exif = ii;
  CHECK(orientation(photo) == 6);
  photo.may_have_broken_exif = true;
  for (std::size_t end = 0; end < ii.size(); ++end) {
    photo.exif = ii.substr(0, end);
    CHECK(orientation(photo) == 1);
    CHECK_FALSE(notes_adobe_rgb(photo));
  }
  photo.may_have_broken_exif = false;
  photo.exif = ii.substr(0, 7);
  CHECK_THROWS_WITH_AS(orientation(photo), "unpack requires a buffer of 4 bytes", Malformed);
  photo.exif = "II* and more";
  CHECK_THROWS_WITH_AS(orientation(photo), "not a TIFF file (header b'II* and ' not valid)", Malformed);
  photo.exif = std::string("II*\0\xff\xff\xff\xff", 8);
  photo.xmp = "tiff:Orientation tiff:Orientation=\"8\"";
  CHECK(orientation(photo) == 8);
  photo.xmp = "tiff:Orientation=\"";
  CHECK(orientation(photo) == 1);
}

TEST_CASE("a photo that is not there is an input error") {
  CHECK_THROWS_WITH_AS(Image::load(""), "A photo must be a path, not ''. Give one photo.", Error);
  CHECK_THROWS_WITH_AS(Image::load(std::string("a\0b", 3)), doctest::Contains("There is no photo at"), Error);
}
