# SPDX-License-Identifier: Apache-2.0
# CUDA sources and how they are tested without a GPU (docs/cuda.md).
# lk_cuda_tests(NAME SOURCE.cu): NAME_host.cpp (which includes the source) and NAME_test.cpp of the current directory give
#   simt.NAME_emulated  the source compiled by this compiler, each thread a fiber, each load and store checked

# -fsanitize=thread gives the calls before each load and store; its runtime is not linked.
set(LK_EMULATED -O1 -g -fsanitize=thread,undefined -fno-sanitize-recover=all)
function(lk_cuda_tests name source)
  set(here ${CMAKE_CURRENT_SOURCE_DIR})
  add_library(${name}_checks OBJECT ${here}/${name}_test.cpp)
  set_source_files_properties(${here}/${name}_host.cpp PROPERTIES COMPILE_OPTIONS "${LK_EMULATED}" OBJECT_DEPENDS ${source})
  add_executable(${name}_emulated ${here}/${name}_host.cpp)
  target_link_options(${name}_emulated PRIVATE -fsanitize=undefined)
  add_test(NAME simt.${name}_emulated COMMAND ${name}_emulated)
  foreach(target ${name}_checks ${name}_emulated)
    target_link_libraries(${target} PRIVATE simt lk_flags GTest::gtest GTest::gmock)
  endforeach()
  target_link_libraries(${name}_emulated PRIVATE ${name}_checks GTest::gtest_main)
endfunction()
