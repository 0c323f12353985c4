# One test program per folder of gsa/ and one for tests/: tests/CMake names stay stable while files come and go.
find_package(GTest REQUIRED)
set(GSA_PYTHON "${CMAKE_SOURCE_DIR}/.venv/bin/python" CACHE FILEPATH "Python with the pinned wheels, for golden tests")

# Python is not sanitized: the sanitizer's runtime has to be there before it loads our library, and libstdc++ with it, whose
# exceptions the runtime intercepts.
set(test_environment "")
if(GSA_SANITIZE MATCHES "address")
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libasan.so OUTPUT_VARIABLE asan_runtime OUTPUT_STRIP_TRAILING_WHITESPACE)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libstdc++.so.6 OUTPUT_VARIABLE standard_library OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(test_environment "LD_PRELOAD=${asan_runtime}:${standard_library};ASAN_OPTIONS=detect_leaks=0")
endif()

add_library(gsa_tolerance STATIC ${CMAKE_SOURCE_DIR}/gsa/testing/tolerance.cpp)
target_link_libraries(gsa_tolerance PUBLIC gsa_testing GTest::gtest PRIVATE gsa_warnings)

function(gsa_add_test name)
  set(sources ${ARGN})
  set(emulated ${ARGN})
  list(FILTER emulated INCLUDE REGEX "emulat[a-z]*_test\\.cpp$")
  if(emulated)  # kernels compiled as C++: their pragmas are nvcc's, and clang-tidy's checks are not for device code
    list(REMOVE_ITEM sources ${emulated})
    add_library(${name}_emulated OBJECT ${emulated})
    set_target_properties(${name}_emulated PROPERTIES CXX_CLANG_TIDY "")
    target_compile_options(${name}_emulated PRIVATE -Wno-unknown-pragmas)
    target_link_libraries(${name}_emulated PRIVATE libgsa gsa_tolerance GTest::gtest gsa_warnings)
    list(APPEND sources $<TARGET_OBJECTS:${name}_emulated>)
  endif()
  add_executable(${name} ${sources})
  set_target_properties(${name} PROPERTIES BUILD_RPATH "${CMAKE_BINARY_DIR}/lib;${GSA_TORCH_LIB}")
  target_link_libraries(${name} PRIVATE libgsa gsa_tolerance GTest::gtest_main gsa_warnings)
  target_compile_definitions(${name} PRIVATE GSA_SOURCE_DIR="${CMAKE_SOURCE_DIR}" GSA_BINARY_DIR="${CMAKE_BINARY_DIR}"
                             GSA_PYTHON="${GSA_PYTHON}" GSA_CLI="$<TARGET_FILE:gsa_cli>")
  add_dependencies(${name} gsa_cli)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT 1800 ENVIRONMENT "${test_environment}")
endfunction()

file(GLOB folders LIST_DIRECTORIES true ${CMAKE_SOURCE_DIR}/gsa/* ${CMAKE_SOURCE_DIR}/gsa/ops/*)
foreach(folder ${folders})
  if(IS_DIRECTORY ${folder} AND NOT folder MATCHES "/gsa/ops$")
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${folder}/*_test.cpp)
    if(sources)
      get_filename_component(module ${folder} NAME)
      gsa_add_test(${module}_test ${sources})
    endif()
  endif()
endforeach()
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/*_test.cpp)
if(sources)
  gsa_add_test(integration_test ${sources})
endif()

# Tests in Python (the package, golden comparisons) and the checks of the tree itself.
add_test(NAME layout COMMAND ${GSA_PYTHON} ${CMAKE_SOURCE_DIR}/tools/check_layout.py)
file(GLOB python_tests CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/*_test.py ${CMAKE_SOURCE_DIR}/python/tests/*_test.py)
foreach(script ${python_tests})
  get_filename_component(name ${script} NAME_WE)
  add_test(NAME python_${name} COMMAND ${GSA_PYTHON} ${script})
  set_tests_properties(python_${name} PROPERTIES TIMEOUT 1800 ENVIRONMENT
    "GSA_LIBRARY=$<TARGET_FILE:libgsa>;GSA_CLI=$<TARGET_FILE:gsa_cli>;PYTHONPATH=${CMAKE_SOURCE_DIR}/python;${test_environment}")
endforeach()
