// Writes files whole or not at all: see safetensors.hpp.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"

namespace infid {
namespace {

// The temporary sibling that a file is written to. It is removed unless it was put in place.
class Sibling {
 public:
  // `owner_only` gives it a name of its own, so that several processes may write the same file.
  Sibling(const std::string& target, bool owner_only) {
    const std::size_t slash = target.rfind('/') + 1;
    const std::string start = target.substr(0, slash) + "." + target.substr(slash) + ".";
    path_ = start + (owner_only ? "XXXXXX.partial" : "partial");
    descriptor_ = owner_only ? ::mkostemps(path_.data(), 8, O_CLOEXEC)
                             : ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  ~Sibling() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (descriptor_ >= 0 && !is_placed_) ::unlink(path_.c_str());
  }
  Sibling(const Sibling&) = delete;
  Sibling& operator=(const Sibling&) = delete;

  // Writes the content, flushes it to disk and renames the sibling; false leaves the reason in errno.
  bool replace(const std::string& target, const std::string& content) {
    if (descriptor_ < 0) return false;
    for (std::size_t done = 0; done < content.size();) {
      const ssize_t count = ::write(descriptor_, content.data() + done, content.size() - done);
      if (count < 0 && errno != EINTR) return false;
      if (count > 0) done += static_cast<std::size_t>(count);
    }
    is_placed_ = ::fsync(descriptor_) == 0 && std::rename(path_.c_str(), target.c_str()) == 0;
    return is_placed_;
  }

 private:
  std::string path_;
  int descriptor_ = -1;
  bool is_placed_ = false;
};

std::string free_space(const std::string& target) {
  std::error_code problem;
  std::filesystem::path folder = std::filesystem::absolute(target, problem).parent_path();
  while (!std::filesystem::exists(folder, problem) && folder != folder.parent_path()) folder = folder.parent_path();
  struct statvfs disk {};
  ::statvfs(folder.c_str(), &disk);
  char text[64];
  const double bytes = static_cast<double>(disk.f_frsize) * static_cast<double>(disk.f_bavail);
  std::snprintf(text, sizeof text, "%.2f", bytes / 1e9);
  return text;
}

}  // namespace

void write_file(const std::string& path, const std::string& content, bool owner_only) {
  const std::string target = plain_path(path);
  int reason = 0;
  {
    Sibling sibling(target, owner_only);
    if (sibling.replace(target, content)) return;
    reason = errno;
  }
  if (reason != ENOSPC && reason != EDQUOT) throw Malformed(system_reason(reason));
  fail(ErrorKind::disk_full, "The disk with " + target + " is full (" + free_space(target) + " GB free).",
       "Free some space and run the same command again; no partial files were left.");
}

}  // namespace infid
