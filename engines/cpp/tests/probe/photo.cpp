// Photos.
#include <cstdio>

#include "infid/infid.hpp"
#include "probe.hpp"

namespace {

// photos PIXELS PATH…: for each path its width and height, and its pixels in the file PIXELS, one after the other; or
// the sentences of an error.
void photos(const std::vector<std::string>& words) {
  std::FILE* file = std::fopen(words.at(0).c_str(), "wb");
  for (std::size_t i = 1; i < words.size(); ++i) {
    try {
      const infid::Image image = infid::Image::load(words[i]);
      std::fwrite(image.pixels.data(), 1, image.pixels.size(), file);
      std::printf("%d %d\n", image.width, image.height);
    } catch (const infid::Error& error) {
      std::printf("%s|%s\n", error.problem().c_str(), error.fix().c_str());
    }
  }
  std::fclose(file);
}

// save WIDTH HEIGHT PATH: an image in which each byte is its place modulo 251.
void save(const std::vector<std::string>& words) {
  infid::Image image{std::stoi(words.at(0)), std::stoi(words.at(1)), {}};
  for (int i = 0; i < image.width * image.height * 3; ++i) image.pixels.push_back(static_cast<std::uint8_t>(i % 251));
  image.save(words.at(2));
}

const Probe photos_probe{"photos", photos};
const Probe save_probe{"save", save};

}  // namespace
