// Reads PNG files: see decoded.hpp. Samples become 8 bits as Pillow converts them.
#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <optional>

#include "errors.hpp"
#include "images/decoded.hpp"

namespace infid {
namespace {

// libpng rejects broken ones, and profiles for RGB of gray images.
constexpr png_byte kRawChunks[] = "eXIf\0iCCP";
constexpr std::size_t kMostProfile = 1 << 20;  // as in Pillow

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
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_ALWAYS, kRawChunks, 2);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // ours is the number of pixels
      png_read_info(png_, info_);
      png_get_IHDR(png_, info_, &width, &height, &depth, &color, nullptr, nullptr, nullptr);
    });
  }

  // As in Pillow, its pixels become RGB, and so has to be its profile.
  bool is_deep_gray_alpha() const { return depth == 16 && color == PNG_COLOR_TYPE_GRAY_ALPHA; }

  // Samples of 8 bits, or of 16 bits for gray alone; indices of a palette.
  void read_rows() {
    guarded([this] {
      if (depth == 16 && color != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png_);
      if (is_deep_gray_alpha()) png_set_gray_to_rgb(png_);
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

  // The data of the last chunk of a kind that libpng would not give as it is.
  std::optional<std::string> raw(const char* kind) {
    png_unknown_chunkp chunks = nullptr;
    const int count = png_get_unknown_chunks(png_, info_, &chunks);
    std::optional<std::string> found;
    for (int i = 0; i < count; ++i) {
      if (std::memcmp(chunks[i].name, kind, 4) != 0) continue;
      found = chunks[i].size ? std::string(reinterpret_cast<const char*>(chunks[i].data), chunks[i].size) : "";
    }
    return found;
  }

  std::optional<std::string> text(const char* key) {
    png_textp texts = nullptr;
    std::optional<std::string> found;
    const int count = png_get_text(png_, info_, &texts, nullptr);
    for (int i = 0; i < count; ++i) {
      if (texts[i].text && std::strcmp(texts[i].key, key) == 0) found = texts[i].text;
    }
    return found;
  }

  // Red, green, blue and alpha of each index; as in Pillow, black where the palette ends. Returns whether it has alpha.
  bool read_palette(std::uint8_t (&colors)[256][4]) {
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
    return alpha;
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

// Moves each pixel's last sample to `alpha`; `colors` is the number of the others.
void split_alpha(Decoded& photo, std::size_t colors) {
  const std::size_t count = photo.pixels.size() / (colors + 1);
  photo.alpha.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t place = i * (colors + 1);
    photo.alpha[i] = photo.pixels[place + colors];
    for (std::size_t part = 0; part < colors; ++part) photo.pixels[i * colors + part] = photo.pixels[place + part];
  }
  photo.pixels.resize(count * colors);
}

void convert_gray(PngReader& reader, Decoded& photo) {
  Bytes& pixels = photo.pixels;
  if (reader.depth == 16) {
    for (std::size_t i = 0; i < pixels.size() / 2; ++i) {
      const double value = pixels[i * 2] << 8 | pixels[i * 2 + 1];
      pixels[i] = static_cast<std::uint8_t>(std::nearbyint(value * (255.0 / 65535)));
    }
    return pixels.resize(pixels.size() / 2);
  }
  const auto clear = reader.transparent_color();
  if (!clear) return;
  photo.alpha.resize(pixels.size());
  std::transform(pixels.begin(), pixels.end(), photo.alpha.begin(),
                 [&](std::uint8_t sample) { return clear->red == sample ? 0 : 255; });
}

void convert_rgb(PngReader& reader, Decoded& photo) {
  const auto clear = reader.transparent_color();
  if (!clear) return;
  photo.alpha.resize(photo.pixels.size() / 3);
  for (std::size_t i = 0; i < photo.alpha.size(); ++i) {
    const std::uint8_t* pixel = &photo.pixels[i * 3];
    photo.alpha[i] = pixel[0] == clear->red && pixel[1] == clear->green && pixel[2] == clear->blue ? 0 : 255;
  }
}

void convert_palette(PngReader& reader, Decoded& photo) {
  std::uint8_t colors[256][4]{};
  const bool has_alpha = reader.read_palette(colors);
  const Bytes indices = std::move(photo.pixels);
  photo.pixels.resize(indices.size() * 3);
  photo.alpha.resize(has_alpha ? indices.size() : 0);
  for (std::size_t i = 0; i < indices.size(); ++i) {
    std::memcpy(&photo.pixels[i * 3], colors[indices[i]], 3);
    if (has_alpha) photo.alpha[i] = colors[indices[i]][3];
  }
}

void convert(PngReader& reader, Decoded& photo) {
  const bool is_gray = !(reader.color & PNG_COLOR_MASK_COLOR) && !reader.is_deep_gray_alpha();
  photo.samples = is_gray ? 1 : 3;
  photo.pixels = std::move(reader.rows);
  switch (reader.color) {
    case PNG_COLOR_TYPE_GRAY: return convert_gray(reader, photo);
    case PNG_COLOR_TYPE_RGB: return convert_rgb(reader, photo);
    case PNG_COLOR_TYPE_PALETTE: return convert_palette(reader, photo);
    default: return split_alpha(photo, is_gray ? 1 : 3);
  }
}

// The chunk is a name, 0, the kind of compression, and the compressed profile, whose end may be missing.
std::optional<std::string> inflated_profile(const std::string& chunk) {
  const std::size_t method = chunk.find('\0') + 1;  // 0 if there is no name
  if (method >= chunk.size()) throw Malformed("index out of range");
  if (chunk[method] != 0) {
    const int kind = static_cast<unsigned char>(chunk[method]);
    throw Malformed("Unknown compression method " + std::to_string(kind) + " in iCCP chunk");
  }
  std::string found(kMostProfile, '\0');
  z_stream stream{};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(chunk.data() + method + 1));
  stream.avail_in = static_cast<uInt>(chunk.size() - method - 1);
  stream.next_out = reinterpret_cast<Bytef*>(found.data());
  stream.avail_out = static_cast<uInt>(found.size());
  if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
  const int result = inflate(&stream, Z_SYNC_FLUSH);
  inflateEnd(&stream);
  if (result != Z_OK && result != Z_BUF_ERROR && result != Z_STREAM_END) return std::nullopt;
  if (result != Z_STREAM_END && stream.avail_in > 0) {
    throw Malformed("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK");
  }
  found.resize(stream.total_out);
  return found;
}

// EXIF data as ImageMagick wrote them before PNG had a chunk for them: after three lines, hexadecimal digits.
std::string exif_of_text(const std::string& text) {
  std::size_t place = 0;
  for (int line = 0; line < 3 && place != std::string::npos; ++line) {
    place = text.find('\n', place);
    if (place != std::string::npos) ++place;
  }
  std::string digits, found;
  for (; place < text.size(); ++place) {
    if (!std::strchr(" \t\n\v\f\r", text[place])) digits += text[place];
  }
  const bool is_hexadecimal = digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
  if (!is_hexadecimal || digits.size() % 2) throw Malformed("its EXIF data are not hexadecimal");
  for (place = 0; place < digits.size(); place += 2) {
    found += static_cast<char>(std::stoi(digits.substr(place, 2), nullptr, 16));
  }
  return found;
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
  found.width = static_cast<int>(reader.width);
  found.height = static_cast<int>(reader.height);
  if (const auto chunk = reader.raw("iCCP")) found.profile = inflated_profile(*chunk);
  if (const auto chunk = reader.raw("eXIf")) {
    found.exif = "Exif" + std::string(2, '\0') + *chunk;
  } else if (const auto text = reader.text("Raw profile type exif")) {
    found.exif = exif_of_text(*text);
  }
  found.xmp = reader.text("XML:com.adobe.xmp").value_or("");
  convert(reader, found);
  return found;
}

}  // namespace infid
