// Reads JPEG files with libjpeg's default decoding, as Pillow does: see decoded.hpp.
#ifdef INFID_JPEG
#include <algorithm>
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it
#include <cstring>

#include <jpeglib.h>

#include "errors.hpp"
#include "images/decoded.hpp"

namespace infid {
namespace {

constexpr int kMostScans = 500;  // of a progressive file; each one goes through all pixels
constexpr int kApp1 = JPEG_APP0 + 1, kApp2 = JPEG_APP0 + 2;

// Calls libjpeg, whose errors jump: what is called must have no variables with destructors.
class JpegReader {
 public:
  JpegReader() {
    jpeg_.err = jpeg_std_error(&errors_);
    jpeg_.client_data = this;
    errors_.error_exit = [](j_common_ptr jpeg) {
      auto* reader = static_cast<JpegReader*>(jpeg->client_data);
      (*jpeg->err->format_message)(jpeg, reader->reason_);
      std::longjmp(reader->jump_, 1);
    };
    errors_.output_message = [](j_common_ptr) {};
    progress_.progress_monitor = check_scans;
  }
  ~JpegReader() { jpeg_destroy_decompress(&jpeg_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  // The content is used until the reader's end.
  void read_header(const Bytes& content) {
    guarded([&] {
      jpeg_create_decompress(&jpeg_);
      jpeg_.progress = &progress_;
      jpeg_mem_src(&jpeg_, content.data(), content.size());
      jpeg_.src->fill_input_buffer = end_of_file;
      jpeg_save_markers(&jpeg_, kApp1, 0xffff);
      jpeg_save_markers(&jpeg_, kApp2, 0xffff);
      jpeg_read_header(&jpeg_, TRUE);
    });
  }

  std::size_t width() const { return jpeg_.image_width; }
  std::size_t height() const { return jpeg_.image_height; }
  int samples() const { return jpeg_.num_components; }

  bool has_density() const { return jpeg_.saw_JFIF_marker && (jpeg_.density_unit == 1 || jpeg_.density_unit == 2); }

  // The segments of a kind that start with a mark, without it.
  std::vector<std::string> segments(int kind, const std::string& mark) const {
    std::vector<std::string> found;
    for (jpeg_saved_marker_ptr each = jpeg_.marker_list; each; each = each->next) {
      const std::string segment(reinterpret_cast<const char*>(each->data), each->data_length);
      if (each->marker != kind || segment.compare(0, mark.size(), mark) != 0) continue;
      found.push_back(segment.substr(mark.size()));
    }
    return found;
  }

  // Rows of gray, RGB, or inverted CMYK.
  Bytes read_rows() {
    const std::size_t row = width() * static_cast<std::size_t>(samples());
    Bytes rows(row * height());
    std::uint8_t* const first = rows.data();
    guarded([this, row, first] {
      jpeg_.out_color_space = samples() == 1 ? JCS_GRAYSCALE : samples() == 3 ? JCS_RGB : JCS_CMYK;
      jpeg_start_decompress(&jpeg_);
      while (jpeg_.output_scanline < jpeg_.output_height) {
        JSAMPROW place = first + row * jpeg_.output_scanline;
        jpeg_read_scanlines(&jpeg_, &place, 1);
      }
    });
    return rows;
  }

 private:
  template <class Calls>
  void guarded(const Calls& calls) {
    if (setjmp(jump_)) throw Malformed(reason_);
    calls();
  }

  [[noreturn]] void stop(const char* reason) {
    std::strncpy(reason_, reason, sizeof reason_ - 1);
    std::longjmp(jump_, 1);
  }

  static boolean end_of_file(j_decompress_ptr jpeg) {
    static_cast<JpegReader*>(jpeg->client_data)->stop("image file is truncated");
  }

  static void check_scans(j_common_ptr jpeg) {
    auto* reader = static_cast<JpegReader*>(jpeg->client_data);
    if (reader->jpeg_.input_scan_number > kMostScans) reader->stop("it has too many scans");
  }

  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char reason_[JMSG_LENGTH_MAX] = {};
};

// Joined as Pillow does: libjpeg's function, which not every libjpeg has, takes other parts for wrong.
std::optional<std::string> profile(std::vector<std::string> segments) {
  if (segments.empty()) return std::nullopt;
  std::sort(segments.begin(), segments.end());  // they start with their number and how many there are
  std::string found;
  for (const std::string& segment : segments) {
    if (segment.size() < 2) throw Malformed("index out of range");
    found += segment.substr(2);
  }
  if (static_cast<unsigned char>(segments[0][1]) != segments.size()) return std::nullopt;
  return found;
}

}  // namespace

Decoded read_jpeg(const std::string& name, const Bytes& content) {
  JpegReader reader;
  reader.read_header(content);
  check_pixels(name, reader.width(), reader.height());
  if (reader.samples() == 2 || reader.samples() > 4) {
    throw Malformed("cannot handle " + std::to_string(reader.samples()) + "-layer images");
  }
  Decoded found;
  found.width = static_cast<int>(reader.width());
  found.height = static_cast<int>(reader.height());
  found.samples = reader.samples();
  found.profile = profile(reader.segments(kApp2, std::string("ICC_PROFILE\0", 12)));
  for (const std::string& part : reader.segments(kApp1, std::string("Exif\0\0", 6))) found.exif += part;
  // Pillow then looks for it in the EXIF data, and ignores what is broken there.
  found.may_have_broken_exif = !reader.has_density();
  for (std::string& each : reader.segments(kApp1, std::string("http://ns.adobe.com/xap/1.0/\0", 29))) {
    found.xmp = std::move(each);
  }
  found.pixels = reader.read_rows();
  if (found.samples == 4) {
    for (std::uint8_t& sample : found.pixels) sample = static_cast<std::uint8_t>(255 - sample);
  }
  return found;
}

}  // namespace infid
#endif
