// See paths.hpp.
#include "folder/paths.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <vector>

#include "errors.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find('/', start), text.size());
    const std::string part = text.substr(start, end - start);
    if (!part.empty() && part != ".") parts.push_back(part);
    start = end + 1;
  }
  return parts;
}

// POSIX leaves two leading slashes to the system, so Python keeps them.
std::string root_of(const std::string& text) {
  const std::size_t slashes = std::min(text.find_first_not_of('/'), text.size());
  return slashes == 2 ? "//" : slashes > 0 ? "/" : "";
}

[[noreturn]] void throw_system_error(int number, const std::string& reason, const std::string& path) {
  throw Malformed("[Errno " + std::to_string(number) + "] " + reason + ": " + python_repr(path));
}

}  // namespace

std::string plain_path(const std::string& text) {
  std::string path = root_of(text);
  bool first = true;
  for (const std::string& part : parts_of(text)) {
    path += (first ? "" : "/") + part;
    first = false;
  }
  return path.empty() ? "." : path;
}

std::string path_of(const std::string& name, const std::string& text, const std::string& fix) {
  if (text.empty() || text.find('\0') != std::string::npos) {
    input_error(name + " must be a path, not " + shown(text) + ".", fix);
  }
  return plain_path(text);
}

std::string within(const std::string& folder, const std::string& name) {
  if (folder == ".") return name;
  return folder.back() == '/' ? folder + name : folder + "/" + name;
}

bool is_file(const std::string& path) {
  struct stat status {};
  return path.find('\0') == std::string::npos && ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

bool is_inside(const std::string& name) {
  const std::vector<std::string> parts = parts_of(name);
  const auto unfit = [](const std::string& part) { return part == ".." || part.size() > 255; };
  if (parts.empty() || plain_path(name) != name || name[0] == '/') return false;
  if (name.find('\0') != std::string::npos || name.find('\\') != std::string::npos) return false;
  return std::none_of(parts.begin(), parts.end(), unfit);
}

std::string system_reason(int number) { return std::generic_category().message(number); }

OpenFile::OpenFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status {};
  if (descriptor_ < 0) throw_system_error(errno, system_reason(errno), path);
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw_system_error(EINVAL, "it is not a plain file", path);
  }
  size_ = static_cast<std::size_t>(status.st_size);
}

OpenFile::~OpenFile() { ::close(descriptor_); }

std::size_t OpenFile::read(void* content, std::size_t size) {
  while (true) {
    const ssize_t count = ::read(descriptor_, content, size);
    if (count >= 0) return static_cast<std::size_t>(count);
    if (errno != EINTR) throw_system_error(errno, system_reason(errno), path_);
  }
}

std::string read_file(const std::string& path, std::size_t most) {
  OpenFile file(path);
  if (file.size() > most) throw Malformed("it has more than " + std::to_string(most >> 20) + " MiB");
  std::string content(file.size(), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const std::size_t count = file.read(&content[done], content.size() - done);
    if (count == 0) break;
    done += count;
  }
  content.resize(done);
  return content;
}

}  // namespace infid
