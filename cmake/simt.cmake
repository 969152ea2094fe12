# SPDX-License-Identifier: Apache-2.0
# CUDA sources and how they are tested without a GPU (docs/cuda.md).
# lk_cuda_tests(NAME SOURCE.cu): NAME_host.cpp (which includes the source), NAME_ptx.cpp and NAME_test.cpp of the current
# directory give
#   simt.NAME_emulated  the source compiled by this compiler, each thread a fiber, each load and store checked
#   simt.NAME_ptx       the PTX that nvcc made of it, interpreted under the same checks; skipped without nvcc

# -fsanitize=thread gives the calls before each load and store; its runtime is not linked.
set(LK_EMULATED -O1 -g -fsanitize=thread,undefined -fno-sanitize-recover=all)
# No contraction: two instantiations of one kernel must give the same bits.
set(LK_NVCC_FLAGS -std=c++20 -O3 -fmad=false -I${CMAKE_SOURCE_DIR}/src -I${CMAKE_SOURCE_DIR}/tests)

option(LK_CUDA "fail where there is no nvcc, instead of leaving out what needs it" OFF)
find_program(LK_NVCC nvcc HINTS /usr/local/cuda/bin)
if(LK_NVCC)
  execute_process(COMMAND ${LK_NVCC} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT version MATCHES "release ([0-9.]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.0)
    message(STATUS "${LK_NVCC} is older than 12.0 (no C++20): not used")
    set(LK_NVCC_USED "")
  else()
    set(LK_NVCC_USED ${LK_NVCC})
  endif()
endif()
if(LK_CUDA AND NOT LK_NVCC_USED)
  message(FATAL_ERROR "LK_CUDA needs nvcc 12.0 or newer on PATH (pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt "
                      "nvidia-cuda-runtime nvidia-cuda-cccl has one)")
endif()

function(lk_cuda_tests name source)
  set(here ${CMAKE_CURRENT_SOURCE_DIR})
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/lk/cuda/*.h ${here}/*.h ${CMAKE_SOURCE_DIR}/tests/simt/*.h)
  add_library(${name}_checks OBJECT ${here}/${name}_test.cpp)
  set_source_files_properties(${here}/${name}_host.cpp PROPERTIES COMPILE_OPTIONS "${LK_EMULATED}" OBJECT_DEPENDS ${source})
  add_executable(${name}_emulated ${here}/${name}_host.cpp)
  target_link_options(${name}_emulated PRIVATE -fsanitize=undefined)
  add_test(NAME simt.${name}_emulated COMMAND ${name}_emulated)
  if(LK_NVCC_USED)
    set(ptx ${CMAKE_CURRENT_BINARY_DIR}/${name}.ptx)
    add_custom_command(OUTPUT ${ptx} DEPENDS ${source} ${headers} VERBATIM
      COMMAND ${LK_NVCC} ${LK_NVCC_FLAGS} -lineinfo -arch=sm_80 -ptx ${source} -o ${ptx})
    add_executable(${name}_ptx ${here}/${name}_ptx.cpp ${ptx})
    target_compile_definitions(${name}_ptx PRIVATE PTX_FILE="${ptx}")
    add_test(NAME simt.${name}_ptx COMMAND ${name}_ptx)
  else()
    add_test(NAME simt.${name}_ptx COMMAND ${CMAKE_COMMAND} -E echo "skipped: no nvcc")
  endif()
  set_tests_properties(simt.${name}_ptx PROPERTIES SKIP_REGULAR_EXPRESSION "skipped: no nvcc")
  foreach(target ${name}_checks ${name}_emulated ${name}_ptx)
    if(TARGET ${target})
      target_link_libraries(${target} PRIVATE simt lk_flags GTest::gtest GTest::gmock)
      if(NOT target STREQUAL ${name}_checks)
        target_link_libraries(${target} PRIVATE ${name}_checks GTest::gtest_main ${ARGN})
      endif()
    endif()
  endforeach()
endfunction()
