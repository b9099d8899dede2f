// Compares our places of ONNX Runtime's functions with its official header, where that is there at build time.
#ifdef INFID_ONNXRUNTIME_HEADER

#include <onnxruntime_c_api.h>

#include "backends/onnxruntime_api.hpp"

#define INFID_ORT_CHECK(name, place, result, parameters) \
  static_assert(offsetof(OrtApi, name) == (place) * sizeof(void*), "the place of " #name " differs from the header's");
INFID_ORT_FUNCTIONS(INFID_ORT_CHECK)

#endif
