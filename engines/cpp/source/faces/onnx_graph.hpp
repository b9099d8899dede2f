// The nodes and small constants of an ONNX file, read without the onnx package.
// The file format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace infid {

struct OnnxNode {
  std::string kind;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, std::string> attributes;  // bytes of a tensor or a float
};

struct OnnxGraph {
  std::vector<OnnxNode> nodes;
  std::map<std::string, std::vector<double>> constants;  // those of one or three values, which can scale pixels
};

// Throws Malformed.
OnnxGraph read_onnx_graph(const std::byte* content, std::size_t size);

}  // namespace infid
