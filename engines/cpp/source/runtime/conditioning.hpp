// The inputs of a step that do not change between steps: of the prompts, and of the people.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine_set.hpp"
#include "runtime/person.hpp"
#include "text/tokenizer.hpp"

namespace infid {

// Whether the steps have unconditional rows.
bool has_guidance(const Manifest& manifest);

// Height and width in pixels.
struct Size {
  int height = 0, width = 0;
};

// The text inputs of a step: rows of the negative prompt, if there is guidance, then of the prompts, which are as many
// as the engines' batch. No negative prompt means zero embeddings.
Tensors text_inputs(EngineSet& engines, const PromptTokenizer& tokenizer, const std::vector<std::string>& prompts,
                    const std::optional<std::string>& negative, bool guidance, Size pixels);

// `identity_strength`, and `style_strength` if there are two streams.
using Strengths = std::map<std::string, double>;

// The identity inputs of a step, of one person per image of the batch.
Tensors identity_inputs(const std::vector<Person>& people, const Strengths& strengths, bool guidance);

// `count` times the same number.
Tensor filled(std::size_t count, double value);

}  // namespace infid
