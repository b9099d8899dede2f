// `infid_probe generate FOLDER LIBRARY REQUEST OUTPUT`: the images of a request in JSON, as raw bytes in OUTPUT.

#include <fstream>
#include <nlohmann/json.hpp>

#include "infid/infid.hpp"
#include "probe.hpp"

namespace {

using json = nlohmann::json;

template <class Value>
void read(const json& request, const char* name, std::optional<Value>& value) {
  if (request.contains(name)) value = request[name].get<Value>();
}

infid::Settings settings_of(const json& request) {
  infid::Settings settings;
  read(request, "negative_prompt", settings.negative_prompt);
  read(request, "sampler", settings.sampler);
  read(request, "spacing", settings.spacing);
  read(request, "height", settings.height);
  read(request, "width", settings.width);
  read(request, "steps", settings.steps);
  read(request, "guidance", settings.guidance);
  read(request, "style_strength", settings.style_strength);
  read(request, "identity_strength", settings.identity_strength);
  settings.seeds = request.value("seeds", std::vector<std::uint64_t>{});
  settings.text_seeds = request.value("text_seeds", std::vector<std::uint64_t>{});
  return settings;
}

std::vector<infid::Image> images_of(const infid::Pipeline& pipe, const json& request) {
  std::vector<infid::Person> people;
  for (const std::string path : request["people"]) people.push_back(infid::Person::load(path));
  infid::Watch watch;
  watch.note = [](const std::string& note) { std::fprintf(stderr, "note: %s\n", note.c_str()); };
  const auto settings = settings_of(request);
  if (!request.contains("template")) {
    return pipe.generate(request["prompts"].get<std::vector<std::string>>(), people, settings, watch);
  }
  return pipe.generate(infid::Template::load(request["template"]), people, settings, watch);
}

const Probe probe("generate", [](const std::vector<std::string>& words) {
  infid::Options options;
  options.onnxruntime = words[1];
  const auto pipe = infid::Pipeline::load(words[0], options);
  std::ofstream file(words[3], std::ios::binary);
  for (const infid::Image& image : images_of(pipe, json::parse(words[2]))) {
    file.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  }
});

}  // namespace
