// Files mapped into memory: see safetensors.hpp.
#include <sys/mman.h>

#include <cerrno>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"

namespace infid {

MappedFile::MappedFile(const std::string& path) {
  const OpenFile file(path);
  size_ = file.size();
  if (size_ == 0) return;  // which the system does not map
  void* place = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (place == MAP_FAILED) throw Malformed(system_reason(errno));
  data_ = static_cast<const std::byte*>(place);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace infid
