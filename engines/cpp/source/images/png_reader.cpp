// Reads PNG files: see decoded.hpp. Samples become 8-bit RGB as Pillow converts them, transparency becomes white.
#include <png.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <optional>

#include "errors.hpp"
#include "images/decoded.hpp"

namespace infid {
namespace {

std::uint32_t big_endian(const Bytes& content, std::size_t place) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8 | content[place + i];
  return value;
}

// How many frames an animation has, by the chunks before its data; 1 for an image.
std::uint64_t count_frames(const Bytes& content) {
  std::uint64_t frames = 0;
  bool data_is_frame = false;
  for (std::size_t place = 8; place + 12 <= content.size();) {
    const std::uint32_t length = big_endian(content, place);
    const auto is = [&](const char* kind) { return std::memcmp(&content[place + 4], kind, 4) == 0; };
    if (is("IDAT")) break;
    if (is("fcTL")) data_is_frame = true;
    if (is("acTL") && length >= 4) frames = big_endian(content, place + 8);
    if (content.size() - place - 12 < length) break;
    place += std::size_t{12} + length;
  }
  return frames == 0 ? 1 : frames + !data_is_frame;
}

// Calls libpng, whose errors jump: what is called must have no variables with destructors.
class PngReader {
 public:
  explicit PngReader(const Bytes& content) : content_(content) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
    info_ = png_ ? png_create_info_struct(png_) : nullptr;
    if (!info_) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  void read_header() {
    guarded([this] {
      png_set_read_fn(png_, this, read);
      png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // ours is the number of pixels
      png_read_info(png_, info_);
      png_get_IHDR(png_, info_, &width, &height, &depth, &color, nullptr, nullptr, nullptr);
    });
  }

  // Samples of 8 bits, or of 16 bits for gray alone; indices of a palette.
  void read_rows() {
    guarded([this] {
      if (depth == 16 && color != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png_);
      if (depth < 8 && color == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
      if (color == PNG_COLOR_TYPE_PALETTE) png_set_packing(png_);
      passes_ = png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
      row_bytes_ = png_get_rowbytes(png_, info_);
    });
    rows.resize(row_bytes_ * height);
    guarded([this] {
      for (int pass = 0; pass < passes_; ++pass) {
        for (png_uint_32 y = 0; y < height; ++y) png_read_row(png_, &rows[row_bytes_ * y], nullptr);
      }
    });
    try {
      guarded([this] { png_read_end(png_, info_); });
    } catch (const Malformed&) {  // the pixels are whole; as Pillow, do without what follows them
    }
  }

  std::string exif() {
    png_uint_32 size = 0;
    png_bytep data = nullptr;
    if (!png_get_eXIf_1(png_, info_, &size, &data) || !data) return "";
    return {reinterpret_cast<const char*>(data), size};
  }

  std::string xmp() {
    png_textp texts = nullptr;
    const int count = png_get_text(png_, info_, &texts, nullptr);
    for (int i = 0; i < count; ++i) {
      if (texts[i].text && std::strcmp(texts[i].key, "XML:com.adobe.xmp") == 0) return texts[i].text;
    }
    return "";
  }

  // Red, green, blue and alpha of each index; as in Pillow, black where the palette ends.
  void read_palette(std::uint8_t (&colors)[256][4]) {
    for (auto& each : colors) each[3] = 255;
    png_colorp palette = nullptr;
    png_bytep alpha = nullptr;
    int count = 0;
    png_get_PLTE(png_, info_, &palette, &count);
    for (int i = 0; i < count; ++i) {
      colors[i][0] = palette[i].red;
      colors[i][1] = palette[i].green;
      colors[i][2] = palette[i].blue;
    }
    count = 0;
    png_get_tRNS(png_, info_, &alpha, &count, nullptr);
    for (int i = 0; alpha && i < count; ++i) colors[i][3] = alpha[i];
  }

  // The transparent color of an image without alpha. As in Pillow, its low bytes are compared with 8-bit samples.
  std::optional<png_color> transparent_color() {
    png_color_16p value = nullptr;
    if (!png_get_tRNS(png_, info_, nullptr, nullptr, &value) || !value) return std::nullopt;
    const auto low = [](png_uint_16 sample) { return static_cast<png_byte>(sample & 0xff); };
    if (color == PNG_COLOR_TYPE_RGB) return png_color{low(value->red), low(value->green), low(value->blue)};
    const png_byte gray = depth > 1 ? low(value->gray) : value->gray ? 255 : 0;
    return png_color{gray, gray, gray};
  }

  png_uint_32 width = 0, height = 0;
  int depth = 0, color = 0;
  Bytes rows;

 private:
  template <class Calls>
  void guarded(const Calls& calls) {
    if (setjmp(png_jmpbuf(png_))) throw Malformed(reason_);
    calls();
  }

  static void fail(png_structp png, png_const_charp reason) {
    auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
    std::strncpy(reader->reason_, reason, sizeof reader->reason_ - 1);
    png_longjmp(png, 1);
  }

  static void read(png_structp png, png_bytep into, std::size_t count) {
    auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > reader->content_.size() - reader->place_) png_error(png, "image file is truncated");
    std::memcpy(into, &reader->content_[reader->place_], count);
    reader->place_ += count;
  }

  const Bytes& content_;
  std::size_t place_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  int passes_ = 1;
  std::size_t row_bytes_ = 0;
  char reason_[128] = {};
};

// A sample on white, rounded as Pillow does.
std::uint8_t on_white(unsigned sample, unsigned alpha) {
  const unsigned sum = 255 * (255 - alpha) + sample * alpha + 128;
  return static_cast<std::uint8_t>((sum + (sum >> 8)) >> 8);
}

// Writes one pixel.
void put(std::uint8_t* pixel, unsigned red, unsigned green, unsigned blue, unsigned alpha) {
  pixel[0] = on_white(red, alpha);
  pixel[1] = on_white(green, alpha);
  pixel[2] = on_white(blue, alpha);
}

// Calls `convert(sample, pixel)` for each pixel; `samples` is their number in a pixel.
template <class Convert>
void each_pixel(const PngReader& reader, Bytes& pixels, std::size_t samples, const Convert& convert) {
  const std::size_t count = std::size_t{reader.width} * reader.height;
  pixels.resize(count * 3);
  for (std::size_t i = 0; i < count; ++i) convert(&reader.rows[i * samples], &pixels[i * 3]);
}

void convert_gray(PngReader& reader, Bytes& pixels) {
  if (reader.depth == 16) {
    return each_pixel(reader, pixels, 2, [](const std::uint8_t* sample, std::uint8_t* pixel) {
      const double value = sample[0] << 8 | sample[1];
      std::fill_n(pixel, 3, static_cast<std::uint8_t>(std::nearbyint(value * (255.0 / 65535))));
    });
  }
  const auto clear = reader.transparent_color();
  each_pixel(reader, pixels, 1, [&](const std::uint8_t* sample, std::uint8_t* pixel) {
    put(pixel, *sample, *sample, *sample, clear && clear->red == *sample ? 0 : 255);
  });
}

void convert_rgb(PngReader& reader, Bytes& pixels) {
  pixels = std::move(reader.rows);
  const auto clear = reader.transparent_color();
  for (std::size_t i = 0; clear && i < pixels.size(); i += 3) {
    if (pixels[i] == clear->red && pixels[i + 1] == clear->green && pixels[i + 2] == clear->blue) {
      std::fill_n(&pixels[i], 3, std::uint8_t{255});
    }
  }
}

void convert_palette(PngReader& reader, Bytes& pixels) {
  std::uint8_t colors[256][4]{};
  reader.read_palette(colors);
  each_pixel(reader, pixels, 1, [&](const std::uint8_t* sample, std::uint8_t* pixel) {
    const auto& color = colors[*sample];
    put(pixel, color[0], color[1], color[2], color[3]);
  });
}

void convert(PngReader& reader, Bytes& pixels) {
  switch (reader.color) {
    case PNG_COLOR_TYPE_GRAY: return convert_gray(reader, pixels);
    case PNG_COLOR_TYPE_RGB: return convert_rgb(reader, pixels);
    case PNG_COLOR_TYPE_PALETTE: return convert_palette(reader, pixels);
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      return each_pixel(reader, pixels, 2, [](const std::uint8_t* sample, std::uint8_t* pixel) {
        put(pixel, sample[0], sample[0], sample[0], sample[1]);
      });
    default:
      return each_pixel(reader, pixels, 4, [](const std::uint8_t* sample, std::uint8_t* pixel) {
        put(pixel, sample[0], sample[1], sample[2], sample[3]);
      });
  }
}

}  // namespace

Decoded read_png(const std::string& name, const Bytes& content) {
  PngReader reader(content);
  reader.read_header();
  check_pixels(name, reader.width, reader.height);
  if (const std::uint64_t frames = count_frames(content); frames > 1) {
    input_error(name + " is animated (" + std::to_string(frames) + " frames).", "Save one as PNG or JPEG.");
  }
  reader.read_rows();
  Decoded found;
  found.image.width = static_cast<int>(reader.width);
  found.image.height = static_cast<int>(reader.height);
  found.exif = reader.exif();
  found.xmp = reader.xmp();
  convert(reader, found.image.pixels);
  return found;
}

}  // namespace infid
