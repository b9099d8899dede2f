/* An image from C: cc generate.c $(pkg-config --cflags --libs infid) -o generate
 *
 *     ./generate infid-engines anna.safetensors "a portrait in the rain" rain.png [libonnxruntime.so]
 */
#include <infid/infid.h>
#include <stdio.h>

static void on_step(int step, int steps, void* context) {
  (void)context;
  fprintf(stderr, "\rstep %d of %d", step, steps);
}

static int failed(infid_status status) {
  if (status != INFID_OK) fprintf(stderr, "\nerror: %s\n  fix: %s\n", infid_problem(), infid_fix());
  return status != INFID_OK;
}

int main(int count, char** words) {
  infid_pipeline* pipeline = NULL;
  infid_person* person = NULL;
  infid_image* image = NULL;
  infid_options options = {0};
  infid_settings settings = infid_default_settings();
  const uint64_t seed = 7;

  if (count < 5) {
    fprintf(stderr, "generate FOLDER PERSON PROMPT OUT.png [libonnxruntime.so]\n");
    return 1;
  }
  options.onnxruntime = count > 5 ? words[5] : NULL;
  settings.seeds = &seed;
  settings.seed_count = 1;
  settings.on_step = on_step;

  const int bad = failed(infid_pipeline_load(words[1], &options, &pipeline)) ||
                  failed(infid_person_load(words[2], &person)) ||
                  failed(infid_generate(pipeline, words[3], person, &settings, &image)) ||
                  failed(infid_image_save(image, words[4]));
  if (!bad) printf("\n%s: %d x %d\n", words[4], infid_image_width(image), infid_image_height(image));

  infid_image_free(image); /* freeing NULL does nothing */
  infid_person_free(person);
  infid_pipeline_free(pipeline);
  return bad;
}
