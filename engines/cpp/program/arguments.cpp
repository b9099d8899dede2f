#include "arguments.hpp"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>

const char kHelp[] = R"(
usage: infid FOLDER (--prompt TEXT | --template FILE) (--person FILE … | --photo FILE …) [-o out.png]

Generate images from an engine folder of infid-export, without Python.

what to make
  --prompt TEXT           the prompt
  --template FILE         from `infid-export template make`, instead of a prompt: one image per person
  --person FILE …         person file from `infid-export enroll`; several with --template
  --photo FILE …          photos of one person (PNG, JPEG), instead of --person
  --face-index N          which face of each photo; 0 is the largest
  --save-person FILE      write the person of --photo
  -o, --output FILE       PNG file to write (out.png)

how it is made; the folder's defaults where left out
  --negative-prompt TEXT  what to avoid
  --seed N                seed of the noise (0, or the template's); the same image as Python's
  --steps N               number of steps
  --height N, --width N   pixels, where the folder has a range
  --guidance G            classifier-free guidance scale
  --style-strength S      AdaIN-mean: 1 is the paper's, 0 is off
  --identity-strength L   strength of the identity: 1 is the paper's
  --sampler NAME          ddim, euler, dpmpp_2m, euler_a, lcm, tcd
  --spacing NAME          of the timesteps: leading, trailing, linspace, karras

engines
  --backend NAME          onnxruntime, tensorrt, tensorrt_rtx, aotinductor (auto: the fastest that runs here)
  --device NAME           auto, cpu, cuda, cuda:1, or a target such as sm_89
  --threads N             CPU threads of onnxruntime
  --onnxruntime PATH      libonnxruntime.so, such as that in the Python package onnxruntime (the usual places)

  --bench N               time N more images, and print one JSON document
  --json                  print one JSON document
  --quiet                 no progress and no notes
  --version, --help

examples
  infid infid-engines --prompt "a portrait in the rain" --person anna.safetensors -o rain.png
  infid infid-engines --template sketch.safetensors --person anna.safetensors bert.safetensors -o sketch.png
)";

namespace {

constexpr char kSee[] = "See `infid --help`.";

[[noreturn]] void reject(const std::string& problem, const std::string& fix) {
  throw infid::Error(infid::ErrorKind::input, problem, fix);
}

// The words after a flag, up to the next flag.
class Words {
 public:
  explicit Words(const std::vector<std::string>& words) : words_(words) {}

  bool done() const { return next_ == words_.size(); }
  const std::string& take() { return words_[next_++]; }

  std::string value(const std::string& flag) {
    if (done()) reject(flag + " needs a value.", kSee);
    return take();
  }

  std::vector<std::string> values(const std::string& flag) {
    std::vector<std::string> found = {value(flag)};
    while (!done() && words_[next_].rfind("-", 0) != 0) found.push_back(take());
    return found;
  }

 private:
  const std::vector<std::string>& words_;
  std::size_t next_ = 0;
};

template <class Number>
Number number(const std::string& flag, const std::string& word, Number (*convert)(const char*, char**)) {
  char* end = nullptr;
  errno = 0;
  const Number found = convert(word.c_str(), &end);
  if (word.empty() || *end != '\0' || errno == ERANGE) reject(flag + " needs a number, not '" + word + "'.", kSee);
  return found;
}

int whole(const std::string& flag, const std::string& word) {
  const long found = number<long>(flag, word, [](const char* text, char** end) { return std::strtol(text, end, 10); });
  if (found != static_cast<int>(found)) reject(flag + " needs a number, not '" + word + "'.", kSee);
  return static_cast<int>(found);
}

std::uint64_t seed(const std::string& flag, const std::string& word) {
  if (word.rfind("-", 0) == 0) reject(flag + " needs a number from 0 up, not '" + word + "'.", kSee);
  return number<unsigned long long>(
      flag, word, [](const char* text, char** end) { return std::strtoull(text, end, 10); });
}

using Handler = std::function<void(Words&, const std::string&)>;

// A flag with one value.
Handler one(std::function<void(const std::string& flag, const std::string& value)> set) {
  return [set](Words& words, const std::string& flag) { set(flag, words.value(flag)); };
}

Handler into(std::string& target) {
  return one([&target](const std::string&, const std::string& value) { target = value; });
}

Handler into(std::optional<std::string>& target) {
  return one([&target](const std::string&, const std::string& value) { target = value; });
}

Handler into(std::optional<int>& target) {
  return one([&target](const std::string& flag, const std::string& value) { target = whole(flag, value); });
}

Handler into(int& target) {
  return one([&target](const std::string& flag, const std::string& value) { target = whole(flag, value); });
}

Handler into(std::optional<double>& target) {
  return one([&target](const std::string& flag, const std::string& value) {
    target = number<double>(flag, value, std::strtod);
  });
}

Handler into(std::vector<std::string>& target) {
  return [&target](Words& words, const std::string& flag) { target = words.values(flag); };
}

Handler into(bool& target) {
  return [&target](Words&, const std::string&) { target = true; };
}

std::map<std::string, Handler> handlers(Arguments& to) {
  infid::Settings& settings = to.settings;
  return {
      {"--prompt", one([&to](const std::string&, const std::string& value) {
         to.prompt = value;
         to.has_prompt = true;
       })},
      {"--template", into(to.template_path)},
      {"--person", into(to.people)},
      {"--photo", into(to.photos)},
      {"--face-index", into(to.face)},
      {"--save-person", into(to.save_person)},
      {"--output", into(to.output)},
      {"--negative-prompt", into(settings.negative_prompt)},
      {"--seed", one([&settings](const std::string& flag, const std::string& value) {
         settings.seeds = {seed(flag, value)};
       })},
      {"--steps", into(settings.steps)},
      {"--height", into(settings.height)},
      {"--width", into(settings.width)},
      {"--guidance", into(settings.guidance)},
      {"--style-strength", into(settings.style_strength)},
      {"--identity-strength", into(settings.identity_strength)},
      {"--sampler", into(settings.sampler)},
      {"--spacing", into(settings.spacing)},
      {"--backend", into(to.options.backend)},
      {"--device", into(to.options.device)},
      {"--threads", into(to.options.threads)},
      {"--onnxruntime", into(to.options.onnxruntime)},
      {"--bench", into(to.bench)},
      {"--json", into(to.json)},
      {"--quiet", into(to.quiet)},
      {"--version", into(to.version)},
      {"--help", into(to.help)},
  };
}

// A flag by its name or the only beginning that fits, as in `infid-export`.
const std::pair<const std::string, Handler>& flag_of(const std::map<std::string, Handler>& flags,
                                                     const std::string& word) {
  const std::string name = word == "-o" ? "--output" : word == "-h" ? "--help" : word;
  const auto first = flags.lower_bound(name);
  const bool begins = name.size() > 2 && first != flags.end() && first->first.rfind(name, 0) == 0;
  const bool exact = begins && first->first == name;
  const bool several = begins && std::next(first) != flags.end() && std::next(first)->first.rfind(name, 0) == 0;
  if (!begins || (several && !exact)) reject("infid has no flag " + word + ".", kSee);
  return *first;
}

void check(const Arguments& arguments) {
  if (arguments.folder.empty()) reject("No engine folder was given.", kSee);
  const bool from_template = !arguments.template_path.empty();
  if (from_template && arguments.has_prompt) {
    reject("A template has a prompt already.", "Leave the prompt out, or --template.");
  }
  if (!from_template && !arguments.has_prompt) reject("No prompt was given.", "Give it with --prompt.");
  if (arguments.people.empty() == arguments.photos.empty()) reject("infid needs either --person or --photo.", kSee);
  if (!from_template && arguments.people.size() > 1) {
    reject("Several people were given for a prompt.",
           "Use --template for an image of each, or `infid-export enroll --stack` for all in one image.");
  }
  if (!arguments.save_person.empty() && arguments.photos.empty()) reject("--save-person goes with --photo.", kSee);
  if (arguments.bench < 0) reject("--bench needs a number from 1 up.", kSee);
}

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& all) {
  Arguments arguments;
  const auto flags = handlers(arguments);
  Words words(all);
  while (!words.done()) {
    std::string word = words.take();
    if (word.rfind("-", 0) != 0) {
      if (!arguments.folder.empty()) reject("infid does not take '" + word + "'.", kSee);
      arguments.folder = word;
      continue;
    }
    const auto& [name, handler] = flag_of(flags, word);
    handler(words, name);
  }
  if (!arguments.help && !arguments.version) check(arguments);
  return arguments;
}
