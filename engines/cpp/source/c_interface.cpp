// The C interface over the C++ one.

#include <cmath>
#include <limits>
#include <new>
#include <string>

#include "infid/infid.h"
#include "infid/infid.hpp"

struct infid_pipeline {
  infid::Pipeline value;
};
struct infid_person {
  infid::Person value;
};
struct infid_template {
  infid::Template value;
};
struct infid_image {
  infid::Image value;
};
struct infid_cancel {
  infid::Cancel value;
};

namespace {

constexpr char kBug[] = "This is a bug in infid, not in your input. Please report it.";

struct LastError {
  std::string problem, fix;
};

LastError& last_error() {
  thread_local LastError error;
  return error;
}

// Calls C++, and turns what it throws into a number and two sentences.
template <class Call>
infid_status guarded(const Call& call) noexcept {
  try {
    last_error() = {};
    try {
      call();
      return INFID_OK;
    } catch (const infid::Error& error) {
      last_error() = {error.problem(), error.fix()};
      return static_cast<infid_status>(error.kind());
    } catch (const std::bad_alloc&) {
      last_error() = {"Out of memory.", "Close other programs, or use a smaller batch or size."};
      return INFID_OUT_OF_MEMORY;
    } catch (const std::exception& error) {
      last_error() = {error.what(), kBug};
      return INFID_FAULT;
    }
  } catch (...) {  // no memory for the sentences, or an exception of a callback's own
    return INFID_FAULT;
  }
}

std::string text(const char* given, const char* usual = "") { return given == nullptr ? usual : given; }

std::optional<std::string> optional_text(const char* given) {
  return given == nullptr ? std::nullopt : std::optional<std::string>(given);
}

std::optional<int> optional_int(int given) { return given == 0 ? std::nullopt : std::optional<int>(given); }

std::optional<double> optional_number(double given) {
  return std::isnan(given) ? std::nullopt : std::optional<double>(given);
}

infid::Settings settings_of(const infid_settings* given) {
  infid::Settings settings;
  if (given == nullptr) return settings;
  settings.negative_prompt = optional_text(given->negative_prompt);
  settings.sampler = optional_text(given->sampler);
  settings.spacing = optional_text(given->spacing);
  if (given->seeds != nullptr) settings.seeds.assign(given->seeds, given->seeds + given->seed_count);
  if (given->text_seeds != nullptr) {
    settings.text_seeds.assign(given->text_seeds, given->text_seeds + given->text_seed_count);
  }
  settings.height = optional_int(given->height);
  settings.width = optional_int(given->width);
  settings.steps = optional_int(given->steps);
  settings.guidance = optional_number(given->guidance);
  settings.style_strength = optional_number(given->style_strength);
  settings.identity_strength = optional_number(given->identity_strength);
  return settings;
}

infid::Watch watch_of(const infid_settings* given) {
  infid::Watch watch;
  if (given == nullptr) return watch;
  if (given->cancel != nullptr) watch.cancel = &given->cancel->value;
  if (given->on_step != nullptr) {
    watch.step = [given](int step, int steps) { given->on_step(step, steps, given->context); };
  }
  if (given->on_note != nullptr) {
    watch.note = [given](const std::string& note) { given->on_note(note.c_str(), given->context); };
  }
  return watch;
}

}  // namespace

extern "C" {

const char* infid_problem(void) { return last_error().problem.c_str(); }
const char* infid_fix(void) { return last_error().fix.c_str(); }
const char* infid_version(void) { return infid::version(); }

infid_settings infid_default_settings(void) {
  infid_settings settings{};
  settings.guidance = settings.style_strength = settings.identity_strength = std::numeric_limits<double>::quiet_NaN();
  return settings;
}

infid_status infid_pipeline_load(const char* folder, const infid_options* options, infid_pipeline** pipeline) {
  return guarded([&] {
    infid::Options chosen;
    if (options != nullptr) {
      chosen = {text(options->backend, "auto"), text(options->device, "auto"), options->threads,
                text(options->onnxruntime)};
    }
    *pipeline = new infid_pipeline{infid::Pipeline::load(text(folder), chosen)};
  });
}

void infid_pipeline_free(infid_pipeline* pipeline) { delete pipeline; }
const char* infid_pipeline_choice(const infid_pipeline* pipeline) { return pipeline->value.choice().c_str(); }

infid_status infid_person_load(const char* path, infid_person** person) {
  return guarded([&] { *person = new infid_person{infid::Person::load(text(path))}; });
}

infid_status infid_person_save(const infid_person* person, const char* path) {
  return guarded([&] { person->value.save(text(path)); });
}

void infid_person_free(infid_person* person) { delete person; }

infid_status infid_enroll(infid_pipeline* pipeline, const char* const* photos, size_t count, int face, const char* name,
                          infid_person** person) {
  return guarded([&] {
    std::vector<infid::Image> images;
    for (size_t i = 0; i < count; ++i) images.push_back(infid::Image::load(text(photos[i])));
    const auto which = face < 0 ? std::nullopt : std::optional<int>(face);
    *person = new infid_person{pipeline->value.enroll(images, which, text(name))};
  });
}

infid_status infid_template_load(const char* path, infid_template** made) {
  return guarded([&] { *made = new infid_template{infid::Template::load(text(path))}; });
}

void infid_template_free(infid_template* made) { delete made; }

infid_cancel* infid_cancel_new(void) { return new (std::nothrow) infid_cancel; }
void infid_cancel_set(infid_cancel* cancel) { cancel->value.set(); }
void infid_cancel_free(infid_cancel* cancel) { delete cancel; }

infid_status infid_generate(infid_pipeline* pipeline, const char* prompt, const infid_person* person,
                            const infid_settings* settings, infid_image** image) {
  return guarded([&] {
    *image = new infid_image{
        pipeline->value.generate(text(prompt), person->value, settings_of(settings), watch_of(settings))};
  });
}

infid_status infid_generate_from_template(infid_pipeline* pipeline, const infid_template* made,
                                          const infid_person* const* people, size_t count,
                                          const infid_settings* settings, infid_image** images) {
  return guarded([&] {
    std::vector<infid::Person> shown;
    for (size_t i = 0; i < count; ++i) shown.push_back(people[i]->value);
    auto made_images = pipeline->value.generate(made->value, shown, settings_of(settings), watch_of(settings));
    std::vector<std::unique_ptr<infid_image>> owned;
    for (infid::Image& image : made_images) {
      owned.push_back(std::make_unique<infid_image>(infid_image{std::move(image)}));
    }
    for (size_t i = 0; i < owned.size(); ++i) images[i] = owned[i].release();
  });
}

int infid_image_width(const infid_image* image) { return image->value.width; }
int infid_image_height(const infid_image* image) { return image->value.height; }
const uint8_t* infid_image_pixels(const infid_image* image) { return image->value.pixels.data(); }

infid_status infid_image_save(const infid_image* image, const char* path) {
  return guarded([&] { image->value.save(text(path)); });
}

void infid_image_free(infid_image* image) { delete image; }

}  // extern "C"
