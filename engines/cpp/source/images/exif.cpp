// Reads EXIF data as Pillow does, broken ones too: see decoded.hpp.
#include <cmath>
#include <cstring>
#include <map>

#include "errors.hpp"
#include "images/decoded.hpp"

namespace infid {
namespace {

constexpr unsigned kOrientation = 0x0112, kExif = 0x8769, kInteroperability = 0xA005, kIndex = 1;
constexpr unsigned kByte = 1, kText = 2, kRational = 5, kSignedByte = 6, kUndefined = 7, kSignedShort = 8,
                   kSignedLong = 9, kSignedRational = 10, kFloat = 11, kDouble = 12;

// Bytes of a value, by its type; 0 if the type is unknown.
std::size_t bytes_of(unsigned type) {
  constexpr std::size_t sizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < std::size(sizes) ? sizes[type] : 0;
}

// As Python's repr.
std::string shown_bytes(const std::string& content) {
  const bool has_quote = content.find('\'') != std::string::npos && content.find('"') == std::string::npos;
  const char quote = has_quote ? '"' : '\'';
  std::string found = std::string("b") + quote;
  for (const char each : content) {
    const auto byte = static_cast<unsigned char>(each);
    const char* digits = "0123456789abcdef";
    if (each == '\t') found += "\\t";
    else if (each == '\n') found += "\\n";
    else if (each == '\r') found += "\\r";
    else if (each == quote || each == '\\') found += {'\\', each};
    else if (byte >= 0x20 && byte < 0x7f) found += each;
    else found += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
  }
  return found + quote;
}

struct Entry {
  unsigned type;
  std::string data;
};
using Directory = std::map<unsigned, Entry>;

class Exif {
 public:
  explicit Exif(const Decoded& photo) : content_(without_marks(photo.exif)) {
    if (content_.empty()) return;
    try {
      check_header();
    } catch (const Malformed&) {
      if (!photo.may_have_broken_exif) throw;
      content_.clear();
      is_ignored_ = true;
    }
  }

  bool is_ignored() const { return is_ignored_; }

  Directory main() const { return directory(number(content_, 4, 4)); }

  // The entries up to the first one that is broken; of several with one tag, the first.
  Directory directory(std::size_t place) const {
    Directory found;
    const std::uint64_t count = number(content_, place, 2);
    place += 2;
    std::uint64_t total = 0;
    for (std::uint64_t i = 0; i < count && place + 12 <= content_.size(); ++i, place += 12) {
      const auto tag = static_cast<unsigned>(number(content_, place, 2));
      const auto type = static_cast<unsigned>(number(content_, place + 2, 2));
      const std::uint64_t size = number(content_, place + 4, 4) * bytes_of(type);
      if (size == 0 || found.count(tag)) continue;
      std::size_t data = place + 8;
      if (size > 4) {
        total += size;
        if (total > content_.size()) continue;
        data = number(content_, data, 4);
        if (data > content_.size() || size > content_.size() - data) break;
      }
      found.emplace(tag, Entry{type, content_.substr(data, size)});
    }
    return found;
  }

  // The first number of an entry; none if it contains bytes or text.
  std::optional<double> number_of(const Entry& entry) const {
    const std::size_t bytes = bytes_of(entry.type);
    const std::uint64_t value = number(entry.data, 0, bytes);
    switch (entry.type) {
      case kByte:
      case kText:
      case kUndefined: return std::nullopt;
      case kSignedByte: return static_cast<std::int8_t>(value);
      case kSignedShort: return static_cast<std::int16_t>(value);
      case kSignedLong: return static_cast<std::int32_t>(value);
      case kFloat: return real<float>(static_cast<std::uint32_t>(value));
      case kDouble: return real<double>(value);
      case kRational: return ratio(number(entry.data, 0, 4), number(entry.data, 4, 4));
      case kSignedRational:
        return ratio(static_cast<std::int32_t>(number(entry.data, 0, 4)),
                     static_cast<std::int32_t>(number(entry.data, 4, 4)));
      default: return static_cast<double>(value);
    }
  }

  // The directory to which an entry points, if there is one.
  Directory below(const Directory& directory, unsigned tag) const {
    const auto entry = directory.find(tag);
    if (entry == directory.end()) return {};
    switch (entry->second.type) {
      case kRational:
      case kSignedRational:
      case kFloat:
      case kDouble: return {};
      default: break;
    }
    const std::optional<double> place = number_of(entry->second);
    if (!place) return {};
    if (*place < 0) throw Malformed("negative seek value " + std::to_string(static_cast<std::int64_t>(*place)));
    if (*place >= 0x1p63) throw Malformed("cannot fit 'int' into an index-sized integer");
    return *place < static_cast<double>(content_.size()) ? this->directory(static_cast<std::size_t>(*place))
                                                         : Directory{};
  }

 private:
  static std::string without_marks(const std::string& exif) {
    const std::string mark("Exif\0\0", 6);
    std::size_t place = 0;
    while (place <= mark.size() && exif.compare(place, mark.size(), mark) == 0) place += mark.size();
    return exif.substr(place);
  }

  void check_header() {
    const std::string mark = content_.substr(0, 4);
    const std::string zero(1, '\0');
    const bool is_big = mark == "MM" + zero + "*" || mark == "MM*" + zero || mark == "MM" + zero + "+";
    const bool is_little = mark == "II*" + zero || mark == "II" + zero + "*" || mark == "II+" + zero;
    if (!is_big && !is_little) {
      throw Malformed("not a TIFF file (header " + shown_bytes(content_.substr(0, 8)) + " not valid)");
    }
    if (mark[2] == '+') throw Malformed("unpack requires a buffer of 8 bytes");
    if (content_.size() < 8) throw Malformed("unpack requires a buffer of 4 bytes");
    is_big_ = is_big;
  }

  // 0 behind the end.
  std::uint64_t number(const std::string& content, std::size_t place, std::size_t bytes) const {
    if (place > content.size() || bytes > content.size() - place) return 0;
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      const auto byte = static_cast<unsigned char>(content[place + i]);
      value |= std::uint64_t{byte} << 8 * (is_big_ ? bytes - 1 - i : i);
    }
    return value;
  }

  template <class Real, class Bits>
  static double real(Bits bits) {
    static_assert(sizeof(Real) == sizeof(Bits));
    Real value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
  }

  template <class Whole>
  static double ratio(Whole above, Whole below) {
    return below == 0 ? std::nan("") : static_cast<double>(above) / static_cast<double>(below);
  }

  std::string content_;
  bool is_big_ = false;
  bool is_ignored_ = false;
};

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

std::string stripped(const std::string& text) {
  const std::string blanks("\0 ", 2);
  const std::size_t first = text.find_first_not_of(blanks);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

}  // namespace

int orientation(const Decoded& photo) {
  const Exif exif(photo);
  if (exif.is_ignored()) return 1;
  const Directory main = exif.main();
  const auto entry = main.find(kOrientation);
  const double value = entry == main.end() ? xmp_orientation(photo.xmp) : exif.number_of(entry->second).value_or(1);
  return value >= 1 && value <= 8 && value == std::floor(value) ? static_cast<int>(value) : 1;
}

bool notes_adobe_rgb(const Decoded& photo) {
  const Exif exif(photo);
  const Directory found = exif.below(exif.below(exif.main(), kExif), kInteroperability);
  const auto index = found.find(kIndex);
  return index != found.end() && index->second.type == kText && stripped(index->second.data) == "R03";
}

}  // namespace infid
