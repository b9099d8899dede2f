// See person.hpp.
#include "runtime/person.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "errors.hpp"
#include "folder/paths.hpp"
#include "folder/safetensors.hpp"
#include "folder/unicode.hpp"
#include "half.hpp"

namespace infid {
namespace {

using detail::PersonData;

const char* const again = "Enroll the person again with `infid-export enroll`.";
const char* const make_one = "Make one with `infid-export enroll`.";
const char *const model_key = "infid_model", *const name_key = "infid_name";
const std::pair<const char*, Tensor PersonData::*> members[] = {{"identity_tokens", &PersonData::identity_tokens},
                                                                {"identity_keys", &PersonData::identity_keys},
                                                                {"identity_values", &PersonData::identity_values}};

void require_text(const char* what, const std::string& text) {
  if (utf8_problem(text).empty()) return;
  input_error(std::string(what) + " " + shown(text) + " is not valid Unicode (surrogates not allowed).",
              "Type it again.");
}

bool is_finite(const Tensor& tensor) {
  if (tensor.dtype() == Dtype::float32) {
    const auto* values = tensor.as<float>();
    return std::all_of(values, values + tensor.count(), [](float value) { return std::isfinite(value); });
  }
  const auto* values = tensor.as<std::uint16_t>();
  return std::all_of(values, values + tensor.count(), [](std::uint16_t value) { return (value & 0x7c00) != 0x7c00; });
}

void check_shapes(const PersonData& data) {
  const Shape &tokens = data.identity_tokens.shape(), &keys = data.identity_keys.shape(),
              &values = data.identity_values.shape();
  const bool fits = tokens.size() == 3 && keys.size() == 3 && tokens[0] == keys[0] && tokens[1] == keys[1] &&
                    keys == values && keys[0] == 2 && count_of(keys) > 0;
  if (fits) return;
  input_error("A person needs tokens [2, T, D] and keys and values [2, T, S], not " + shape_text(tokens) + ", " +
                  shape_text(keys) + " and " + shape_text(values) + ".",
              again);
}

void check_dtypes(const PersonData& data) {
  std::set<std::string> kinds;
  for (const auto& [_, member] : members) kinds.insert(dtype_name((data.*member).dtype()));
  if (kinds.size() == 1 && (kinds.count("float16") > 0 || kinds.count("float32") > 0)) return;
  std::string text;
  for (const std::string& kind : kinds) text += (text.empty() ? "" : ", ") + kind;
  input_error("A person's tensors must all be float16 or all float32, not " + text + ".", again);
}

std::string joined_names(const Views& tensors) {
  std::string text;
  for (const auto& [name, _] : tensors) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "no tensors" : text;
}

bool has_the_names(const Views& tensors) {
  const auto has = [&](const auto& member) { return tensors.count(member.first) > 0; };
  return tensors.size() == std::size(members) && std::all_of(std::begin(members), std::end(members), has);
}

// Throws Malformed if the file is damaged, input if it is another one.
PersonData read_person(const std::string& path) {
  const MappedFile content(path);
  const Safetensors file = parse_safetensors(content.data(), content.size());
  const bool has_model = file.metadata.count(model_key) > 0;
  if (!has_model || !has_the_names(file.tensors)) {
    input_error(path + " is not a person file: it has " + joined_names(file.tensors) +
                    (has_model ? "" : " and no model id") + ".",
                make_one);
  }
  PersonData data;
  for (const auto& [name, member] : members) data.*member = Tensor(file.tensors.at(name));
  const auto seal = file.metadata.find(kSealKey);
  if (seal == file.metadata.end()) throw Malformed("it has no seal");
  if (seal->second != array_seal(file)) throw Malformed("its content has changed");
  data.model = file.metadata.at(model_key);
  const auto name = file.metadata.find(name_key);
  if (name != file.metadata.end()) data.name = name->second;
  return data;
}

void add_scaled(std::vector<float>& sum, const Tensor& tensor, float weight) {
  const bool is_half = tensor.dtype() == Dtype::float16;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] += (is_half ? float_of_half(tensor.as<std::uint16_t>()[i]) : tensor.as<float>()[i]) * weight;
  }
}

// In float32, as Python: at SDXL's size, float64 sums would take 1 GB.
Tensor average(const std::vector<Person>& people, Tensor PersonData::*member) {
  const Tensor& first = people[0].data().*member;
  const auto weight = static_cast<float>(1.0 / static_cast<double>(people.size()));
  std::vector<float> sum(first.count());
  for (const Person& person : people) add_scaled(sum, person.data().*member, weight);
  if (first.dtype() == Dtype::float32) return Tensor(Dtype::float32, first.shape(), sum.data());
  Tensor rounded(Dtype::float16, first.shape());
  std::transform(sum.begin(), sum.end(), rounded.as<std::uint16_t>(), half_of_float);
  return rounded;
}

// The rows of a tensor [2, T, D] repeated to [2, times·T, D].
Tensor repeated(const Tensor& tensor, std::int64_t times) {
  Shape shape = tensor.shape();
  shape[1] *= times;
  Tensor found(tensor.dtype(), shape);
  const std::size_t row = tensor.bytes() / 2;
  auto* to = found.as<std::byte>();
  for (std::size_t which = 0; which < 2; ++which) {
    for (std::int64_t i = 0; i < times && row > 0; ++i, to += row) {
      std::memcpy(to, tensor.as<std::byte>() + which * row, row);
    }
  }
  return found;
}

Person fit(const Person& person, std::int64_t people, std::int64_t tokens_each) {
  const PersonData& data = person.data();
  const std::int64_t own = data.identity_keys.shape()[1], count = own / tokens_each;
  if (own % tokens_each != 0) {
    input_error("The person has " + std::to_string(own) + " identity tokens, but the engines take " +
                    std::to_string(tokens_each) + " per person.",
                again);
  }
  const std::string number = std::to_string(count);
  if (people % count != 0) {
    input_error(number + " people were stacked, but the engines have " + std::to_string(people) +
                    " slot(s), not a multiple of " + number + ".",
                "Build the folder with --people " + number + ", or stack a number that divides " +
                    std::to_string(people) + ".");
  }
  if (people == count) return person;
  PersonData filled;
  for (const auto& [_, member] : members) filled.*member = repeated(data.*member, people / count);
  filled.model = data.model;
  filled.name = data.name;
  return Person(std::make_shared<const PersonData>(std::move(filled)));
}

}  // namespace

Person make_person(PersonData data) {
  require_text("A person's model", data.model);
  require_text("A person's name", data.name);
  check_shapes(data);
  check_dtypes(data);
  for (const auto& [name, member] : members) {
    if (!is_finite(data.*member)) {
      input_error("The person's " + std::string(name) + " contain non-finite values.", again);
    }
  }
  return Person(std::make_shared<const PersonData>(std::move(data)));
}

Person averaged(const std::vector<Person>& people, const std::string& name) {
  if (people.empty()) input_error("No person was given.", "Give at least one.");
  const PersonData& first = people[0].data();
  for (const Person& person : people) {
    if (person.model() != first.model) {
      input_error("The people were enrolled with different models.", "Enroll them with the same engines.");
    }
  }
  for (const Person& person : people) {
    for (const auto& [_, member] : members) {
      if ((person.data().*member).shape() == (first.*member).shape()) continue;
      input_error("People with different numbers of tokens cannot be averaged.", "Stack them instead.");
    }
  }
  PersonData data;
  for (const auto& [_, member] : members) data.*member = average(people, member);
  data.model = first.model;
  data.name = name;
  return make_person(std::move(data));
}

Person fitted_person(const Manifest& manifest, const Person& person) {
  if (person.model() != manifest.model_id) {
    input_error("The person was enrolled with the model " + first_codes(person.model(), 12) +
                    "…, but these engines are of " + first_codes(manifest.model_id, 12) + "….",
                "Enroll the photo again with `infid-export enroll`.");
  }
  return fit(person, manifest.people, manifest.identity_tokens);
}

Person Person::load(const std::string& path) {
  const std::string place = path_of("The person file", path, "Give a file that `infid-export enroll` wrote.");
  if (!is_file(place)) input_error("There is no person file at " + place + ".", make_one);
  PersonData data;
  try {
    data = read_person(place);
  } catch (const Malformed& problem) {
    input_error(place + " is not an intact person file (" + problem.what() + ").", again);
  }
  try {
    return make_person(std::move(data));
  } catch (const Error& error) {
    input_error(place + " cannot be used. " + error.problem(), error.fix());
  }
}

void Person::save(const std::string& path) const {
  const std::string target = path_of("The person file", path, "Give a path that ends in .safetensors.");
  Views tensors;
  for (const auto& [name, member] : members) tensors[name] = ((*data_).*member).view();
  try {
    write_file(target, sealed_safetensors({{model_key, model()}, {name_key, name()}}, tensors), true);
  } catch (const Malformed& problem) {
    input_error("The person cannot be written to " + target + " (" + problem.what() + ").",
                "Choose a file in an existing folder with free space.");
  }
}

const std::string& Person::name() const noexcept { return data_->name; }
const std::string& Person::model() const noexcept { return data_->model; }

}  // namespace infid
