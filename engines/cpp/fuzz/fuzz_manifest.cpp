// Manifests without a seal: whatever is accepted must have sizes and names that the library may use.
#include <cstdlib>
#include <string_view>

#include "errors.hpp"
#include "folder/documents.hpp"
#include "folder/manifest_document.hpp"
#include "folder/paths.hpp"
#include "runtime/template.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void use(const infid::Manifest& manifest) {
  require(manifest.height >= 1 && manifest.batch >= 1 && manifest.text_model_id.size() == 64);
  for (const auto& [name, _] : manifest.files) require(infid::is_inside(name));
  for (const auto& [_, graph] : manifest.graphs) require(manifest.files.count(graph.file) == 1);
  manifest.targets("onnxruntime");
  infid::image_size(manifest, {}, {});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const infid::Json document = infid::parse_json({reinterpret_cast<const char*>(data), size});
    const std::string text = infid::canonical_json(document);
    require(infid::canonical_json(infid::parse_json(text)) == text);
    if (document.is(infid::Json::Kind::object)) infid::unsealed(infid::sealed(document));
    infid::Manifest manifest = infid::manifest_of(document);
    infid::read_settings(manifest, document);
    use(manifest);
  } catch (const infid::Malformed&) {
  } catch (const infid::Error&) {
  }
  return 0;
}
