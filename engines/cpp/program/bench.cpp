#include "bench.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>

namespace {

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// A line of /proc/self/status in bytes.
double memory(const std::string& name) {
  std::ifstream file("/proc/self/status");
  std::string word;
  double kilobytes = 0;
  while (file >> word) {
    if (word == name) file >> kilobytes;
  }
  return kilobytes * 1024;
}

}  // namespace

std::string bench(const Make& make, int count, Clock::time_point started, Clock::time_point first) {
  std::vector<double> images, steps;
  for (int i = 0; i < count; ++i) {
    const auto begun = Clock::now();
    std::vector<Clock::time_point> ends;
    make([&] { ends.push_back(Clock::now()); });
    images.push_back(seconds(Clock::now() - begun));
    for (std::size_t step = 1; step < ends.size(); ++step) steps.push_back(seconds(ends[step] - ends[step - 1]));
  }
  char text[512];
  std::snprintf(text, sizeof text,
                "{\"images\": %d, \"image_s\": %.6f, \"step_s\": %.6f, \"start_to_first_image_s\": %.6f, "
                "\"resident_bytes\": %.0f, \"peak_resident_bytes\": %.0f}",
                count, median(images), median(steps), seconds(first - started), memory("VmRSS:"), memory("VmHWM:"));
  return text;
}
