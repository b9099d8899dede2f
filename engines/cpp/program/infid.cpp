// The program infid: an image from an engine folder, a person and a prompt.

#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>

#include "arguments.hpp"
#include "bench.hpp"

namespace {

namespace fs = std::filesystem;
using infid::Error;
using infid::ErrorKind;

enum ExitCode { kDone = 0, kProblem = 1, kFault = 2, kInterrupted = 130 };

infid::Cancel interrupted;

void on_interrupt(int) { interrupted.set(); }

std::string json_text(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    char escape[8];
    if (c == '"' || c == '\\') {
      quoted += std::string("\\") + c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

// Rejects a path that cannot be written, before any work is done.
void require_writable(const fs::path& path) {
  if (path.extension() != ".png") {
    throw Error(ErrorKind::input, path.string() + " does not end in .png.", "Give another name.");
  }
  const fs::path folder = fs::absolute(path).parent_path();
  if (fs::is_directory(path)) {
    throw Error(ErrorKind::input, path.string() + " is a folder.", "Give the path of a file with -o.");
  }
  if (!fs::is_directory(folder)) {
    throw Error(ErrorKind::input, "The folder " + folder.string() + " does not exist.", "mkdir -p " + folder.string());
  }
  if (access(folder.c_str(), W_OK) != 0) {
    throw Error(ErrorKind::input, path.string() + " cannot be written (Permission denied).", "Choose another with -o.");
  }
}

std::vector<std::string> output_paths(const fs::path& path, std::size_t count) {
  std::vector<std::string> paths;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string name = path.stem().string() + "-" + std::to_string(i) + path.extension().string();
    paths.push_back(count == 1 ? path.string() : (path.parent_path() / name).string());
    require_writable(paths.back());
  }
  return paths;
}

// A text without byte order marks at the start of lines, as from `"$(cat prompt.txt)"` in a shell.
std::string without_marks(const std::string& text) {
  static const std::string mark = "\xEF\xBB\xBF";
  std::string found;
  for (std::size_t i = 0; i < text.size();) {
    const bool begins = found.empty() || found.back() == '\n';
    if (begins && text.compare(i, mark.size(), mark) == 0) {
      i += mark.size();
    } else {
      found += text[i++];
    }
  }
  return found;
}

// Progress with the time that is left, where stderr is a terminal.
class Progress {
 public:
  explicit Progress(bool quiet) : shown_(!quiet && isatty(STDERR_FILENO) == 1) {}
  ~Progress() {
    if (shown_ && printed_) std::fputc('\n', stderr);
  }
  void step(int step, int steps) {
    if (!shown_) return;
    if (step == 1) first_ = Clock::now();
    const double each = step < 2 ? 0 : std::chrono::duration<double>(Clock::now() - first_).count() / (step - 1);
    std::fprintf(stderr, "\rstep %d of %d, %.0f s left ", step, steps, each * (steps - step));
    printed_ = true;
  }

 private:
  bool shown_, printed_ = false;
  Clock::time_point first_;
};

infid::Person enrolled(const Arguments& arguments, const infid::Pipeline& pipe, const infid::Watch& watch) {
  std::vector<infid::Image> photos;
  for (const std::string& path : arguments.photos) photos.push_back(infid::Image::load(path));
  infid::Person person = pipe.enroll(photos, arguments.face, "", watch);
  if (!arguments.save_person.empty()) person.save(arguments.save_person);
  return person;
}

void print_document(const std::vector<std::string>& paths, const infid::Pipeline& pipe, std::uint64_t seed) {
  std::string images;
  for (const std::string& path : paths) images += (images.empty() ? "" : ", ") + json_text(path);
  std::printf("{\"images\": [%s], \"backend\": %s, \"device\": %s, \"seed\": %llu}\n", images.c_str(),
              json_text(pipe.backend()).c_str(), json_text(pipe.device()).c_str(),
              static_cast<unsigned long long>(seed));
}

void generate(const Arguments& arguments, Clock::time_point started) {
  const std::size_t count = arguments.template_path.empty() ? 1 : std::max<std::size_t>(arguments.people.size(), 1);
  const auto paths = output_paths(arguments.output, count);
  std::optional<infid::Template> made;
  if (!arguments.template_path.empty()) made = infid::Template::load(arguments.template_path);
  const auto pipe = infid::Pipeline::load(arguments.folder, arguments.options);
  Progress progress(arguments.quiet || arguments.bench > 0);
  infid::Watch watch;
  watch.cancel = &interrupted;
  watch.step = [&](int step, int steps) { progress.step(step, steps); };
  if (!arguments.quiet) {
    std::fprintf(stderr, "%s\n", pipe.choice().c_str());
    watch.note = [](const std::string& note) { std::fprintf(stderr, "note: %s\n", note.c_str()); };
  }
  std::vector<infid::Person> people;
  for (const std::string& path : arguments.people) people.push_back(infid::Person::load(path));
  if (people.empty()) people.push_back(enrolled(arguments, pipe, watch));
  infid::Settings settings = arguments.settings;
  if (settings.negative_prompt) settings.negative_prompt = without_marks(*settings.negative_prompt);
  if (settings.seeds.empty() && !made) settings.seeds = {0};
  const std::vector<std::string> prompts = {without_marks(arguments.prompt)};
  const auto make = [&](const infid::Watch& follow) {
    return made ? pipe.generate(*made, people, settings, follow) : pipe.generate(prompts, people, settings, follow);
  };
  const auto images = make(watch);
  for (std::size_t i = 0; i < images.size(); ++i) images[i].save(paths[i]);
  const auto first = Clock::now();
  if (arguments.bench > 0) {
    const Make again = [&](const std::function<void()>& on_step) {
      infid::Watch timed;
      timed.cancel = &interrupted;
      timed.step = [&](int, int) { on_step(); };
      make(timed);
    };
    std::printf("%s\n", bench(again, arguments.bench, started, first).c_str());
  } else if (arguments.json) {
    print_document(paths, pipe, settings.seeds.empty() ? made->seed() : settings.seeds.front());
  } else {
    for (const std::string& path : paths) std::printf("%s\n", path.c_str());
  }
}

void print_problem(const Error& error, const char* kind, bool json) {
  std::fprintf(stderr, "error: %s\n  fix: %s\n", error.problem().c_str(), error.fix().c_str());
  if (!json) return;
  std::printf("{\"error\": {\"kind\": %s, \"problem\": %s, \"fix\": %s}}\n", json_text(kind).c_str(),
              json_text(error.problem()).c_str(), json_text(error.fix()).c_str());
}

// The names of the exceptions in `infid_engines.errors`.
const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::input: return "InputError";
    case ErrorKind::disk_full: return "DiskFullError";
    case ErrorKind::backend_unavailable: return "BackendUnavailableError";
    case ErrorKind::engine_folder: return "EngineFolderError";
    case ErrorKind::non_finite: return "NonFiniteError";
    default: return "CancelledError";
  }
}

int run(const std::vector<std::string>& words, Clock::time_point started) {
  bool json = false;
  for (const std::string& word : words) json = json || word == "--json";
  try {
    const Arguments arguments = parse_arguments(words);
    if (arguments.help) return std::fputs(kHelp + 1, stdout) < 0 ? kFault : kDone;
    if (arguments.version) return std::printf("infid %s\n", infid::version()) < 0 ? kFault : kDone;
    generate(arguments, started);
    return kDone;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::cancelled) {
      print_problem(error, name_of(error.kind()), json);
      return kProblem;
    }
    const Error said(error.kind(), "Interrupted.", "No partial files were left; run the same command again.");
    print_problem(said, "Interrupted", json);
    return kInterrupted;
  } catch (const std::bad_alloc&) {
    const Error said(ErrorKind::input, "Out of memory.", "Close other programs, or use a smaller batch or size.");
    print_problem(said, "InputError", json);
    return kProblem;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\nThis is a bug in infid, not in your input. Please report it with the line above.\n",
                 error.what());
    return kFault;
  }
}

}  // namespace

int main(int count, char** words) {
  const auto started = Clock::now();
  std::signal(SIGINT, on_interrupt);
  return run({words + 1, words + count}, started);
}
