// Safetensors files, mapped into memory, with every bound checked.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tensor.hpp"

namespace infid {

// A file's content, mapped read-only. Throws Malformed with the system's reason.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The views point into the content.
struct Safetensors {
  std::map<std::string, std::string> metadata;
  Views tensors;
};

// Throws Malformed: where the Python library has a sentence for it, with that sentence.
Safetensors parse_safetensors(const std::byte* content, std::size_t size);

// The metadata entry that holds a file's seal.
inline constexpr char kSealKey[] = "infid_seal";
// The seal of `infid_engines.tensor_seal.array_seal`.
std::string array_seal(const Safetensors& file);

// A safetensors file's bytes, with a seal, equal to those of `Person.save`.
std::string sealed_safetensors(const std::map<std::string, std::string>& metadata, const Views& tensors);

// Write a file whole or not at all; `owner_only` gives it mode 0600. Throws disk_full, or Malformed with the system's
// reason.
void write_file(const std::string& path, const std::string& content, bool owner_only = false);

}  // namespace infid
