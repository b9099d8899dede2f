#include <cstdio>
#include <map>

#include "infid/infid.hpp"
#include "probe.hpp"

namespace {
std::map<std::string, std::function<void(const std::vector<std::string>&)>>& probes() {
  static std::map<std::string, std::function<void(const std::vector<std::string>&)>> all;
  return all;
}
}  // namespace

Probe::Probe(const std::string& name, std::function<void(const std::vector<std::string>&)> run) {
  probes()[name] = std::move(run);
}

// Errors are printed as two lines on stderr, the problem and the fix, with exit code 1.
int main(int count, char** words) {
  const auto found = count > 1 ? probes().find(words[1]) : probes().end();
  if (found == probes().end()) {
    std::fprintf(stderr, "infid_probe NAME …; names:");
    for (const auto& [name, _] : probes()) std::fprintf(stderr, " %s", name.c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  try {
    found->second({words + 2, words + count});
  } catch (const infid::Error& error) {
    std::fprintf(stderr, "%s\n%s\n", error.problem().c_str(), error.fix().c_str());
    return 1;
  }
  return 0;
}
