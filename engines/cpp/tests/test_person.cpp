// People whose values are easy to know.
#include <doctest/doctest.h>

#include "errors.hpp"
#include "runtime/person.hpp"

using namespace infid;

namespace {

Tensor filled(Shape shape, float value) {
  Tensor tensor(Dtype::float32, std::move(shape));
  for (std::size_t i = 0; i < tensor.count(); ++i) tensor.as<float>()[i] = value + static_cast<float>(i);
  return tensor;
}

Person person_of(float value, std::int64_t tokens = 2) {
  return make_person({filled({2, tokens, 1}, value), filled({2, tokens, 3}, value), filled({2, tokens, 3}, value), "m",
                      "name"});
}

std::string problem_of(const Person& person, int people, int tokens) {
  Manifest manifest;
  manifest.model_id = "m";
  manifest.people = people;
  manifest.identity_tokens = tokens;
  try {
    fitted_person(manifest, person);
  } catch (const Error& error) {
    return error.problem();
  }
  return "";
}

}  // namespace

TEST_CASE("the average of people") {
  const Person mixed = averaged({person_of(0), person_of(4)}, "both");
  CHECK(mixed.name() == "both");
  CHECK(mixed.data().identity_tokens.as<float>()[3] == 5);
  CHECK_THROWS_AS(averaged({person_of(0), person_of(0, 3)}, ""), Error);
  CHECK_THROWS_AS(averaged({}, ""), Error);
}

TEST_CASE("people are repeated until the slots are full") {
  Manifest manifest;
  manifest.model_id = "m";
  manifest.people = 3;
  manifest.identity_tokens = 2;
  const Person fitted = fitted_person(manifest, person_of(0));
  const Tensor& tokens = fitted.data().identity_tokens;
  CHECK(tokens.shape() == Shape{2, 6, 1});
  const std::vector<float> expected = {0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3};
  CHECK(std::vector<float>(tokens.as<float>(), tokens.as<float>() + 12) == expected);
}

TEST_CASE("people who do not fit are rejected") {
  CHECK(problem_of(person_of(0), 1, 2).empty());
  CHECK(problem_of(person_of(0), 1, 1) ==
        "2 people were stacked, but the engines have 1 slot(s), not a multiple of 2.");
  CHECK(problem_of(person_of(0), 1, 3) == "The person has 2 identity tokens, but the engines take 3 per person.");
  CHECK_THROWS_AS(make_person({filled({2, 1, 1}, 0), filled({2, 2, 1}, 0), filled({2, 2, 1}, 0), "m", ""}), Error);
  CHECK_THROWS_AS(make_person({filled({2, 1, 1}, 0), filled({2, 1, 1}, 0), filled({2, 1, 1}, 0), "m", "\xff"}), Error);
}
