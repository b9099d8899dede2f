// Images over HTTP from C++: ./server FOLDER PEOPLE [PORT] [libonnxruntime.so]
//
// PEOPLE holds person files, anna.safetensors and so on: no photo ever reaches this server.
//
//     curl -d '{"person": "anna", "prompt": "a portrait in the rain", "seed": 7}' -o rain.png localhost:8000/images
//
// One image is drawn at a time, and a few wait; who comes then gets 429.
#include <httplib.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <infid/infid.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <regex>

namespace {

using json = nlohmann::json;

constexpr int kMostWaiting = 8;
constexpr std::size_t kMostBytes = 1 << 16;  // of a request
constexpr std::size_t kMostPrompt = 4000;    // bytes

httplib::Server server;
infid::Cancel stopping;

void on_signal(int) {
  stopping.set();
  server.stop();
}

void answer(httplib::Response& response, int status, const std::string& problem, const std::string& fix) {
  response.status = status;
  response.set_content(json{{"error", {{"message", problem}, {"fix", fix}}}}.dump() + "\n", "application/json");
}

int status_of(infid::ErrorKind kind) {
  switch (kind) {
    case infid::ErrorKind::input: return 400;
    case infid::ErrorKind::cancelled: return 503;
    default: return 500;
  }
}

// A request's fields. Throws infid::Error of kind input.
struct Request {
  std::string person, prompt;
  infid::Settings settings;

  explicit Request(const std::string& body) {
    try {
      const json fields = json::parse(body);
      person = fields.at("person");
      prompt = fields.at("prompt");
      settings.seeds = {fields.value("seed", std::uint64_t{0})};
      if (fields.contains("steps")) settings.steps = fields["steps"].get<int>();
      if (fields.contains("style_strength")) settings.style_strength = fields["style_strength"].get<double>();
    } catch (const json::exception& error) {
      throw infid::Error(infid::ErrorKind::input, error.what(), R"(Send {"person": "anna", "prompt": "…"}.)");
    }
    if (prompt.size() > kMostPrompt) {
      throw infid::Error(infid::ErrorKind::input, "The prompt is too long.", "Send a shorter one.");
    }
  }
};

// A person by name; the name cannot leave the folder.
infid::Person person_of(const std::filesystem::path& people, const std::string& name) {
  static const std::regex plain("[A-Za-z0-9_-]{1,64}");
  const std::filesystem::path path = people / (name + ".safetensors");
  if (!std::regex_match(name, plain) || !std::filesystem::is_regular_file(path)) {
    throw infid::Error(infid::ErrorKind::input, "There is no such person.", "Send the name of an enrolled person.");
  }
  return infid::Person::load(path.string());
}

// Counts who is in it.
class Queue {
 public:
  explicit Queue(std::atomic<int>& waiting) : waiting_(waiting), place_(waiting++) {}
  ~Queue() { --waiting_; }
  bool full() const { return place_ >= kMostWaiting; }

 private:
  std::atomic<int>& waiting_;
  int place_;
};

}  // namespace

int main(int count, char** words) {
  if (count < 3) {
    std::cerr << "server FOLDER PEOPLE [PORT] [libonnxruntime.so]\n";
    return 1;
  }
  const std::filesystem::path people = words[2];
  const int port = count > 3 ? std::atoi(words[3]) : 8000;
  infid::Options options;
  options.onnxruntime = count > 4 ? words[4] : "";
  try {
    const auto pipe = infid::Pipeline::load(words[1], options);
    std::atomic<int> waiting{0};
    server.set_payload_max_length(kMostBytes);
    server.new_task_queue = [] { return new httplib::ThreadPool(kMostWaiting + 4); };
    server.Get("/healthz", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server.Post("/images", [&](const httplib::Request& request, httplib::Response& response) {
      try {
        const Queue queue(waiting);
        if (queue.full()) {
          response.set_header("Retry-After", "5");
          return answer(response, 429, "The server is busy.", "Try again later.");
        }
        const Request asked(request.body);
        infid::Watch watch;
        watch.cancel = &stopping;
        const auto png = pipe.generate(asked.prompt, person_of(people, asked.person), asked.settings, watch).png();
        response.set_content(reinterpret_cast<const char*>(png.data()), png.size(), "image/png");
      } catch (const infid::Error& error) {
        answer(response, status_of(error.kind()), error.problem(), error.fix());
      }
    });
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);
    std::cerr << pipe.choice() << "\nhttp://127.0.0.1:" << port << "/images" << std::endl;
    if (!server.listen("127.0.0.1", port) && !stopping.is_set()) {
      std::cerr << "error: port " << port << " cannot be used\n";
      return 1;
    }
  } catch (const infid::Error& error) {
    std::cerr << "error: " << error.problem() << "\n  fix: " << error.fix() << '\n';
    return 1;
  }
  return 0;
}
