// Paths as Python's pathlib spells them, for messages, and plain files.
#pragma once

#include <string>

namespace infid {

// A path as `str(Path(text))`: without `.`, repeated slashes and a last slash.
std::string plain_path(const std::string& text);
// A path that a user gave. Throws input if it is empty or has a zero byte, with the sentence of `path_of`.
std::string path_of(const std::string& name, const std::string& text, const std::string& fix);
// A path within a folder, both as `plain_path` returns them.
std::string within(const std::string& folder, const std::string& name);
// Whether there is a plain file.
bool is_file(const std::string& path);
// Whether a name is the plain relative path of a file within a folder.
bool is_inside(const std::string& name);
// The system's sentence for an error number.
std::string system_reason(int number);
// A plain file's content. Throws Malformed as Python's OSError reads, or if it has more than `most` bytes.
std::string read_file(const std::string& path, std::size_t most);

// An open plain file. Throws Malformed as Python's OSError reads; opening never waits, as a pipe would.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int descriptor() const { return descriptor_; }
  std::size_t size() const { return size_; }
  // Reads up to `size` bytes; 0 at the end.
  std::size_t read(void* content, std::size_t size);

 private:
  std::string path_;
  int descriptor_ = -1;
  std::size_t size_ = 0;
};

}  // namespace infid
