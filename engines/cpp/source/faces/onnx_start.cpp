// How an ONNX face model scales pixels in its first nodes.
#include "faces/onnx_start.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "errors.hpp"
#include "faces/onnx_graph.hpp"

namespace infid {
namespace {

using Channels = std::array<double, 3>;

// What is done to the pixels of each channel: a factor, then a shift.
struct Scaling {
  Channels factor = {1, 1, 1}, shift = {0, 0, 0};
};

// Nodes that move or cast pixels without scaling them.
bool passes(const std::string& kind) {
  static const char* const kinds[] = {"Identity", "Cast", "Transpose", "Dropout", "Gather"};
  return std::find(std::begin(kinds), std::end(kinds), kind) != std::end(kinds);
}

double epsilon_of(const OnnxNode& node) {
  const auto found = node.attributes.find("epsilon");
  if (found == node.attributes.end()) return 1e-5;
  float value;
  if (found->second.size() != sizeof value) throw Malformed("an epsilon is not a float");
  std::memcpy(&value, found->second.data(), sizeof value);
  return static_cast<double>(value);
}

// The values of a constant by channel; none if it is unknown.
std::optional<Channels> values_of(const OnnxGraph& graph, const std::string& name) {
  const auto found = graph.constants.find(name);
  if (found == graph.constants.end()) return std::nullopt;
  const std::vector<double>& values = found->second;
  return values.size() == 3 ? Channels{values[0], values[1], values[2]} : Channels{values[0], values[0], values[0]};
}

// The scaling after a node of which all other inputs are known.
std::optional<Scaling> after(const OnnxNode& node, bool first, Scaling scaling, const std::vector<Channels>& known) {
  const bool normalizes = node.kind == "BatchNormalization";
  if (known.size() != (normalizes ? 4 : 1)) return std::nullopt;
  for (std::size_t i = 0; i < 3; ++i) {
    double &factor = scaling.factor[i], &shift = scaling.shift[i];
    const double value = known[0][i];
    if (node.kind == "Add") {
      shift += value;
    } else if (node.kind == "Sub") {
      shift = first ? shift - value : value - shift;
      factor = first ? factor : -factor;
    } else if (node.kind == "Mul") {
      factor *= value, shift *= value;
    } else if (node.kind == "Div" && first) {
      factor /= value, shift /= value;
    } else if (normalizes) {
      const double slope = value / std::sqrt(known[3][i] + epsilon_of(node));
      factor *= slope, shift = (shift - known[2][i]) * slope + known[1][i];
    } else {
      return std::nullopt;
    }
  }
  return scaling;
}

// The scaling after a node that takes the pixels as `name`; none if it is not linear with known constants.
std::optional<Scaling> after(const OnnxGraph& graph, const OnnxNode& node, const std::string& name,
                             const Scaling& scaling) {
  std::vector<Channels> known;
  for (const std::string& other : node.inputs) {
    if (other == name) continue;
    const std::optional<Channels> values = values_of(graph, other);
    if (!values) return std::nullopt;
    known.push_back(*values);
  }
  return after(node, node.inputs[0] == name, scaling, known);
}

std::map<std::string, std::vector<const OnnxNode*>> users_by_input(const OnnxGraph& graph) {
  std::map<std::string, std::vector<const OnnxNode*>> users;
  for (const OnnxNode& node : graph.nodes) {
    if (node.kind == "Shape") continue;
    for (const std::string& name : node.inputs) {
      std::vector<const OnnxNode*>& all = users[name];
      if (all.empty() || all.back() != &node) all.push_back(&node);
    }
  }
  return users;
}

// What the first nodes do to the input.
Scaling first_scaling(const OnnxGraph& graph, std::string name) {
  const auto users = users_by_input(graph);
  Scaling scaling;
  for (std::size_t left = graph.nodes.size() + 1; left > 0; --left) {
    const auto found = users.find(name);
    if (found == users.end() || found->second.size() != 1) return scaling;
    const OnnxNode& node = *found->second[0];
    if (!passes(node.kind)) {
      const std::optional<Scaling> next = after(graph, node, name, scaling);
      if (!next) return scaling;
      scaling = *next;
    }
    if (node.outputs.empty()) throw Malformed("a node has no output");
    name = node.outputs[0];
  }
  throw Malformed("its nodes form a circle");
}

// How far a range is from centered and of unit size at the first layer.
double oddness(const Scaling& scaling, const PixelRange& range) {
  double sum = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const double low = scaling.factor[i] * range.low + scaling.shift[i];
    const double high = scaling.factor[i] * range.high + scaling.shift[i];
    const double half = std::max(std::abs(high - low) / 2, 1e-9);
    sum += std::abs((low + high) / 2) / half + std::abs(std::log(half));
  }
  return sum / 3;
}

}  // namespace

PixelRange expected_range(const std::byte* model, std::size_t size, const std::string& input) {
  const Scaling scaling = first_scaling(read_onnx_graph(model, size), input);
  PixelRange best = kSigned;
  for (const PixelRange& range : {kUnit, kRaw}) {
    if (oddness(scaling, range) < oddness(scaling, best)) best = range;
  }
  return best;
}

}  // namespace infid
