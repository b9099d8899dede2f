// Person files, as they are and resealed; an accepted person can be averaged, fitted and written.
#include <cstdlib>

#include "errors.hpp"
#include "runtime/person.hpp"
#include "sealed_file.hpp"

namespace {

void use(const infid::Person& person) {
  infid::averaged({person, person, person}, "mix");
  infid::Manifest manifest;
  manifest.model_id = person.model();
  manifest.people = 4;
  manifest.identity_tokens = 3;
  const infid::Person filled = infid::fitted_person(manifest, person);
  if (filled.data().identity_keys.shape()[1] != 12) std::abort();
}

void attempt(const std::string& content) {
  const infid::MemoryFile file(content);
  try {
    use(infid::Person::load(file.path()));
  } catch (const infid::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  attempt(content);
  if (const auto copy = infid::resealed(content)) attempt(*copy);
  return 0;
}
