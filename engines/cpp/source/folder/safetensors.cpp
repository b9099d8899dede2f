// Reads safetensors: see safetensors.hpp.
#include "folder/safetensors.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <system_error>
#include <tuple>
#include <vector>

#include "errors.hpp"
#include "folder/json.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t longest_header = 100'000'000;
constexpr auto most = std::numeric_limits<std::int64_t>::max();
const char* const metadata_name = "__metadata__";

// Every problem that the library finds is in the header.
[[noreturn]] void reject(const std::string& what) { throw Malformed("Error while deserializing header: " + what); }
[[noreturn]] void reject_json(const std::string& what) { reject("invalid JSON in header: " + what); }

struct Extent {
  std::int64_t first = 0, last = 0;  // bytes in the content behind the header
  std::string name;
  TensorView view;
};

std::size_t header_length(const std::byte* content, std::size_t size) {
  if (size < length_bytes) reject("header too small");
  std::uint64_t length = 0;
  for (std::size_t i = length_bytes; i > 0; --i) length = length << 8 | static_cast<std::uint64_t>(content[i - 1]);
  if (length > longest_header) reject("header too large");
  if (length > size - length_bytes) reject("invalid header length");
  return static_cast<std::size_t>(length);
}

Json read_header(std::string_view text) {
  const std::string problem = utf8_problem(text);
  if (!problem.empty()) reject("invalid UTF-8 in header: " + problem);
  if (text.substr(0, 3) == "\xef\xbb\xbf") reject_json("it starts with a byte order mark");
  Json header;
  try {
    header = parse_json(text, Repeated::rejected);
  } catch (const Malformed& error) {
    reject_json(error.what());
  }
  if (!header.is(Json::Kind::object)) reject_json("it is not an object");
  return header;
}

std::map<std::string, std::string> read_metadata(const Json& value) {
  std::map<std::string, std::string> metadata;
  if (value.is(Json::Kind::null)) return metadata;
  if (!value.is(Json::Kind::object)) reject_json("the metadata is not a map");
  for (const auto& [name, text] : value.object) {
    if (!text.is(Json::Kind::text)) reject_json("the metadata has an entry that is not a string");
    if (!utf8_problem(text.text).empty() || !utf8_problem(name).empty()) reject_json("lone leading surrogate");
    metadata[name] = text.text;
  }
  return metadata;
}

Dtype dtype_of(const std::string& tensor, const std::string& text) {
  static const std::map<std::string, Dtype> dtypes = {{"F16", Dtype::float16},
                                                      {"F32", Dtype::float32},
                                                      {"I8", Dtype::int8},
                                                      {"I32", Dtype::int32},
                                                      {"I64", Dtype::int64}};
  const auto found = dtypes.find(text);
  if (found != dtypes.end()) return found->second;
  throw Malformed("tensor `" + tensor + "` has the type " + text + ", which is not supported");
}

const Json& field(const Json& facts, const char* name, Json::Kind kind) {
  const Json* found = facts.find(name);
  if (found == nullptr) reject_json("missing field `" + std::string(name) + "`");
  if (found->kind != kind) reject_json("the field `" + std::string(name) + "` has another type");
  return *found;
}

std::int64_t natural(const Json& value) {
  std::uint64_t number = 0;
  const auto problem = std::from_chars(value.text.data(), value.text.data() + value.text.size(), number).ec;
  const bool fits = value.is(Json::Kind::integer) && problem == std::errc();
  if (!fits) reject_json("a size is not a natural number of 64 bits");
  return value.integer();  // a larger one becomes the largest, which no file reaches
}

Extent read_extent(const std::string& name, const Json& facts) {
  if (!facts.is(Json::Kind::object)) reject_json("a tensor is not described by an object");
  if (!utf8_problem(name).empty()) reject_json("lone leading surrogate");
  Extent extent;
  extent.name = name;
  extent.view.dtype = dtype_of(name, field(facts, "dtype", Json::Kind::text).text);
  for (const Json& each : field(facts, "shape", Json::Kind::list).list) extent.view.shape.push_back(natural(each));
  const Json& offsets = field(facts, "data_offsets", Json::Kind::list);
  if (offsets.list.size() != 2) reject_json("data_offsets are not two");
  extent.first = natural(offsets.list[0]);
  extent.last = natural(offsets.list[1]);
  return extent;
}

std::int64_t checked_product(std::int64_t first, std::int64_t second) {
  if (second != 0 && first > most / second) reject("overflow computing buffer size from shape and/or element type");
  return first * second;
}

// Checks that the tensors lie behind each other without gaps, each with the bytes of its shape, and returns their end.
std::int64_t check_extents(std::vector<Extent>& extents) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.first, a.last, a.name) < std::tie(b.first, b.last, b.name);
  });
  std::int64_t start = 0;
  for (const Extent& each : extents) {
    if (each.first != start || each.last < each.first) reject("invalid offset for tensor `" + each.name + "`");
    start = each.last;
    std::int64_t bits = 1;
    for (const std::int64_t axis : each.view.shape) bits = checked_product(bits, axis);
    bits = checked_product(bits, static_cast<std::int64_t>(8 * dtype_size(each.view.dtype)));
    if (each.last - each.first != bits / 8) reject("invalid shape, data type, or offset for tensor");
  }
  return start;
}

}  // namespace

Safetensors parse_safetensors(const std::byte* content, std::size_t size) {
  const std::size_t length = header_length(content, size);
  const std::byte* const body = content + length_bytes + length;
  const Json header = read_header({reinterpret_cast<const char*>(content) + length_bytes, length});
  Safetensors found;
  std::vector<Extent> extents;
  for (const auto& [name, value] : header.object) {
    if (name == metadata_name) {
      found.metadata = read_metadata(value);
    } else {
      extents.push_back(read_extent(name, value));
    }
  }
  const auto end = static_cast<std::uint64_t>(check_extents(extents));
  if (end != size - length_bytes - length) reject("incomplete metadata, file not fully covered");
  for (Extent& each : extents) {
    each.view.data = body + each.first;
    found.tensors[each.name] = std::move(each.view);
  }
  return found;
}

}  // namespace infid
