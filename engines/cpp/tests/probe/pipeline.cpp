// `infid_probe generate FOLDER LIBRARY REQUEST OUTPUT`: the images of a request in JSON, as raw bytes in OUTPUT.
// `infid_probe threads FOLDER LIBRARY PERSON`: what several threads get from one pipeline, as JSON.

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include <set>
#include <thread>

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

// The kinds of errors that calls end with when they are cancelled: one that draws, and one that waits for it.
std::vector<int> cancelled(const infid::Pipeline& pipe, const infid::Person& person) {
  std::vector<int> kinds(2, 0);
  infid::Cancel drawing, waiting;
  std::atomic<bool> draws{false};
  const auto call = [&](std::size_t which, infid::Watch watch) {
    infid::Settings settings;
    settings.seeds = {1};
    settings.steps = 900;
    try {
      pipe.generate("a", person, settings, watch);
    } catch (const infid::Error& error) {
      kinds[which] = static_cast<int>(error.kind());
    }
  };
  infid::Watch first, second;
  first.cancel = &drawing;
  first.step = [&](int step, int) {
    draws = true;
    // it goes on until the call that waits has been cancelled
    std::this_thread::sleep_for(std::chrono::milliseconds(step < 100 ? 5 : 0));
  };
  second.cancel = &waiting;
  std::thread draw([&] { call(0, first); });
  while (!draws) std::this_thread::yield();
  std::thread wait([&] { call(1, second); });
  waiting.set();
  wait.join();
  drawing.set();
  draw.join();
  return kinds;
}

const Probe threads("threads", [](const std::vector<std::string>& words) {
  infid::Options options;
  options.onnxruntime = words[1];
  const auto pipe = infid::Pipeline::load(words[0], options);
  const auto person = infid::Person::load(words[2]);
  std::vector<std::vector<std::uint8_t>> images(8);
  std::vector<std::thread> all;
  for (std::size_t i = 0; i < images.size(); ++i) {
    all.emplace_back([&, i] {
      infid::Settings settings;
      settings.seeds = {i % 2};
      settings.steps = 3;  // more would make all images of these engines white
      images[i] = pipe.generate("a", person, settings).pixels;
      if (i == 3) pipe.close();  // the others load the engines again
    });
  }
  for (std::thread& thread : all) thread.join();
  const std::set<std::vector<std::uint8_t>> even = {images[0], images[2], images[4], images[6]};
  const std::set<std::vector<std::uint8_t>> odd = {images[1], images[3], images[5], images[7]};
  std::printf("%s\n", json{{"even", even.size()}, {"odd", odd.size()}, {"same", even == odd},
                           {"cancelled", cancelled(pipe, person)}}.dump().c_str());
});

}  // namespace
