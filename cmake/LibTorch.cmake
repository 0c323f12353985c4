# Imported targets for the LibTorch that the torch wheel carries.
#
# The wheel's own find_package(Torch) forces its architecture flags on every target, fails with CUDA 13
# and fails without nvcc; all we need are four libraries and two include folders.
#
#   torch::cpu   libtorch_cpu + libc10; its headers
#   torch::cuda  libc10_cuda (streams, allocator); libtorch_cuda itself is loaded when a CUDA device is used
#
# GSA_TORCH_DIR names the `torch` folder of the wheel. By default it is the one of the project's .venv, else of the python3 on the PATH.

set(GSA_TORCH_DIR "" CACHE PATH "The `torch` folder of an installed torch wheel")
if(NOT GSA_TORCH_DIR)
  foreach(python "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python" python3)
    execute_process(
      COMMAND "${python}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
    if(status EQUAL 0 AND EXISTS "${torch_dir}/lib/libtorch_cpu.so")
      set(GSA_TORCH_DIR "${torch_dir}" CACHE PATH "The `torch` folder of an installed torch wheel" FORCE)
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS "${GSA_TORCH_DIR}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "GSA_TORCH_DIR: expected the `torch` folder of an installed torch wheel, got '${GSA_TORCH_DIR}'. "
                      "Run ./dev build once, or pass -DGSA_TORCH_DIR=.../site-packages/torch.")
endif()

set(GSA_TORCH_LIB "${GSA_TORCH_DIR}/lib")
foreach(library c10 torch_cpu c10_cuda)
  if(EXISTS "${GSA_TORCH_LIB}/lib${library}.so" AND NOT TARGET torch::lib_${library})
    add_library(torch::lib_${library} SHARED IMPORTED)
    set_target_properties(torch::lib_${library} PROPERTIES IMPORTED_LOCATION "${GSA_TORCH_LIB}/lib${library}.so")
  endif()
endforeach()

if(NOT TARGET torch::cpu)
  add_library(torch::cpu INTERFACE IMPORTED)
  set_target_properties(torch::cpu PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${GSA_TORCH_DIR}/include;${GSA_TORCH_DIR}/include/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${GSA_TORCH_DIR}/include;${GSA_TORCH_DIR}/include/torch/csrc/api/include"
    # CUPTI and the CUDA runtime that libtorch_cpu names are found through libtorch_cpu's own rpath.
    INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined"
    INTERFACE_LINK_LIBRARIES "torch::lib_torch_cpu;torch::lib_c10")
endif()
if(TARGET torch::lib_c10_cuda AND NOT TARGET torch::cuda)
  add_library(torch::cuda INTERFACE IMPORTED)
  set_target_properties(torch::cuda PROPERTIES INTERFACE_LINK_LIBRARIES "torch::cpu;torch::lib_c10_cuda")
endif()
