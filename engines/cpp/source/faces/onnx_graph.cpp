// The nodes and small constants of an ONNX file, from protobuf's wire format.
#include "faces/onnx_graph.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "errors.hpp"
#include "half.hpp"

namespace infid {
namespace {

using Bytes = std::string_view;

constexpr std::size_t kLargestConstant = 4096;  // bytes of an initializer that is read

[[noreturn]] void malformed() { throw Malformed("it is not protobuf's format"); }

// A field of a message: an integer, or the bytes of anything else.
struct Field {
  std::uint64_t number = 0, integer = 0;
  bool has_bytes = false;
  Bytes content;

  Bytes bytes() const {
    if (!has_bytes) malformed();
    return content;
  }
  std::string text() const { return std::string(bytes()); }
};

// Reads the fields of a message, one after the other.
class Fields {
 public:
  explicit Fields(Bytes message) : rest_(message) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const std::uint64_t tag = varint();
    field = Field();
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0: field.integer = varint(); return true;
      case 1: field.content = taken(8); break;
      case 2: field.content = taken(varint()); break;
      case 5: field.content = taken(4); break;
      default: malformed();
    }
    field.has_bytes = true;
    return true;
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) malformed();
      const auto byte = static_cast<std::uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    malformed();
  }

  Bytes taken(std::uint64_t length) {
    if (length > rest_.size()) malformed();
    const Bytes part = rest_.substr(0, static_cast<std::size_t>(length));
    rest_.remove_prefix(part.size());
    return part;
  }

  Bytes rest_;
};

template <class T>
T number_at(const char* place) {
  T value;
  std::memcpy(&value, place, sizeof value);
  return value;
}

double half_at(const char* place) { return static_cast<double>(float_of_half(number_at<std::uint16_t>(place))); }

// How a number of TensorProto.DataType is stored.
struct Stored {
  std::uint64_t type;
  std::size_t size;
  double (*read)(const char*);
};

template <class T>
constexpr Stored stored(std::uint64_t type) {
  return {type, sizeof(T), [](const char* place) { return static_cast<double>(number_at<T>(place)); }};
}

constexpr std::array<Stored, 7> kStored = {{stored<float>(1), stored<std::uint8_t>(2), stored<std::int8_t>(3),
                                            stored<std::int32_t>(6), stored<std::int64_t>(7), {10, 2, half_at},
                                            stored<double>(11)}};

// A tensor's flat values, if there are one or three of them; else none.
std::vector<double> few_values(const std::string& bytes, std::uint64_t type) {
  const auto found = std::find_if(kStored.begin(), kStored.end(), [type](const Stored& s) { return s.type == type; });
  if (found == kStored.end() || (bytes.size() != found->size && bytes.size() != 3 * found->size)) return {};
  std::vector<double> values;
  for (std::size_t at = 0; at < bytes.size(); at += found->size) values.push_back(found->read(bytes.data() + at));
  return values;
}

// Keep a tensor under its name, or under another one.
void keep_tensor(Bytes message, OnnxGraph& graph, const std::string* as = nullptr) {
  std::string name, values;
  std::uint64_t type = 0;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 8) name = field.text();
    if (field.number == 2) type = field.integer;
    const bool has_values = field.number == 4 || field.number == 9 || field.number == 10;  // floats, bytes, doubles
    if (has_values) values += field.bytes();
  }
  const std::string& key = as != nullptr ? *as : name;
  graph.constants.erase(key);
  if (auto few = few_values(values, type); !few.empty()) graph.constants[key] = std::move(few);
}

void read_attribute(Bytes message, OnnxNode& node) {
  std::string name, number, tensor;
  bool has_name = false, has_tensor = false;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1) name = field.text(), has_name = true;
    if (field.number == 2) number = field.text();
    if (field.number == 5) tensor = field.text(), has_tensor = true;
  }
  if (!has_name) malformed();
  node.attributes[name] = has_tensor ? tensor : number;
}

OnnxNode read_node(Bytes message) {
  OnnxNode node;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1 && !field.bytes().empty()) node.inputs.push_back(field.text());
    if (field.number == 2) node.outputs.push_back(field.text());
    if (field.number == 4) node.kind = field.text();
    if (field.number == 5) read_attribute(field.bytes(), node);
  }
  return node;
}

// Operators on constants that leave the values in the same order.
bool leaves_unchanged(const std::string& kind) {
  static const char* const kinds[] = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"};
  return std::find(std::begin(kinds), std::end(kinds), kind) != std::end(kinds);
}

Bytes graph_of(Bytes model) {
  Bytes graph;
  int count = 0;
  Field field;
  for (Fields fields(model); fields.next(field);) {
    if (field.number == 7) graph = field.bytes(), ++count;
  }
  if (count != 1) malformed();
  return graph;
}

}  // namespace

OnnxGraph read_onnx_graph(const std::byte* content, std::size_t size) {
  OnnxGraph graph;
  Field field;
  for (Fields fields(graph_of({reinterpret_cast<const char*>(content), size})); fields.next(field);) {
    if (field.number == 1) {
      OnnxNode node = read_node(field.bytes());
      if (node.kind != "Constant" || node.attributes.count("value") == 0) {
        graph.nodes.push_back(std::move(node));
      } else if (node.outputs.empty()) {
        malformed();
      } else {
        keep_tensor(node.attributes["value"], graph, &node.outputs[0]);
      }
    } else if (field.number == 5 && field.bytes().size() < kLargestConstant) {
      keep_tensor(field.bytes(), graph);
    }
  }
  for (const OnnxNode& node : graph.nodes) {
    if (!leaves_unchanged(node.kind) || node.inputs.empty()) continue;
    const auto known = graph.constants.find(node.inputs[0]);
    if (known == graph.constants.end()) continue;
    if (node.outputs.empty()) malformed();
    graph.constants[node.outputs[0]] = std::vector<double>(known->second);
  }
  return graph;
}

}  // namespace infid
