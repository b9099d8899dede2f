// Tokens and texts.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "probe.hpp"
#include "text/tokenizer.hpp"

namespace {

using nlohmann::json;

// tokens FOLDER [notes]: by line of stdin, a prompt as a JSON string, the ids for both text encoders, and the notes if
// they are asked for, as JSON.
void tokens(const std::vector<std::string>& words) {
  const infid::PromptTokenizer tokenizer(words.at(0));
  for (std::string line; std::getline(std::cin, line);) {
    const std::string prompt = json::parse(line);
    json found{tokenizer.encode(0, prompt), tokenizer.encode(1, prompt)};
    if (words.size() > 1) found.push_back(tokenizer.notes(prompt));
    std::puts(found.dump().c_str());
  }
}

// prompt FOLDER BYTES: the ids of any bytes.
void prompt(const std::vector<std::string>& words) {
  std::puts(json(infid::PromptTokenizer(words.at(0)).encode(0, words.at(1))).dump().c_str());
}

// By line of stdin, a JSON string, the two ways in which messages write it.
void texts(const std::vector<std::string>&) {
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = json::parse(line);
    std::printf("%s\n%s\n", infid::quoted(text).c_str(), infid::shown(text).c_str());
  }
}

const Probe tokens_probe{"tokens", tokens};
const Probe prompt_probe{"prompt", prompt};
const Probe texts_probe{"texts", texts};

}  // namespace
