// Safetensors: every tensor of an accepted file can be read, and a copy with a seal has the same tensors.
#include <cstdlib>

#include "errors.hpp"
#include "sealed_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto parsed = [](const void* content, std::size_t bytes) {
    return infid::parse_safetensors(static_cast<const std::byte*>(content), bytes);
  };
  try {
    infid::Safetensors file = parsed(data, size);
    file.metadata.erase("infid_seal");
    const std::string copy = infid::sealed_safetensors(file.metadata, file.tensors);
    const infid::Safetensors again = parsed(copy.data(), copy.size());
    if (infid::array_seal(again) != infid::array_seal(file)) std::abort();
    if (again.metadata.at("infid_seal") != infid::array_seal(file)) std::abort();
  } catch (const infid::Malformed&) {
  }
  return 0;
}
