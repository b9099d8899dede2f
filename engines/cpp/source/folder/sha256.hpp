// SHA-256 (FIPS 180-4), with the processor's instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace infid {

class Sha256 {
 public:
  // `portable` leaves the processor's instructions unused, for tests.
  explicit Sha256(bool portable = false);
  void update(const void* content, std::size_t size);
  void update(std::string_view text) { update(text.data(), text.size()); }
  // The digest in hexadecimal; the object cannot be used after it.
  std::string hex();

 private:
  using Blocks = void (*)(std::uint32_t* state, const std::uint8_t* content, std::size_t blocks);
  Blocks blocks_;
  std::array<std::uint32_t, 8> state_;
  std::array<std::uint8_t, 64> rest_{};  // the beginning of the next block
  std::uint64_t size_ = 0;
};

std::string sha256_of(std::string_view text);
// The digest of a plain file, read in blocks. Throws Malformed with the system's reason.
std::string sha256_of_file(const std::string& path);

}  // namespace infid
