// The engines of a folder on one backend; each is verified and loaded on first use.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/engine.hpp"
#include "folder/manifest.hpp"

namespace infid {

// The backend that runs a folder's engines, and why.
struct Choice {
  std::unique_ptr<Backend> backend;
  std::optional<std::string> target;  // none: the engines are the same for all targets
  Device device;
  std::string sentence;
};

// Throws as `Pipeline.load`: input, backend_unavailable or engine_folder.
Choice choose_backend(const Manifest& manifest, const Options& options);

class EngineSet {
 public:
  EngineSet(const Manifest& manifest, Choice choice, int threads)
      : manifest_(manifest), choice_(std::move(choice)), threads_(threads) {}

  const Choice& choice() const { return choice_; }
  // A graph's engine. Throws engine_folder if the folder has none, or a file is damaged.
  Engine& operator[](const std::string& graph);
  // Verifies and loads the engines of some graphs, several at the same time where the backend can; `go_on` is called
  // before each file and each engine, from several threads, and may throw.
  void prepare(const std::vector<std::string>& graphs, const std::function<void()>& go_on);
  // Compares a file with the manifest, once, and returns its path.
  std::string verify(const std::string& name);
  // Frees all engines; they are verified and loaded again on the next use.
  void close();

 private:
  const EngineRecord& stored(const std::string& graph) const;
  // The engine file, then the weights files.
  std::vector<std::string> files(const std::string& graph) const;
  std::unique_ptr<Engine> loaded(const std::string& graph) const;

  const Manifest& manifest_;
  Choice choice_;
  int threads_;
  std::map<std::string, std::unique_ptr<Engine>> engines_;
  std::set<std::string> verified_;
};

}  // namespace infid
