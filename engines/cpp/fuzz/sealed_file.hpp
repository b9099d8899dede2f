// Files in memory for targets that read a path, as they are and with a fresh seal, which mutations would break.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "errors.hpp"
#include "folder/safetensors.hpp"

namespace infid {

class MemoryFile {
 public:
  explicit MemoryFile(const std::string& content) : descriptor_(::memfd_create("fuzz", 0)) {
    const ssize_t count = ::write(descriptor_, content.data(), content.size());
    if (count != static_cast<ssize_t>(content.size())) std::abort();
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

// The same tensors and metadata with a seal that fits; nothing if the content cannot be parsed.
inline std::optional<std::string> resealed(const std::string& content) {
  try {
    Safetensors file = parse_safetensors(reinterpret_cast<const std::byte*>(content.data()), content.size());
    file.metadata.erase("infid_seal");
    return sealed_safetensors(file.metadata, file.tensors);
  } catch (const Malformed&) {
    return std::nullopt;
  }
}

}  // namespace infid
