// Devices, targets and inputs, checked with the sentences of `infid_engines.backends` and `infid_engines.device`.
#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "backends/cuda_driver.hpp"
#include "backends/engine.hpp"
#include "backends/targets.hpp"
#include "text/join.hpp"

namespace infid {
namespace {

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

bool all_digits(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char each) { return each >= '0' && each <= '9'; });
}

// A letter, a number or "_", which is what \w means in Python.
bool is_word(std::int32_t point) {
  const utf8proc_category_t category = utf8proc_category(point);
  return point == '_' || (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
         (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

bool all_words(const std::string& text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto size = static_cast<utf8proc_ssize_t>(text.size());
  for (utf8proc_ssize_t at = 0; at < size;) {
    utf8proc_int32_t point = -1;
    const utf8proc_ssize_t length = utf8proc_iterate(bytes + at, size - at, &point);
    if (length < 1 || !is_word(point)) return false;
    at += length;
  }
  return size > 0;
}

bool is_target(const std::string& text) {
  return (starts_with(text, "sm_") && all_digits(text.substr(3))) ||
         (starts_with(text, "cpu-") && all_words(text.substr(4)));
}

// The number after "cuda:"; none if it is not one of 0 to 9999, written without leading zeros.
std::optional<int> gpu_number(const std::string& text) {
  const bool plain = all_digits(text) && text.size() <= 4 && (text == "0" || text[0] != '0');
  return plain ? std::optional<int>(std::stoi(text)) : std::nullopt;
}

void require_gpu(int index) {
  const int count = static_cast<int>(gpu_architectures().size());
  if (index < count) return;
  unavailable("There is no cuda:" + std::to_string(index) + ": CUDA finds " +
                  (count ? std::to_string(count) : std::string("no")) + " GPU" + (count == 1 ? "" : "s") +
                  " on this machine.",
              count ? "Use cuda:" + std::to_string(count - 1) + " or lower; CUDA_VISIBLE_DEVICES chooses among them."
                    : std::string("Check the driver with `infid-export doctor`, or use the CPU."));
}

std::string names_of(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> names;
  for (const TensorSpec& spec : specs) names.push_back(spec.name);
  return joined(names, ", ");
}

void check_names(const std::vector<TensorSpec>& specs, const Views& given) {
  std::set<std::string> wanted;
  for (const TensorSpec& spec : specs) wanted.insert(spec.name);
  std::vector<std::string> missing, unknown;
  for (const std::string& name : wanted) {
    if (!given.count(name)) missing.push_back(name);
  }
  for (const auto& [name, _] : given) {
    if (!wanted.count(name)) unknown.push_back(name);
  }
  const std::string fix = "Its inputs are " + names_of(specs) + ".";
  if (!missing.empty()) input_error("The graph's call lacks input " + joined(missing, ", ") + ".", fix);
  if (!unknown.empty()) input_error("The graph's call has no input " + joined(unknown, ", ") + ".", fix);
}

// "[2, [1, 4, 16]]", as Python writes a list with dynamic dimensions.
std::string dimensions_text(const std::vector<Dimension>& shape) {
  std::vector<std::string> texts;
  for (const Dimension& each : shape) {
    texts.push_back(each.fixed() ? std::to_string(each.least) : shape_text({each.least, each.usual, each.most}));
  }
  return "[" + joined(texts, ", ") + "]";
}

bool fits(const TensorSpec& spec, const TensorView& view) {
  return view.dtype == spec.dtype && view.shape.size() == spec.shape.size() &&
         std::equal(view.shape.begin(), view.shape.end(), spec.shape.begin(),
                    [](std::int64_t extent, const auto& each) { return each.least <= extent && extent <= each.most; });
}

}  // namespace

void check_inputs(const std::vector<TensorSpec>& specs, const Views& given) {
  check_names(specs, given);
  for (const TensorSpec& spec : specs) {
    const TensorView& view = given.at(spec.name);
    if (fits(spec, view)) continue;
    input_error("Input " + spec.name + " must be " + dtype_name(spec.dtype) + " " + dimensions_text(spec.shape) +
                    ", not " + dtype_name(view.dtype) + " " + shape_text(view.shape) + ".",
                "Build the folder for this size, or change the input.");
  }
}

void check_engine_names(const std::string& path, const std::string& kind, const std::vector<TensorSpec>& specs,
                        const std::vector<std::string>& names) {
  std::set<std::string> wanted, found(names.begin(), names.end()), different;
  for (const TensorSpec& spec : specs) wanted.insert(spec.name);
  std::set_symmetric_difference(wanted.begin(), wanted.end(), found.begin(), found.end(),
                                std::inserter(different, different.end()));
  if (different.empty()) return;
  folder_error("The " + kind + " of " + path + " differ from the manifest's: only one of them has " +
                   quoted(*different.begin()) + ".",
               "Build the folder again with `infid-export build`.");
}

std::optional<Device> requested_device(const std::string& text) {
  if (text == "auto" || is_target(text)) return std::nullopt;
  if (text == "cpu") return Device{};
  std::optional<int> index;
  if (text == "cuda") index = 0;
  if (starts_with(text, "cuda:")) index = gpu_number(text.substr(5));
  if (!index) {
    input_error("There is no device " + shown(text) + ".", "Give auto, cpu, cuda, or cuda:1 for the second GPU.");
  }
  if (*index) require_gpu(*index);  // of the first GPU, backends say themselves what they lack
  return Device{"cuda", *index};
}

std::optional<std::string> present_architecture(int index) {
  const std::vector<std::string> found = gpu_architectures();
  if (index < 0 || static_cast<std::size_t>(index) >= found.size()) return std::nullopt;
  return found[static_cast<std::size_t>(index)];
}

std::pair<std::optional<std::string>, Device> choose_gpu_target(const std::string& backend, const std::string& device,
                                                                const std::vector<std::string>& targets) {
  const auto is_stored = [&](const std::string& name) {
    return std::find(targets.begin(), targets.end(), name) != targets.end();
  };
  if (is_stored(device)) return {device, Device{"cuda", 0}};
  const std::string stored = targets.empty() ? "nothing" : joined(targets, ", ");
  const std::optional<Device> asked = device == "auto" ? Device{"cuda", 0} : requested_device(device);
  if (!asked || asked->kind != "cuda") {
    input_error("The folder has no " + backend + " engines for '" + device + "', only for " + stored + ".",
                "Use one of them, or build with --backend " + backend + " --target " + device + ".");
  }
  const std::optional<std::string> present = present_architecture(asked->index);
  if (!present || !is_stored(*present)) {
    const std::string where = asked->index ? asked->text() + " is" : "this machine has";
    unavailable("The folder's " + backend + " engines are for " + stored + ", but " + where + " " +
                    present.value_or("no GPU") + ".",
                present ? "infid-export build --backend " + backend + " --target " + *present
                        : "Run on a machine with such a GPU, or choose another --backend.");
  }
  return {present, *asked};
}

}  // namespace infid
