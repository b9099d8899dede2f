// See tokenizer.hpp.
#include "text/tokenizer.hpp"

#include "folder/paths.hpp"
#include "parallel.hpp"
#include "text/clip_tokenizer.hpp"

namespace infid {

PromptTokenizer::PromptTokenizer(const std::string& folder) {
  const std::array<const char*, 2> names = {"tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"};
  in_parallel(names.size(), [&](std::size_t i) {
    tokenizers_[i] = std::make_unique<ClipTokenizer>(within(plain_path(folder), names[i]));
  });
}

PromptTokenizer::~PromptTokenizer() = default;

std::vector<std::int32_t> PromptTokenizer::encode(int encoder, const std::string& prompt) const {
  return tokenizers_[encoder == 0 ? 0 : 1]->encode(prompt);
}

std::vector<std::string> PromptTokenizer::notes(const std::string& prompt) const {
  const std::string end = "<|endoftext|>";
  const std::string longer = "a prompt is longer than " + std::to_string(kPromptLength) + " tokens";
  const std::string first = tokenizers_[0]->dropped(prompt), second = tokenizers_[1]->dropped(prompt);
  std::vector<std::string> found;
  if (!first.empty()) found.push_back(longer + "; dropped: " + first);
  if (!second.empty() && second != first) {
    const std::string& pad = tokenizers_[1]->pad_token();
    const bool has_pad = prompt.find(pad) != std::string::npos;
    const std::string why = has_pad ? ", where each \"" + pad + "\" counts as one" : "";
    found.push_back(longer + " of the second text encoder" + why + "; dropped there: " + second);
  }
  if (prompt.find(end) != std::string::npos) {
    found.push_back("a prompt contains " + end + "; the pooled embedding ignores what follows it");
  }
  return found;
}

}  // namespace infid
