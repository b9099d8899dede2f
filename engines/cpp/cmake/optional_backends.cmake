# The backends that need another library's headers. Each adds to `objects`, and to `libraries` what it links to.

# infid_backend(NAME MACRO): an object library of the sources given after these; MACRO tells the registry about it.
function(infid_backend name macro)
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE infid_options)
  target_compile_definitions(infid_objects PRIVATE ${macro})
  set(objects ${objects} $<TARGET_OBJECTS:${name}> PARENT_SCOPE)
endfunction()

# TensorRT and TensorRT-RTX are loaded at run time. Their headers share the name of a namespace, but not its content.
foreach(kind TENSORRT TENSORRT_RTX)
  if(INFID_${kind}_ROOT)
    find_path(INFID_${kind}_INCLUDE NvInferRuntime.h HINTS ${INFID_${kind}_ROOT}/include NO_DEFAULT_PATH REQUIRED)
    string(TOLOWER infid_${kind} name)
    infid_backend(${name} INFID_HAS_${kind} source/backends/tensorrt/tensorrt_backend.cpp)
    target_include_directories(${name} SYSTEM PRIVATE source/backends/tensorrt/cuda_types ${INFID_${kind}_INCLUDE})
  endif()
endforeach()
if(TARGET infid_tensorrt_rtx)
  target_compile_definitions(infid_tensorrt_rtx PRIVATE INFID_TENSORRT_RTX nvinfer1=nvinfer1_rtx)
endif()

# PyTorch's own CMake package needs a CUDA toolkit wherever PyTorch was built with CUDA, so its libraries are named
# here. The linker would drop libtorch.so, through which the code for GPUs is loaded.
if(INFID_TORCH)
  if(NOT EXISTS ${INFID_TORCH}/include/ATen/ATen.h)
    message(FATAL_ERROR "INFID_TORCH is ${INFID_TORCH}, which is not the folder of the Python package torch")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS source/backends/aotinductor/*.cpp)
  infid_backend(infid_aotinductor INFID_HAS_AOTINDUCTOR ${sources})
  set_target_properties(infid_aotinductor PROPERTIES CXX_STANDARD 20)
  target_include_directories(infid_aotinductor SYSTEM PRIVATE ${INFID_TORCH}/include
                                                              ${INFID_TORCH}/include/torch/csrc/api/include)
  foreach(library torch torch_cpu c10)
    list(APPEND torch_libraries ${INFID_TORCH}/lib/lib${library}.so)
  endforeach()
  list(APPEND libraries -Wl,--no-as-needed ${torch_libraries} -Wl,--as-needed)
  set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)
endif()
