// People, equal to `infid_export.runtime.person`.
#pragma once

#include <utility>
#include <vector>

#include "folder/manifest.hpp"
#include "infid/infid.hpp"
#include "tensor.hpp"

namespace infid {
namespace detail {

// Row 0 of each tensor is the unconditional identity, row 1 the person.
struct PersonData {
  Tensor identity_tokens;  // [2, T, D], float16 or float32
  Tensor identity_keys;    // [2, T, S]
  Tensor identity_values;  // [2, T, S]
  std::string model, name;
};

}  // namespace detail

// Throws input if the tensors do not match each other, or have non-finite values.
Person make_person(detail::PersonData data);
// The average of people with equal weights, as `mix`.
Person averaged(const std::vector<Person>& people, const std::string& name);
// A person with all slots of the engines filled. Throws input, as `fitted_person`.
Person fitted_person(const Manifest& manifest, const Person& person);

}  // namespace infid
