/* infid for C, and for languages that call C: Go, Rust, C#. The same as infid.hpp, with opaque handles.
 *
 * Every function that can fail returns INFID_OK (0) or the number of an error; infid_problem() and infid_fix() then say
 * what is wrong and what to do, for the thread that called. No exception leaves these functions. Texts are UTF-8 and
 * end with a zero byte. Handles may be used from several threads, but not while they are freed. */
#ifndef INFID_INFID_H
#define INFID_INFID_H

#include <stddef.h>
#include <stdint.h>

#if defined(INFID_STATIC)
#define INFID_C_API
#else
#define INFID_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers from 1 to 6 are infid::ErrorKind's. */
typedef enum infid_status {
  INFID_OK = 0,
  INFID_INPUT = 1,
  INFID_DISK_FULL = 2,
  INFID_BACKEND_UNAVAILABLE = 3,
  INFID_ENGINE_FOLDER = 4,
  INFID_NON_FINITE = 5,
  INFID_CANCELLED = 6,
  INFID_OUT_OF_MEMORY = 7,
  INFID_FAULT = 8 /* a bug in infid */
} infid_status;

typedef struct infid_pipeline infid_pipeline;
typedef struct infid_person infid_person;
typedef struct infid_template infid_template;
typedef struct infid_image infid_image;
typedef struct infid_cancel infid_cancel;

/* Which engines are used, and how; NULL and 0 mean the default. */
typedef struct infid_options {
  const char* backend;     /* auto, onnxruntime, tensorrt, tensorrt_rtx or aotinductor */
  const char* device;      /* auto, cpu, cuda, cuda:1 or a target such as sm_89 */
  const char* onnxruntime; /* path of ONNX Runtime's shared library */
  int threads;             /* CPU threads of onnxruntime; 0 is one per core */
} infid_options;

/* How images are made. Make it with infid_default_settings() and change what you want: NULL, 0 and NaN mean the
 * folder's default, or what the template decides. */
typedef struct infid_settings {
  const char* negative_prompt;
  const char* sampler;
  const char* spacing;
  const uint64_t* seeds; /* one, or one per image; NULL: random, or the template's */
  size_t seed_count;
  const uint64_t* text_seeds;
  size_t text_seed_count;
  int height, width, steps;
  double guidance, style_strength, identity_strength;
  void (*on_step)(int step, int steps, void* context); /* after each step, which counts from 1 */
  void (*on_note)(const char* note, void* context);    /* what the user should know */
  void* context;
  const infid_cancel* cancel; /* must outlive the call */
} infid_settings;

/* Of the last error on this thread; valid until the next call on it. Empty if there was none. */
INFID_C_API const char* infid_problem(void);
INFID_C_API const char* infid_fix(void);
INFID_C_API const char* infid_version(void);

INFID_C_API infid_settings infid_default_settings(void);

/* options may be NULL. */
INFID_C_API infid_status infid_pipeline_load(const char* folder, const infid_options* options,
                                             infid_pipeline** pipeline);
INFID_C_API void infid_pipeline_free(infid_pipeline* pipeline);
/* The backend, why it was chosen, and its library; valid as long as the pipeline. */
INFID_C_API const char* infid_pipeline_choice(const infid_pipeline* pipeline);

INFID_C_API infid_status infid_person_load(const char* path, infid_person** person);
INFID_C_API infid_status infid_person_save(const infid_person* person, const char* path);
INFID_C_API void infid_person_free(infid_person* person);
/* From photos of one person, PNG or JPEG; face: which face of each photo, -1 is the largest. */
INFID_C_API infid_status infid_enroll(infid_pipeline* pipeline, const char* const* photos, size_t count, int face,
                                      const char* name, infid_person** person);

INFID_C_API infid_status infid_template_load(const char* path, infid_template** made);
INFID_C_API void infid_template_free(infid_template* made);

INFID_C_API infid_cancel* infid_cancel_new(void); /* NULL if there is no memory */
INFID_C_API void infid_cancel_set(infid_cancel* cancel);
INFID_C_API void infid_cancel_free(infid_cancel* cancel);

/* One image of a person. settings may be NULL. */
INFID_C_API infid_status infid_generate(infid_pipeline* pipeline, const char* prompt, const infid_person* person,
                                        const infid_settings* settings, infid_image** image);
/* One image per person; `images` has room for `count`. */
INFID_C_API infid_status infid_generate_from_template(infid_pipeline* pipeline, const infid_template* made,
                                                      const infid_person* const* people, size_t count,
                                                      const infid_settings* settings, infid_image** images);

INFID_C_API int infid_image_width(const infid_image* image);
INFID_C_API int infid_image_height(const infid_image* image);
/* Rows from the top, three bytes (red, green, blue) per pixel; valid as long as the image. */
INFID_C_API const uint8_t* infid_image_pixels(const infid_image* image);
INFID_C_API infid_status infid_image_save(const infid_image* image, const char* path);
INFID_C_API void infid_image_free(infid_image* image);

#ifdef __cplusplus
}
#endif

#endif
