// Tokenizer files of any bytes.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "infid/infid.hpp"
#include "text/clip_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* content, std::size_t size) {
  static const std::string path =
      std::filesystem::temp_directory_path() / ("infid-fuzz-tokenizer-" + std::to_string(getpid()));
  std::ofstream(path, std::ios::binary) << std::string(reinterpret_cast<const char*>(content), size);
  try {
    const infid::ClipTokenizer tokenizer(path);
    for (const char* prompt : {"", "a photo of ab <cat>_1 x, 2024!", "ab<cat> <CAT> <cat>_1 ab  \xc3\xa9"}) {
      if (tokenizer.encode(prompt).size() != 77) std::abort();
      tokenizer.dropped(prompt);
    }
  } catch (const infid::Error& error) {
    if (error.kind() != infid::ErrorKind::engine_folder) std::abort();
  }
  return 0;
}
