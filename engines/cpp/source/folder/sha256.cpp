// See sha256.hpp.
#include "folder/sha256.hpp"

#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "folder/paths.hpp"

namespace infid {
namespace {

alignas(16) constexpr std::uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotated(std::uint32_t value, int bits) { return value >> bits | value << (32 - bits); }

void portable_block(std::uint32_t* state, const std::uint8_t* content) {
  std::uint32_t words[64];
  for (int i = 0; i < 16; ++i, content += 4) {
    words[i] = static_cast<std::uint32_t>(content[0]) << 24 | static_cast<std::uint32_t>(content[1]) << 16 |
               static_cast<std::uint32_t>(content[2]) << 8 | content[3];
  }
  for (int i = 16; i < 64; ++i) {
    const std::uint32_t a = words[i - 15], b = words[i - 2];
    words[i] = words[i - 16] + words[i - 7] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) +
               (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
  }
  std::uint32_t s[8];
  std::memcpy(s, state, sizeof s);
  for (int i = 0; i < 64; i += 8) {
    for (int j = 0; j < 8; ++j) {  // the words keep their places, and change their roles
      const auto word = [&](int role) -> std::uint32_t& { return s[(role - j + 8) % 8]; };
      const std::uint32_t a = word(0), e = word(4);
      const std::uint32_t choice = (e & word(5)) ^ (~e & word(6));
      const std::uint32_t majority = (a & word(1)) ^ (a & word(2)) ^ (word(1) & word(2));
      const std::uint32_t first = word(7) + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + choice +
                                  constants[i + j] + words[i + j];
      word(3) += first;
      word(7) = first + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + majority;
    }
  }
  for (int i = 0; i < 8; ++i) state[i] += s[i];
}

void portable_blocks(std::uint32_t* state, const std::uint8_t* content, std::size_t blocks) {
  for (; blocks > 0; --blocks, content += 64) portable_block(state, content);
}

#if defined(__x86_64__)
__attribute__((target("sha,sse4.1"))) inline __m128i loaded(const void* place) {
  return _mm_loadu_si128(static_cast<const __m128i*>(place));
}

// The processor holds the state as two vectors, (A, B, E, F) and (C, D, G, H), from the highest word to the lowest.
__attribute__((target("sha,sse4.1"))) void processor_blocks(std::uint32_t* state, const std::uint8_t* content,
                                                            std::size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i cdab = _mm_shuffle_epi32(loaded(state), 0xb1), efgh = _mm_shuffle_epi32(loaded(state + 4), 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; blocks > 0; --blocks, content += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i words[4];
    for (int i = 0; i < 4; ++i) words[i] = _mm_shuffle_epi8(loaded(content + 16 * i), big_endian);
    for (int i = 0; i < 16; ++i) {  // four rounds each
      __m128i& now = words[i % 4];
      if (i >= 4) {
        const __m128i last = words[(i + 3) % 4], middle = _mm_alignr_epi8(last, words[(i + 2) % 4], 4);
        now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, words[(i + 1) % 4]), middle), last);
      }
      const __m128i sum = _mm_add_epi32(now, loaded(constants + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

// CPUID leaf 7 has the bit of the SHA instructions, which `__builtin_cpu_supports` of older compilers does not know.
bool processor_hashes() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
}
#endif

}  // namespace

Sha256::Sha256(bool portable)
    : blocks_(portable_blocks),
      state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
#if defined(__x86_64__)
  static const bool fast = processor_hashes();
  if (fast && !portable) blocks_ = processor_blocks;
#else
  static_cast<void>(portable);
#endif
}

void Sha256::update(const void* content, std::size_t size) {
  if (size == 0) return;
  const auto* bytes = static_cast<const std::uint8_t*>(content);
  const std::size_t kept = size_ % 64;
  size_ += size;
  if (kept > 0) {
    const std::size_t taken = size < 64 - kept ? size : 64 - kept;
    std::memcpy(rest_.data() + kept, bytes, taken);
    if (kept + taken < 64) return;
    blocks_(state_.data(), rest_.data(), 1);
    bytes += taken;
    size -= taken;
  }
  blocks_(state_.data(), bytes, size / 64);
  if (size % 64 > 0) std::memcpy(rest_.data(), bytes + size / 64 * 64, size % 64);
}

std::string Sha256::hex() {
  const std::uint64_t bits = 8 * size_;
  std::uint8_t end[72] = {0x80};
  const std::size_t padding = 1 + (119 - size_ % 64) % 64;
  for (std::size_t i = 0; i < 8; ++i) end[padding + i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
  update(end, padding + 8);
  std::string text;
  for (const std::uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

std::string sha256_of(std::string_view text) {
  Sha256 digest;
  digest.update(text);
  return digest.hex();
}

std::string sha256_of_file(const std::string& path) {
  OpenFile file(path);
  std::vector<std::uint8_t> block(1 << 20);
  Sha256 digest;
  while (const std::size_t count = file.read(block.data(), block.size())) digest.update(block.data(), count);
  return digest.hex();
}

}  // namespace infid
