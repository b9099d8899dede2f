// SHA-256 against the examples of FIPS 180-4, and its two implementations against each other.
#include <doctest/doctest.h>

#include "folder/sha256.hpp"

using infid::Sha256;

TEST_CASE("the standard's examples") {
  CHECK(infid::sha256_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(infid::sha256_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(infid::sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST_CASE("content in pieces, with and without the processor's instructions") {
  std::string content;
  for (int i = 0; i < 1000; ++i) content += static_cast<char>(i * 37);
  for (std::size_t size = 0; size < 300; ++size) {
    const std::string whole = content.substr(0, 3 * size);
    Sha256 portable(true), pieces, odd;
    portable.update(whole);
    for (int i = 0; i < 3; ++i) pieces.update(whole.data() + static_cast<std::size_t>(i) * size, size);
    for (const char each : whole) odd.update(&each, 1);
    const std::string digest = portable.hex();
    CHECK(pieces.hex() == digest);
    CHECK(odd.hex() == digest);
  }
}
