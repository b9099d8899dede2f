// `Image::load`, equal to `infid_export.faces.photos` for PNG and JPEG.
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "images/decoded.hpp"

namespace infid {
namespace {

constexpr std::uint64_t kMostPixels = 100'000'000;  // nearly every camera has fewer
constexpr std::uint64_t kPillowsLimit = 178'956'970;

bool is_missing(int reason) { return reason == ENOENT || reason == ENOTDIR || reason == EBADF || reason == ELOOP; }

[[noreturn]] void unreadable(const std::string& name, int reason) {
  input_error(name + " cannot be read (" + system_reason(reason) + ").", "Check its permissions.");
}

void check_kind(const std::string& name) {
  struct stat status {};
  const bool found = name.find('\0') == std::string::npos && stat(name.c_str(), &status) == 0;
  if (!found && name.find('\0') == std::string::npos && !is_missing(errno)) unreadable(name, errno);
  if (found && S_ISDIR(status.st_mode)) input_error(name + " is a folder.", "Give the path of one photo.");
  if (!found || !S_ISREG(status.st_mode)) input_error("There is no photo at " + name + ".", "Check the path.");
}

Bytes read_photo(const std::string& name) {
  check_kind(name);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(name.c_str(), "rbe"), std::fclose);
  if (!file) unreadable(name, errno);
  Bytes content;
  std::uint8_t part[1 << 16];
  while (const std::size_t count = std::fread(part, 1, sizeof part, file.get())) {
    content.insert(content.end(), part, part + count);
  }
  if (std::ferror(file.get())) unreadable(name, errno);
  if (content.empty()) input_error(name + " is an empty file.", "Copy the photo again.");
  return content;
}

bool starts_with(const Bytes& content, const char* mark) {
  return content.size() >= std::strlen(mark) && std::memcmp(content.data(), mark, std::strlen(mark)) == 0;
}

Decoded decoded(const std::string& name, const Bytes& content) {
  if (starts_with(content, "\x89PNG\r\n\x1a\n")) return read_png(name, content);
#ifdef INFID_JPEG
  if (starts_with(content, "\xff\xd8\xff")) return read_jpeg(name, content);
  const std::string readable = "JPEG and PNG can be read; other formats cannot", fix = "Save it as JPEG or PNG.";
#else
  const std::string readable = "PNG can be read; other formats cannot", fix = "Save it as PNG.";
#endif
  input_error(name + " is not an image that can be read (" + readable + ").", fix);
}

}  // namespace

void check_pixels(const std::string& name, std::uint64_t width, std::uint64_t height) {
  const std::uint64_t pixels = width * height;
  if (pixels <= kMostPixels) return;
  const std::string what = pixels <= kPillowsLimit
                               ? std::to_string(width) + " × " + std::to_string(height)
                               : "Image size (" + std::to_string(pixels) + " pixels) exceeds limit of " +
                                     std::to_string(kPillowsLimit) + " pixels, could be decompression bomb DOS attack.";
  input_error(name + " is larger than " + std::to_string(kMostPixels / 1'000'000) + " megapixels (" + what + ").",
              "Scale the photo down first.");
}

Image Image::load(const std::string& path) {
  if (path.empty()) input_error("A photo must be a path, not ''.", "Give one photo.");
  const std::string name = plain_path(path);
  const Bytes content = read_photo(name);
  try {
    Decoded photo = decoded(name, content);
    const int turned = orientation(photo);
    return upright(to_srgb(std::move(photo)), turned);
  } catch (const Malformed& error) {
    input_error(name + " is damaged or truncated (" + error.what() + ").", "Copy or export the photo again.");
  }
}

}  // namespace infid
