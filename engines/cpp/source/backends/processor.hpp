// The instruction sets of this machine's processor, as `infid_engines.processor` names them.
#pragma once

#include <string>
#include <vector>

namespace infid {

// The vector instruction sets that a /proc/cpuinfo lists, the narrowest first; none if no line names them.
std::vector<std::string> instruction_sets(const std::string& cpuinfo = "/proc/cpuinfo");

// This processor as a target, such as `cpu-avx512_vnni`: its widest instruction set.
std::string cpu_target();

// Which of the given instruction sets this processor lacks; an unknown one counts as missing.
std::vector<std::string> missing_sets(const std::vector<std::string>& names);

}  // namespace infid
