#include "runtime/conditioning.hpp"

#include <algorithm>
#include <cstring>

#include "half.hpp"

namespace infid {
namespace {

Tensor token_ids(const PromptTokenizer& tokenizer, int encoder, const std::vector<std::string>& texts) {
  std::vector<std::int32_t> all;
  for (const std::string& text : texts) {
    const auto ids = tokenizer.encode(encoder, text);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  const auto rows = static_cast<std::int64_t>(texts.size());
  return Tensor(Dtype::int32, {rows, static_cast<std::int64_t>(all.size()) / rows}, all.data());
}

// Two tensors `[…, a]` and `[…, b]` as `[…, a + b]`.
Tensor joined(const Tensor& first, const Tensor& second) {
  const bool fit = first.dtype() == second.dtype() && first.shape().size() > 1 &&
                   Shape(first.shape().begin(), first.shape().end() - 1) ==
                       Shape(second.shape().begin(), second.shape().end() - (second.shape().empty() ? 0 : 1));
  if (!fit || first.bytes() == 0 || second.bytes() == 0) {
    folder_error("The outputs of the text encoders do not fit together.", "Build the engine folder again.");
  }
  const std::size_t size = dtype_size(first.dtype());
  const std::size_t one = static_cast<std::size_t>(first.shape().back()) * size;
  const std::size_t two = static_cast<std::size_t>(second.shape().back()) * size;
  Shape shape = first.shape();
  shape.back() += second.shape().back();
  Tensor both(first.dtype(), shape);
  const std::size_t rows = first.bytes() / one;
  for (std::size_t row = 0; row < rows; ++row) {
    std::byte* place = both.as<std::byte>() + row * (one + two);
    std::memcpy(place, first.as<std::byte>() + row * one, one);
    std::memcpy(place + one, second.as<std::byte>() + row * two, two);
  }
  return both;
}

// Multiplies the first rows by zero, as numpy does: signs stay.
void zero_rows(Tensor& tensor, std::size_t rows) {
  const std::size_t count = tensor.count() / static_cast<std::size_t>(tensor.shape()[0]) * rows;
  for (std::size_t i = 0; i < count; ++i) {
    if (tensor.dtype() == Dtype::float16) {
      auto& half = tensor.as<std::uint16_t>()[i];
      half = half_of_float(float_of_half(half) * 0.0f);
    } else {
      tensor.as<float>()[i] *= 0.0f;
    }
  }
}

Tensor time_ids(std::size_t rows, Size pixels) {
  Tensor ids(Dtype::float32, {static_cast<std::int64_t>(rows), 6});
  const auto height = static_cast<float>(pixels.height), width = static_cast<float>(pixels.width);
  const float row[] = {height, width, 0, 0, height, width};
  for (std::size_t i = 0; i < rows; ++i) std::copy(row, row + 6, ids.as<float>() + 6 * i);
  return ids;
}

// One row of each person's tensor, per condition and image.
Tensor stacked(const std::vector<Person>& people, const Tensor detail::PersonData::*part, bool guidance) {
  const Tensor& first = people.front().data().*part;
  const std::size_t conditions = guidance ? 2 : 1, row = first.bytes() / 2;
  const auto rows = static_cast<std::int64_t>(conditions * people.size());
  Tensor all(first.dtype(), {rows, first.shape()[1], first.shape()[2]});
  std::byte* place = all.as<std::byte>();
  for (std::size_t condition = 2 - conditions; condition < 2; ++condition) {  // row 0 of a person is unconditional
    for (const Person& person : people) {
      const Tensor& own = person.data().*part;
      if (own.dtype() != first.dtype() || own.shape() != first.shape()) {
        input_error("The people have tensors of different shapes.", "Enroll them with the same engine folder.");
      }
      std::memcpy(place, own.as<std::byte>() + condition * row, row);
      place += row;
    }
  }
  return all;
}

}  // namespace

bool has_guidance(const Manifest& manifest) { return manifest.graph(manifest.step()).input("guidance") != nullptr; }

Tensors text_inputs(EngineSet& engines, const PromptTokenizer& tokenizer, const std::vector<std::string>& prompts,
                    const std::optional<std::string>& negative, bool guidance, Size pixels) {
  std::vector<std::string> texts;
  if (guidance) texts.assign(prompts.size(), negative.value_or(""));
  texts.insert(texts.end(), prompts.begin(), prompts.end());
  const Tensor first = token_ids(tokenizer, 0, texts), second = token_ids(tokenizer, 1, texts);
  const Tensors one = engines["text_encoder"].run({{"input_ids", first.view()}});
  Tensors two = engines["text_encoder_2"].run({{"input_ids", second.view()}});
  Tensor embeds = joined(one.at("hidden_states"), two.at("hidden_states"));
  Tensor pooled = std::move(two.at("pooled"));
  if (guidance && !negative) {  // zeros instead of an empty text: SDXL was trained with them
    zero_rows(embeds, prompts.size());
    zero_rows(pooled, prompts.size());
  }
  Tensors inputs;
  inputs.emplace("prompt_embeds", std::move(embeds));
  inputs.emplace("pooled_prompt_embeds", std::move(pooled));
  inputs.emplace("time_ids", time_ids(texts.size(), pixels));
  return inputs;
}

Tensors identity_inputs(const std::vector<Person>& people, const Strengths& strengths, bool guidance) {
  Tensors inputs;
  inputs.emplace("identity_keys", stacked(people, &detail::PersonData::identity_keys, guidance));
  inputs.emplace("identity_values", stacked(people, &detail::PersonData::identity_values, guidance));
  for (const auto& [name, value] : strengths) inputs.emplace(name, filled(people.size(), value));
  return inputs;
}

Tensor filled(std::size_t count, double value) {
  Tensor tensor(Dtype::float32, {static_cast<std::int64_t>(count)});
  std::fill_n(tensor.as<float>(), count, static_cast<float>(value));
  return tensor;
}

}  // namespace infid
