// Seals and writes safetensors: see safetensors.hpp.
#include <algorithm>
#include <vector>

#include "folder/json.hpp"
#include "folder/safetensors.hpp"
#include "folder/sha256.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

std::string seal_of(const std::map<std::string, std::string>& metadata, const Views& tensors) {
  std::string facts;
  for (const auto& [name, value] : metadata) {
    if (name == kSealKey) continue;
    facts += (facts.empty() ? "" : ", ") + json_quoted(name) + ": " + json_quoted(value);
  }
  Sha256 digest;
  digest.update("{" + facts + "}");
  for (const auto& [name, view] : tensors) {
    digest.update("\n" + name + " " + dtype_name(view.dtype) + " " + shape_text(view.shape) + "\n");
    digest.update(view.data, view.bytes());
  }
  return digest.hex();
}

const char* header_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16: return "F16";
    case Dtype::float32: return "F32";
    case Dtype::int8: return "I8";
    case Dtype::int32: return "I32";
    default: return "I64";
  }
}

// The library's order of dtypes, by which it sorts the tensors of a file, from the last to the first.
int rank_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::int8: return 0;
    case Dtype::float16: return 1;
    case Dtype::int32: return 2;
    case Dtype::float32: return 3;
    default: return 4;
  }
}

// A text as the header has it: only what JSON's grammar wants is escaped.
std::string header_text(const std::string& text) {
  std::string found = "\"";
  for (const char c : text) {
    const bool is_plain = static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\';
    const std::string escaped = is_plain ? "" : json_quoted(std::string(1, c));
    found += is_plain ? std::string(1, c) : escaped.substr(1, escaped.size() - 2);
  }
  return found + '"';
}

std::string list_text(const Shape& values) {
  std::string text = shape_text(values);
  text.erase(std::remove(text.begin(), text.end(), ' '), text.end());
  return text;
}

std::string padded(std::string text) {
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (int shift = 0; shift < 64; shift += 8) length += static_cast<char>(text.size() >> shift & 0xff);
  return length + text;
}

}  // namespace

std::string array_seal(const Safetensors& file) { return seal_of(file.metadata, file.tensors); }

std::string sealed_safetensors(const std::map<std::string, std::string>& metadata, const Views& tensors) {
  std::map<std::string, std::string> facts = metadata;
  facts[kSealKey] = seal_of(metadata, tensors);
  std::string header, content;
  for (const auto& [name, value] : facts) {
    header += (header.empty() ? "{\"__metadata__\":{" : ",") + header_text(name) + ":" + header_text(value);
  }
  header += "}";
  std::vector<Views::const_iterator> order;
  for (auto each = tensors.begin(); each != tensors.end(); ++each) order.push_back(each);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return rank_of(a->second.dtype) > rank_of(b->second.dtype);
  });
  for (const auto& each : order) {
    const auto& [name, view] = *each;
    const auto start = static_cast<std::int64_t>(content.size());
    content.append(static_cast<const char*>(view.data), view.bytes());
    header += "," + header_text(name) + ":{\"dtype\":\"" + header_dtype(view.dtype) +
              "\",\"shape\":" + list_text(view.shape) +
              ",\"data_offsets\":" + list_text({start, static_cast<std::int64_t>(content.size())}) + "}";
  }
  return padded(header + "}") + content;
}

}  // namespace infid
