// Prompts of any bytes, with the small tokenizers beside this file, or those of the engine folder INFID_FUZZ_FOLDER.
#include <cstdlib>
#include <filesystem>

#include "infid/infid.hpp"
#include "text/tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* content, std::size_t size) {
  static const char* const folder = std::getenv("INFID_FUZZ_FOLDER");
  static const infid::PromptTokenizer tokenizer(
      folder ? folder : (std::filesystem::path(__FILE__).parent_path() / "small").string());
  const std::string prompt(reinterpret_cast<const char*>(content), size);
  try {
    for (const int encoder : {0, 1}) {
      if (tokenizer.encode(encoder, prompt).size() != 77) std::abort();
    }
    tokenizer.notes(prompt);
  } catch (const infid::Error& error) {
    if (error.kind() != infid::ErrorKind::input) std::abort();
  }
  return 0;
}
