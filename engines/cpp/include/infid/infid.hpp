// infid: images of a person from an engine folder, without Python.
//
//     infid::Pipeline pipe = infid::Pipeline::load("infid-engines");
//     infid::Person person = infid::Person::load("anna.safetensors");
//     pipe.generate("a portrait in the rain", person).save("rain.png");
//
// The same folder, person, prompt and settings give the image that `infid_export.Pipeline` gives. Every function here
// throws `infid::Error` and no other exception, except for std::bad_alloc; one that a callback throws passes through.
// Texts are UTF-8.
#ifndef INFID_INFID_HPP
#define INFID_INFID_HPP

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(INFID_STATIC)
#define INFID_API
#else
#define INFID_API __attribute__((visibility("default")))
#endif

namespace infid {

// The version of this library, such as "0.1.0".
INFID_API const char* version() noexcept;

// What kind of problem an error is; the names are those of the exceptions in `infid_engines.errors`.
enum class ErrorKind {
  input = 1,            // an argument, photo, prompt, person or template cannot be used
  disk_full,            // the disk is full; no partial files were left
  backend_unavailable,  // a backend's library or device is missing on this machine
  engine_folder,        // the engine folder is missing, incomplete, stale or damaged
  non_finite,           // the engines returned infinite values or NaN
  cancelled,            // the caller asked to stop
};

// A problem that the user can fix.
class INFID_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string problem, std::string fix);

  ErrorKind kind() const noexcept { return kind_; }
  // What was expected and what was found, in one sentence.
  const std::string& problem() const noexcept { return problem_; }
  // What to do, as one sentence or command.
  const std::string& fix() const noexcept { return fix_; }

 private:
  ErrorKind kind_;
  std::string problem_, fix_;
};

// An image: rows from the top, three bytes (red, green, blue) per pixel.
struct INFID_API Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;

  // The image as a PNG file.
  std::vector<std::uint8_t> png() const;
  // Write a PNG file, whole or not at all.
  void save(const std::string& path) const;
  // Read a photo. PNG, and JPEG where the library was built with libjpeg; turned as its EXIF orientation says, with
  // colors converted to sRGB from its profile. A profile that cannot be used is ignored, as in Python, but without a
  // warning.
  static Image load(const std::string& path);
};

namespace detail {
struct PersonData;
struct TemplateData;
class PipelineData;
}  // namespace detail

// One or several people as identity inputs of the engines. Copies share their content, which never changes.
class INFID_API Person {
 public:
  // Read a file of `infid-export enroll`, and compare it with its seal.
  static Person load(const std::string& path);
  // Write a person file, whole or not at all, readable by its owner alone.
  void save(const std::string& path) const;

  const std::string& name() const noexcept;
  // The id of the model that the person was enrolled with.
  const std::string& model() const noexcept;

  explicit Person(std::shared_ptr<const detail::PersonData> data) : data_(std::move(data)) {}
  const detail::PersonData& data() const noexcept { return *data_; }

 private:
  std::shared_ptr<const detail::PersonData> data_;
};

// The text stream of one prompt, computed once by `infid-export template make`, for any number of people.
class INFID_API Template {
 public:
  // Open a template file, which is mapped into memory. `check` reads all of it and compares it with its seal.
  static Template load(const std::string& path, bool check = true);

  const std::string& prompt() const noexcept;
  std::uint64_t seed() const noexcept;
  int steps() const noexcept;

  explicit Template(std::shared_ptr<const detail::TemplateData> data) : data_(std::move(data)) {}
  const detail::TemplateData& data() const noexcept { return *data_; }

 private:
  std::shared_ptr<const detail::TemplateData> data_;
};

// Which engines are used, and how.
struct Options {
  std::string backend = "auto";  // or onnxruntime, tensorrt, tensorrt_rtx, aotinductor
  std::string device = "auto";   // or cpu, cuda, cuda:1, or a target such as sm_89
  int threads = 0;               // CPU threads of onnxruntime; 0 is one per core
  // ONNX Runtime's shared library, such as the one in the Python package onnxruntime. Empty: the usual places.
  std::string onnxruntime;
};

// How images are made. What is left out is the folder's default, or what the template decides.
struct Settings {
  std::optional<std::string> negative_prompt;
  std::vector<std::uint64_t> seeds;  // one, or one per image; one seed for several prompts counts up; none: random
  std::vector<std::uint64_t> text_seeds;  // likewise, of the text stream, if there is one; none: the same noise
  std::optional<int> height, width, steps;
  std::optional<double> guidance, style_strength, identity_strength;
  std::optional<std::string> sampler, spacing;
};

// Stops a generation from another thread.
class Cancel {
 public:
  void set() noexcept { set_.store(true, std::memory_order_relaxed); }
  bool is_set() const noexcept { return set_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> set_{false};
};

// Who follows a generation, and may stop it. The functions are called on the thread that generates.
struct Watch {
  std::function<void(int step, int steps)> step;      // after each step, which counts from 1
  std::function<void(const std::string&)> note;  // what the user should know, such as dropped words of a prompt
  const Cancel* cancel = nullptr;                     // must outlive the call
};

// Generates images of people with the engines of a folder. May be used from several threads: calls take turns. Copies
// share the engines.
class INFID_API Pipeline {
 public:
  // Open an engine folder. Each engine is verified and loaded on first use.
  static Pipeline load(const std::string& folder, const Options& options = {});

  // One image of a person.
  Image generate(const std::string& prompt, const Person& person, const Settings& settings = {},
                 const Watch& watch = {}) const;
  // One image per prompt; one person for all, or one per prompt.
  std::vector<Image> generate(const std::vector<std::string>& prompts, const std::vector<Person>& people,
                              const Settings& settings = {}, const Watch& watch = {}) const;
  // One image per person. A template decides all settings but the seeds and the strengths.
  std::vector<Image> generate(const Template& from, const std::vector<Person>& people, const Settings& settings = {},
                              const Watch& watch = {}) const;

  // Turn one photo, or several of one person, into a person. `face`: which face of each photo, 0 is the largest.
  Person enroll(const std::vector<Image>& photos, std::optional<int> face = {}, const std::string& name = "",
                const Watch& watch = {}) const;

  // Free the engines, which are loaded again on the next use.
  void close() const;

  const std::string& backend() const noexcept;
  const std::string& device() const noexcept;
  // One sentence: the backend, why it was chosen, and the library that was taken.
  const std::string& choice() const noexcept;
  // Steps of an image if `Settings` says nothing else.
  int default_steps() const noexcept;

 private:
  explicit Pipeline(std::shared_ptr<detail::PipelineData> data) : data_(std::move(data)) {}
  std::shared_ptr<detail::PipelineData> data_;
};

}  // namespace infid

#endif
