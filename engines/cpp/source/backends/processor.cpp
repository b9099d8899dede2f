// Names the processor by its widest vector instructions.
#include "backends/processor.hpp"

#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

namespace infid {
namespace {

// By the names that PyTorch uses (torch/_inductor/cpu_vec_isa.py), the processor flags behind them.
const std::vector<std::pair<std::string, std::vector<std::string>>> kFlags = {
    {"avx2", {"avx2", "fma", "f16c"}},
    {"avx512", {"avx512f", "avx512dq", "avx512bw", "avx512vl"}},
    {"avx512_vnni", {"avx512_vnni"}},
    {"amx_tile", {"amx_tile", "amx_bf16", "amx_int8"}},
};

std::set<std::string> flags_of(const std::string& cpuinfo) {
  std::ifstream file(cpuinfo);
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    std::istringstream name(line.substr(0, colon)), values(colon == std::string::npos ? "" : line.substr(colon + 1));
    std::string word;
    if (!(name >> word) || word != "flags" || name >> word) continue;
    std::set<std::string> flags;
    while (values >> word) flags.insert(word);
    return flags;
  }
  return {};
}

}  // namespace

std::vector<std::string> instruction_sets(const std::string& cpuinfo) {
  const std::set<std::string> flags = flags_of(cpuinfo);
  std::vector<std::string> found;
  for (const auto& [name, needed] : kFlags) {
    const bool all = std::all_of(needed.begin(), needed.end(), [&](const auto& flag) { return flags.count(flag); });
    if (all) found.push_back(name);
  }
  return found;
}

std::string cpu_target() {
  const std::vector<std::string> sets = instruction_sets();
  if (!sets.empty()) return "cpu-" + sets.back();
  utsname machine{};
  uname(&machine);
  return std::string("cpu-") + machine.machine;
}

std::vector<std::string> missing_sets(const std::vector<std::string>& names) {
  const std::vector<std::string> present = instruction_sets();
  std::vector<std::string> missing;
  for (const std::string& name : names) {
    if (std::find(present.begin(), present.end(), name) == present.end()) missing.push_back(name);
  }
  return missing;
}

}  // namespace infid
