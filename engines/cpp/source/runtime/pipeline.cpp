// `infid::Pipeline`, equal to `infid_export.runtime.pipeline`.

#include <chrono>
#include <cmath>
#include <mutex>

#include "errors.hpp"
#include "faces/reader.hpp"
#include "runtime/conditioning.hpp"
#include "runtime/denoise.hpp"
#include "runtime/engine_set.hpp"
#include "runtime/person.hpp"
#include "runtime/template.hpp"

namespace infid {
namespace {

constexpr auto kLooksEvery = std::chrono::milliseconds(50);  // between two checks of `cancel` while another call runs

// What a generation runs.
struct Job {
  std::string graph;
  std::vector<std::string> graphs;  // that it needs besides the decoder
  SamplerTable table;
  Streams streams;
  std::function<Tensors(const std::vector<std::size_t>& batch)> fixed;
  Further further = [](int) { return Views{}; };
};

double finite(const char* name, std::optional<double> given, double usual) {
  const double value = given.value_or(usual);
  if (std::isfinite(value)) return value;
  input_error(std::string(name) + " must be a finite number, not " + python_number(value) + ".",
              "The default is " + python_number(usual) + ".");
}

std::vector<std::uint64_t> counted_up(const std::vector<std::uint64_t>& given, std::size_t count) {
  if (given.size() == count && count > 1) return given;
  if (given.size() > 1) {
    std::string list;
    for (const std::uint64_t seed : given) list += (list.empty() ? "" : ", ") + std::to_string(seed);
    input_error("The seeds [" + list + "] do not fit " + std::to_string(count) + " prompt(s).",
                "Give one non-negative integer, or one per prompt.");
  }
  const std::uint64_t first = given.empty() ? random_seed() : given.front();
  std::vector<std::uint64_t> seeds;
  for (std::size_t i = 0; i < count; ++i) seeds.push_back(first + i);
  return seeds;
}

// The first of the settings that a template decides.
const char* decided(const Settings& settings) {
  if (settings.negative_prompt) return "negative_prompt";
  if (!settings.text_seeds.empty()) return "text_seed";
  if (settings.height) return "height";
  if (settings.width) return "width";
  if (settings.steps) return "steps";
  if (settings.guidance) return "guidance";
  if (settings.sampler) return "sampler";
  if (settings.spacing) return "spacing";
  return nullptr;
}

Image image_of(const Tensor& decoded, std::size_t row) {
  const Shape& shape = decoded.shape();
  Image image;
  image.height = static_cast<int>(shape[2]);
  image.width = static_cast<int>(shape[3]);
  const std::size_t area = static_cast<std::size_t>(shape[2] * shape[3]);
  const float* planes = decoded.as<float>() + row * 3 * area;
  image.pixels.resize(3 * area);
  for (std::size_t pixel = 0; pixel < area; ++pixel) {
    for (std::size_t color = 0; color < 3; ++color) {
      const float value = std::nearbyint(planes[color * area + pixel] * 255.0f);
      image.pixels[3 * pixel + color] = static_cast<std::uint8_t>(std::min(std::max(value, 0.0f), 255.0f));
    }
  }
  return image;
}

}  // namespace

namespace detail {

class PipelineData {
 public:
  PipelineData(Manifest manifest, Choice choice, const Options& options)
      : manifest_(std::move(manifest)), name_(choice.backend->name()), device_(choice.device.text()),
        sentence_(choice.sentence), onnxruntime_(options.onnxruntime),
        engines_(manifest_, std::move(choice), options.threads), tokenizer_(verified_folder()) {}

  const Manifest& manifest() const { return manifest_; }
  const std::string& name() const { return name_; }
  const std::string& device() const { return device_; }
  const std::string& sentence() const { return sentence_; }

  std::vector<Image> generate(const std::vector<std::string>& prompts, const std::vector<Person>& people,
                              const Settings& settings, const Watch& watch);
  std::vector<Image> generate(const Template& from, const std::vector<Person>& people, const Settings& settings,
                              const Watch& watch);
  Person enroll(const std::vector<Image>& photos, std::optional<int> face, const std::string& name,
                const Watch& watch);
  void close();

 private:
  std::string verified_folder() {
    for (const char* name : {"tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"}) engines_.verify(name);
    return manifest_.folder;
  }

  bool guided() const { return has_guidance(manifest_); }
  LatentSize latents(Size pixels) const {
    return {4, pixels.height / manifest_.vae_scale_factor, pixels.width / manifest_.vae_scale_factor};
  }
  Strengths strengths(const Settings& settings) const;
  double guidance(const Settings& settings) const;
  std::vector<Person> fitted(const std::vector<Person>& people, std::optional<std::size_t> prompts) const;
  Tensors with_people(Tensors inputs, const std::vector<Person>& people, const std::vector<std::size_t>& batch,
                      const Strengths& strengths, double guidance) const;
  std::unique_lock<std::timed_mutex> turn(const Cancel* cancel);
  std::vector<Image> run(const Job& job, const Watch& watch);
  FaceReader& face_reader();
  Person encoded(const FaceInputs& face, const std::string& name);

  Manifest manifest_;
  std::string name_, device_, sentence_, onnxruntime_;
  EngineSet engines_;
  PromptTokenizer tokenizer_;
  std::timed_mutex mutex_;
  std::mutex faces_mutex_;  // photos are read while the engines run, one at a time
  std::unique_ptr<FaceReader> faces_;
};

Strengths PipelineData::strengths(const Settings& settings) const {
  const double style = finite("style_strength", settings.style_strength, manifest_.defaults.style_strength);
  const double own = finite("identity_strength", settings.identity_strength, manifest_.defaults.identity_strength);
  if (!manifest_.one_stream()) return {{"style_strength", style}, {"identity_strength", own}};
  if (style == 0) return {{"identity_strength", own}};
  input_error("The style strength has no effect: these engines have no text stream to take the style from.",
              "Leave it out, or build with --streams two.");
}

double PipelineData::guidance(const Settings& settings) const {
  const double value = finite("guidance", settings.guidance, manifest_.defaults.guidance);
  if (!guided() && value != 1) {
    input_error("These engines were built without guidance: they take a guidance of 1 only.",
                "Leave the guidance out, or build the folder again without --no-guidance.");
  }
  return value;
}

std::vector<Person> PipelineData::fitted(const std::vector<Person>& people, std::optional<std::size_t> prompts) const {
  if (people.empty()) input_error("No person was given.", "Give at least one.");
  if (prompts && people.size() != 1 && people.size() != *prompts) {
    input_error(std::to_string(people.size()) + " people were given for " + std::to_string(*prompts) + " prompts.",
                "Give one person, or one per prompt.");
  }
  std::vector<Person> found;
  for (const Person& person : people) found.push_back(fitted_person(manifest_, person));
  if (prompts && found.size() == 1) found.resize(*prompts, found.front());
  return found;
}

Tensors PipelineData::with_people(Tensors inputs, const std::vector<Person>& people,
                                  const std::vector<std::size_t>& batch, const Strengths& strengths,
                                  double guidance) const {
  std::vector<Person> shown;
  for (const std::size_t row : batch) shown.push_back(people[row]);
  inputs.merge(identity_inputs(shown, strengths, guided()));
  if (guided()) inputs.emplace("guidance", filled(batch.size(), guidance));
  return inputs;
}

std::vector<Image> PipelineData::generate(const std::vector<std::string>& prompts, const std::vector<Person>& people,
                                          const Settings& settings, const Watch& watch) {
  const auto strong = strengths(settings);
  if (prompts.empty()) input_error("No prompt was given.", "Give at least one.");
  const auto negative = settings.negative_prompt ? settings.negative_prompt : manifest_.defaults.negative_prompt;
  if (watch.note) {
    for (const std::string& prompt : prompts) {
      for (const std::string& sentence : tokenizer_.notes(prompt)) watch.note(sentence);
    }
    for (const std::string& sentence : tokenizer_.notes(negative.value_or(""))) watch.note(sentence);
  }
  const Defaults& usual = manifest_.defaults;
  const auto [sampler, spacing] = chosen_sampler(settings.sampler, settings.spacing, usual.sampler, usual.spacing);
  Job job;
  job.graph = manifest_.step();
  job.graphs = {"text_encoder", "text_encoder_2", job.graph};
  job.table = sampler_table(manifest_.scheduler, settings.steps ? *settings.steps : usual.steps, sampler, spacing);
  const double guide = guidance(settings);
  const auto [height, width] = image_size(manifest_, settings.height, settings.width);
  const Size pixels{height, width};
  auto noise = std::make_shared<Noise>(counted_up(settings.seeds, prompts.size()), latents(pixels));
  job.streams = {{"identity", noise}};
  if (!manifest_.one_stream()) job.streams["text"] = noise;
  if (!settings.text_seeds.empty()) {
    if (manifest_.one_stream()) {
      input_error("text_seed has no effect: these engines have no text stream.",
                  "Leave it out, or build with --streams two.");
    }
    job.streams["text"] = std::make_shared<Noise>(counted_up(settings.text_seeds, prompts.size()), latents(pixels));
  }
  const auto shown = fitted(people, prompts.size());
  job.fixed = [&, strong, pixels](const std::vector<std::size_t>& batch) {
    std::vector<std::string> texts;
    for (const std::size_t row : batch) texts.push_back(prompts[row]);
    return with_people(text_inputs(engines_, tokenizer_, texts, negative, guided(), pixels), shown, batch, strong,
                       guide);
  };
  return run(job, watch);
}

std::vector<Image> PipelineData::generate(const Template& from, const std::vector<Person>& people,
                                          const Settings& settings, const Watch& watch) {
  const auto strong = strengths(settings);
  if (const char* name = decided(settings)) {
    input_error(std::string("The template decides ") + name + ".", "Leave it out, or make another template.");
  }
  const TemplateData& made = from.data();
  check_template(manifest_, made);
  const auto shown = fitted(people, std::nullopt);
  Job job;
  job.graph = "identity_step";
  job.graphs = {"identity_step"};
  job.table = table_of(made);
  const auto seeds = settings.seeds.empty() ? std::vector<std::uint64_t>(shown.size(), made.seed)
                                            : counted_up(settings.seeds, shown.size());
  job.streams = {{"identity", std::make_shared<Noise>(seeds, latents({made.height, made.width}))}};
  job.fixed = [&, strong](const std::vector<std::size_t>& batch) {
    return with_people(conditioning_of(made), shown, batch, strong, made.guidance);
  };
  job.further = [&made](int step) { return features_of(made, step); };
  return run(job, watch);
}

std::unique_lock<std::timed_mutex> PipelineData::turn(const Cancel* cancel) {
  reject_cancelled(cancel);
  std::unique_lock<std::timed_mutex> lock(mutex_, std::defer_lock);
  if (cancel == nullptr) {
    lock.lock();
    return lock;
  }
  while (!lock.try_lock_for(kLooksEvery)) reject_cancelled(cancel);
  reject_cancelled(cancel);
  return lock;
}

std::vector<Image> PipelineData::run(const Job& job, const Watch& watch) {
  const std::size_t count = job.streams.at("identity")->images();
  const auto rows = batches(count, static_cast<std::size_t>(manifest_.batch));
  const int steps = static_cast<int>(job.table.rows.size());
  const auto lock = turn(watch.cancel);
  auto graphs = job.graphs;
  graphs.emplace_back("vae_decoder");
  engines_.prepare(graphs, [&] { reject_cancelled(watch.cancel); });
  std::vector<Tensor> finished;
  for (std::size_t number = 0; number < rows.size(); ++number) {
    const Tensors inputs = job.fixed(rows[number]);
    Views fixed;
    for (const auto& [name, tensor] : inputs) fixed.emplace(name, tensor.view());
    const auto on_step = [&](int index) {
      if (watch.step) watch.step(static_cast<int>(number) * steps + index + 1, steps * static_cast<int>(rows.size()));
    };
    finished.push_back(denoise(engines_[job.graph], fixed, job.streams, rows[number], job.table, job.further, on_step,
                               watch.cancel));
  }
  std::vector<Image> images;
  for (const Tensor& latents : finished) {
    const Tensors decoded = engines_["vae_decoder"].run({{"latents", latents.view()}});
    const Tensor& image = decoded.at("image");
    reject_non_finite(image, "an image");
    const auto batch = static_cast<std::size_t>(image.shape()[0]);
    for (std::size_t row = 0; row < batch && images.size() < count; ++row) images.push_back(image_of(image, row));
  }
  return images;
}

FaceReader& PipelineData::face_reader() {
  if (faces_) return *faces_;
  const FaceModels& models = manifest_.faces;
  const GraphRecord& encoder = manifest_.graph("identity_encoder");
  const bool usual = (models.crop.empty() || models.crop == "portrait") &&
                     (models.embedding.empty() || models.embedding == "normalized");
  if (!usual || encoder.input("face_crop") == nullptr || encoder.input("face_embedding") == nullptr) {
    folder_error("The engine folder has identity weights of another method, whose photos are read in Python only.",
                 "Enroll with `infid-export enroll`, and load the person file.");
  }
  if (!models.detector_path || !models.recognizer_path || models.recognizer_path->empty() ||
      models.detector_path->empty()) {
    folder_error("The engine folder has no face detector or recognizer, so it cannot enroll photos.",
                 "Build it again with `infid-export build --recognizer FILE`, or load persons made elsewhere.");
  }
  if (models.detector == "insightface") {
    folder_error("The engine folder finds faces with InsightFace's own detector, which needs Python.",
                 "Enroll with `infid-export enroll`, or build it again with --detector centerface.");
  }
  const auto last = [&](const char* name) { return static_cast<int>(encoder.input(name)->shape.back().most); };
  const auto lock = turn(nullptr);
  const std::string detector = engines_.verify(*models.detector_path);
  const std::string recognizer = engines_.verify(*models.recognizer_path);
  faces_ = std::make_unique<FaceReader>(OnnxRuntime::open(onnxruntime_), detector, recognizer, last("face_crop"),
                                        last("face_embedding"), models.detector == "drawn");
  return *faces_;
}

Person PipelineData::encoded(const FaceInputs& face, const std::string& name) {
  Tensors outputs = engines_["identity_encoder"].run(
      {{"face_crop", face.face_crop.view()}, {"face_embedding", face.face_embedding.view()}});
  PersonData data;
  data.identity_tokens = std::move(outputs.at("identity_tokens"));
  data.identity_keys = std::move(outputs.at("identity_keys"));
  data.identity_values = std::move(outputs.at("identity_values"));
  reject_non_finite(data.identity_tokens, "identity_tokens");
  reject_non_finite(data.identity_keys, "identity_keys");
  reject_non_finite(data.identity_values, "identity_values");
  data.model = manifest_.model_id;
  data.name = name;
  return make_person(std::move(data));
}

Person PipelineData::enroll(const std::vector<Image>& photos, std::optional<int> face, const std::string& name,
                            const Watch& watch) {
  if (photos.empty()) input_error("No photo was given.", "Give at least one.");
  std::vector<FaceInputs> faces;
  for (std::size_t number = 0; number < photos.size(); ++number) {
    try {
      const std::lock_guard<std::mutex> lock(faces_mutex_);
      FaceReader& reader = face_reader();
      if (watch.note && number == 0 && !reader.limits().empty()) watch.note(reader.limits());
      faces.push_back(reader.read(photos[number], face));
    } catch (const Error& error) {
      if (photos.size() == 1 || error.kind() != ErrorKind::input) throw;
      input_error("Photo " + std::to_string(number + 1) + " of " + std::to_string(photos.size()) + ": " +
                      error.problem(),
                  error.fix());
    }
  }
  const auto lock = turn(watch.cancel);
  std::vector<Person> people;
  for (const FaceInputs& each : faces) people.push_back(encoded(each, name));
  return people.size() == 1 ? people.front() : averaged(people, name);
}

void PipelineData::close() {
  {
    const std::lock_guard<std::mutex> lock(faces_mutex_);
    faces_.reset();
  }
  const auto lock = turn(nullptr);
  engines_.close();
}

}  // namespace detail

Pipeline Pipeline::load(const std::string& folder, const Options& options) {
  if (options.threads < 0) {
    input_error("The number of threads must be at least 1, not " + std::to_string(options.threads) + ".",
                "Give 1 or more, or leave it out.");
  }
  Manifest manifest = Manifest::load(folder);
  Choice choice = choose_backend(manifest, options);
  return Pipeline(std::make_shared<detail::PipelineData>(std::move(manifest), std::move(choice), options));
}

Image Pipeline::generate(const std::string& prompt, const Person& person, const Settings& settings,
                         const Watch& watch) const {
  return data_->generate(std::vector<std::string>{prompt}, {person}, settings, watch).front();
}

std::vector<Image> Pipeline::generate(const std::vector<std::string>& prompts, const std::vector<Person>& people,
                                      const Settings& settings, const Watch& watch) const {
  return data_->generate(prompts, people, settings, watch);
}

std::vector<Image> Pipeline::generate(const Template& from, const std::vector<Person>& people,
                                      const Settings& settings, const Watch& watch) const {
  return data_->generate(from, people, settings, watch);
}

Person Pipeline::enroll(const std::vector<Image>& photos, std::optional<int> face, const std::string& name,
                        const Watch& watch) const {
  return data_->enroll(photos, face, name, watch);
}

void Pipeline::close() const { data_->close(); }
const std::string& Pipeline::backend() const noexcept { return data_->name(); }
const std::string& Pipeline::device() const noexcept { return data_->device(); }
const std::string& Pipeline::choice() const noexcept { return data_->sentence(); }
int Pipeline::default_steps() const noexcept { return static_cast<int>(data_->manifest().defaults.steps); }

}  // namespace infid
