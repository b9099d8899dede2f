// Converts a photo's color space to sRGB with Little CMS, which Pillow uses too: see decoded.hpp.
#include <lcms2.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "images/decoded.hpp"

namespace infid {
namespace {

// A profile that changes no color by more than this is sRGB: converting would only add rounding.
constexpr int kRounding = 2;
// Adobe RGB (1998): its gamma, and the matrix from its linear light to sRGB's.
constexpr double kAdobeGamma = 563.0 / 256.0;
constexpr float kAdobeToSrgb[3][3] = {
    {1.39836f, -0.39836f, 0.0f}, {0.0f, 1.0f, 0.0f}, {0.0f, -0.04293f, 1.04293f}};

using Profile = std::unique_ptr<void, cmsBool (*)(cmsHPROFILE)>;
using Transform = std::unique_ptr<void, void (*)(cmsHTRANSFORM)>;

// From 8-bit samples to RGB, with Pillow's intent and flags; null if the profile cannot be used for them.
Transform transform_of(cmsHPROFILE profile, const std::string& space, int samples) {
  cmsUInt32Number format = 0;
  if (samples == 1 && space == "GRAY") format = TYPE_GRAY_8;
  if (samples == 3 && space == "RGB ") format = TYPE_RGB_8;
  if (samples == 4 && space == "CMYK") format = TYPE_CMYK_8;
  if (format == 0) return {nullptr, cmsDeleteTransform};
  const Profile srgb(cmsCreate_sRGBProfile(), cmsCloseProfile);
  return {cmsCreateTransform(profile, format, srgb.get(), TYPE_RGB_8, INTENT_PERCEPTUAL, 0), cmsDeleteTransform};
}

bool changes_nothing(cmsHTRANSFORM transform) {
  constexpr int steps = 9;
  std::uint8_t levels[steps];
  for (int i = 0; i < steps; ++i) levels[i] = static_cast<std::uint8_t>(std::nearbyint(255.0 / (steps - 1) * i));
  Bytes colors;
  for (const auto red : levels) {
    for (const auto green : levels) {
      for (const auto blue : levels) colors.insert(colors.end(), {red, green, blue});
    }
  }
  Bytes moved(colors.size());
  cmsDoTransform(transform, colors.data(), moved.data(), static_cast<cmsUInt32Number>(colors.size() / 3));
  return std::equal(colors.begin(), colors.end(), moved.begin(),
                    [](int before, int after) { return std::abs(before - after) <= kRounding; });
}

// Gray as equal red, green and blue; CMYK as Pillow converts it.
void convert_plain(Decoded& photo) {
  if (photo.samples == 3) return;
  const auto samples = static_cast<std::size_t>(photo.samples);
  Bytes rgb(photo.pixels.size() / samples * 3);
  const std::uint8_t* sample = photo.pixels.data();
  for (std::size_t i = 0; i < rgb.size(); i += 3, sample += samples) {
    if (samples == 1) {
      std::fill_n(&rgb[i], 3, *sample);
      continue;
    }
    const unsigned white = 255u - sample[3];
    for (std::size_t part = 0; part < 3; ++part) {
      const unsigned product = sample[part] * white + 128;
      rgb[i + part] = static_cast<std::uint8_t>(white - (((product >> 8) + product) >> 8));
    }
  }
  photo.pixels = std::move(rgb);
  photo.samples = 3;
}

void convert_by_profile(Decoded& photo) {
  const std::string& content = *photo.profile;
  const Profile profile(cmsOpenProfileFromMem(content.data(), static_cast<cmsUInt32Number>(content.size())),
                        cmsCloseProfile);
  if (!profile) return convert_plain(photo);
  const std::string space = content.substr(16, 4);  // cmsGetColorSpace has a type that cannot hold all values in C++
  if (photo.samples == 1 && space == "RGB ") convert_plain(photo);
  const Transform transform = transform_of(profile.get(), space, photo.samples);
  if (!transform || (photo.samples == 3 && changes_nothing(transform.get()))) return convert_plain(photo);
  const auto width = static_cast<std::size_t>(photo.width);
  const std::size_t row = width * static_cast<std::size_t>(photo.samples);
  Bytes apart(photo.samples == 3 ? 0 : width * 3 * static_cast<std::size_t>(photo.height));
  Bytes& rgb = photo.samples == 3 ? photo.pixels : apart;
  for (std::size_t y = 0; y < static_cast<std::size_t>(photo.height); ++y) {
    cmsDoTransform(transform.get(), &photo.pixels[y * row], &rgb[y * width * 3], static_cast<cmsUInt32Number>(width));
  }
  if (photo.samples != 3) photo.pixels = std::move(apart);
  photo.samples = 3;
}

std::uint8_t encoded(float light) {
  light = std::clamp(light, 0.0f, 1.0f);
  const float value =
      light <= 0.0031308f ? 12.92f * light : 1.055f * std::pow(light, static_cast<float>(1 / 2.4)) - 0.055f;
  return static_cast<std::uint8_t>(std::nearbyint(value * 255.0f));
}

void convert_from_adobe_rgb(Bytes& pixels) {
  std::array<float, 256> light{};
  for (std::size_t i = 0; i < 256; ++i) {
    light[i] = static_cast<float>(std::pow(static_cast<double>(i) / 255.0, kAdobeGamma));
  }
  for (std::size_t i = 0; i < pixels.size(); i += 3) {
    const float red = light[pixels[i]], green = light[pixels[i + 1]], blue = light[pixels[i + 2]];
    for (std::size_t part = 0; part < 3; ++part) {
      const float* factors = kAdobeToSrgb[part];
      pixels[i + part] = encoded(std::fma(blue, factors[2], std::fma(green, factors[1], red * factors[0])));
    }
  }
}

// Rounded as Pillow does.
void lay_on_white(Bytes& pixels, const Bytes& alpha) {
  for (std::size_t i = 0; i < alpha.size(); ++i) {
    for (std::size_t part = i * 3; part < i * 3 + 3; ++part) {
      const unsigned sum = 255u * (255u - alpha[i]) + unsigned{pixels[part]} * alpha[i] + 128u;
      pixels[part] = static_cast<std::uint8_t>((sum + (sum >> 8)) >> 8);
    }
  }
}

}  // namespace

Image to_srgb(Decoded photo) {
  const bool may_be_adobe_rgb = !photo.profile && photo.samples == 3;
  if (photo.profile && !photo.profile->empty()) {
    convert_by_profile(photo);
  } else {
    convert_plain(photo);
  }
  if (may_be_adobe_rgb && notes_adobe_rgb(photo)) convert_from_adobe_rgb(photo.pixels);
  lay_on_white(photo.pixels, photo.alpha);
  return {photo.width, photo.height, std::move(photo.pixels)};
}

}  // namespace infid
