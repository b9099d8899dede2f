// Our own declarations of the functions of ONNX Runtime's C table that we call. The table only ever grows at its end,
// so a function keeps its place; onnxruntime_check.cpp compares the places with the official header where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infid {

// Opaque objects of the library.
struct OrtStatus_;
struct OrtObject_;
using OrtStatus = OrtStatus_*;   // null: no error
using OrtHandle = OrtObject_*;

constexpr std::uint32_t kOrtApiVersion = 23;  // the first with CopyTensors; infid-export needs the same release, 1.23

// name, place, result, parameters
#define INFID_ORT_FUNCTIONS(F)                                                                                       \
  F(GetErrorCode, 1, int, (OrtStatus))                                                                               \
  F(GetErrorMessage, 2, const char*, (OrtStatus))                                                                    \
  F(CreateEnv, 3, OrtStatus, (int level, const char* name, OrtHandle*))                                              \
  F(CreateSession, 7, OrtStatus, (OrtHandle env, const char* path, OrtHandle options, OrtHandle*))                   \
  F(Run, 9, OrtStatus,                                                                                               \
    (OrtHandle session, OrtHandle options, const char* const* names, const OrtHandle* inputs, std::size_t,           \
     const char* const* outputs, std::size_t, OrtHandle*))                                                           \
  F(CreateSessionOptions, 10, OrtStatus, (OrtHandle*))                                                               \
  F(DisableCpuMemArena, 19, OrtStatus, (OrtHandle options))                                                          \
  F(SetSessionLogSeverityLevel, 22, OrtStatus, (OrtHandle options, int level))                                       \
  F(SetSessionGraphOptimizationLevel, 23, OrtStatus, (OrtHandle options, int level))                                 \
  F(SetIntraOpNumThreads, 24, OrtStatus, (OrtHandle options, int threads))                                           \
  F(SessionGetInputCount, 30, OrtStatus, (OrtHandle session, std::size_t*))                                          \
  F(SessionGetOutputCount, 31, OrtStatus, (OrtHandle session, std::size_t*))                                         \
  F(SessionGetInputTypeInfo, 33, OrtStatus, (OrtHandle session, std::size_t, OrtHandle*))                            \
  F(SessionGetInputName, 36, OrtStatus, (OrtHandle session, std::size_t, OrtHandle allocator, char**))               \
  F(SessionGetOutputName, 37, OrtStatus, (OrtHandle session, std::size_t, OrtHandle allocator, char**))              \
  F(CreateRunOptions, 39, OrtStatus, (OrtHandle*))                                                                   \
  F(CreateTensorAsOrtValue, 48, OrtStatus,                                                                           \
    (OrtHandle allocator, const std::int64_t* shape, std::size_t rank, int type, OrtHandle*))                        \
  F(CreateTensorWithDataAsOrtValue, 49, OrtStatus,                                                                   \
    (OrtHandle memory, void* data, std::size_t bytes, const std::int64_t* shape, std::size_t rank, int type,         \
     OrtHandle*))                                                                                                    \
  F(GetTensorMutableData, 51, OrtStatus, (OrtHandle value, void**))                                                  \
  F(CastTypeInfoToTensorInfo, 55, OrtStatus, (OrtHandle info, OrtHandle*))                                           \
  F(GetTensorElementType, 60, OrtStatus, (OrtHandle info, int*))                                                     \
  F(GetDimensionsCount, 61, OrtStatus, (OrtHandle info, std::size_t*))                                               \
  F(GetDimensions, 62, OrtStatus, (OrtHandle info, std::int64_t*, std::size_t rank))                                 \
  F(GetTensorTypeAndShape, 65, OrtStatus, (OrtHandle value, OrtHandle*))                                             \
  F(CreateMemoryInfo, 68, OrtStatus, (const char* name, int allocator, int device, int type, OrtHandle*))            \
  F(AllocatorFree, 76, OrtStatus, (OrtHandle allocator, void*))                                                      \
  F(GetAllocatorWithDefaultOptions, 78, OrtStatus, (OrtHandle*))                                                     \
  F(ReleaseEnv, 92, void, (OrtHandle))                                                                               \
  F(ReleaseStatus, 93, void, (OrtStatus))                                                                            \
  F(ReleaseMemoryInfo, 94, void, (OrtHandle))                                                                        \
  F(ReleaseSession, 95, void, (OrtHandle))                                                                           \
  F(ReleaseValue, 96, void, (OrtHandle))                                                                             \
  F(ReleaseRunOptions, 97, void, (OrtHandle))                                                                        \
  F(ReleaseTypeInfo, 98, void, (OrtHandle))                                                                          \
  F(ReleaseTensorTypeAndShapeInfo, 99, void, (OrtHandle))                                                            \
  F(ReleaseSessionOptions, 100, void, (OrtHandle))                                                                   \
  F(SessionGetModelMetadata, 111, OrtStatus, (OrtHandle session, OrtHandle*))                                        \
  F(ModelMetadataLookupCustomMetadataMap, 116, OrtStatus,                                                            \
    (OrtHandle metadata, OrtHandle allocator, const char* key, char**))                                              \
  F(ReleaseModelMetadata, 118, void, (OrtHandle))                                                                    \
  F(GetAvailableProviders, 125, OrtStatus, (char***, int*))                                                          \
  F(ReleaseAvailableProviders, 126, OrtStatus, (char**, int))                                                        \
  F(AddSessionConfigEntry, 130, OrtStatus, (OrtHandle options, const char* key, const char* value))                  \
  F(CreateAllocator, 131, OrtStatus, (OrtHandle session, OrtHandle memory, OrtHandle*))                              \
  F(ReleaseAllocator, 132, void, (OrtHandle))                                                                        \
  F(RunWithBinding, 133, OrtStatus, (OrtHandle session, OrtHandle options, OrtHandle binding))                       \
  F(CreateIoBinding, 134, OrtStatus, (OrtHandle session, OrtHandle*))                                                \
  F(ReleaseIoBinding, 135, void, (OrtHandle))                                                                        \
  F(BindInput, 136, OrtStatus, (OrtHandle binding, const char* name, OrtHandle value))                               \
  F(BindOutput, 137, OrtStatus, (OrtHandle binding, const char* name, OrtHandle value))                              \
  F(AddRunConfigEntry, 165, OrtStatus, (OrtHandle options, const char* key, const char* value))                      \
  F(SessionOptionsAppendExecutionProvider_CUDA_V2, 204, OrtStatus, (OrtHandle options, OrtHandle cuda))              \
  F(CreateCUDAProviderOptions, 205, OrtStatus, (OrtHandle*))                                                         \
  F(UpdateCUDAProviderOptions, 206, OrtStatus,                                                                       \
    (OrtHandle cuda, const char* const* keys, const char* const* values, std::size_t))                               \
  F(ReleaseCUDAProviderOptions, 208, void, (OrtHandle))                                                              \
  F(CopyTensors, 386, OrtStatus,                                                                                     \
    (OrtHandle env, const OrtHandle* sources, const OrtHandle* targets, void* stream, std::size_t))

// The functions, found by their places.
struct OrtTable {
  explicit OrtTable(const void* const* table) {
#define INFID_ORT_FIND(name, place, result, parameters) \
  name = reinterpret_cast<decltype(name)>(reinterpret_cast<std::uintptr_t>(table[place]));
    INFID_ORT_FUNCTIONS(INFID_ORT_FIND)
#undef INFID_ORT_FIND
  }
#define INFID_ORT_MEMBER(name, place, result, parameters) result(*name) parameters;
  INFID_ORT_FUNCTIONS(INFID_ORT_MEMBER)
#undef INFID_ORT_MEMBER
};

}  // namespace infid
