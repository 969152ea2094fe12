# SPDX-License-Identifier: Apache-2.0
# lk_module(NAME [DEPS module...] [LIBS target...]): the static library lk_NAME of src/lk/NAME/**.cpp.
# DEPS are the modules it may include; they are public because headers include them too.
# Files named *.isa.cpp are left out: kernels/ compiles them once per instruction set.
add_library(lk_flags INTERFACE)
target_include_directories(lk_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
target_compile_options(lk_flags INTERFACE -Wall -Wextra -Wpedantic -Werror -Wno-missing-field-initializers)

function(lk_module name)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "\\.isa\\.cpp$")
  add_library(lk_${name} STATIC ${sources})
  target_link_libraries(lk_${name} PUBLIC lk_flags ${ARG_LIBS})
  foreach(dep ${ARG_DEPS})
    target_link_libraries(lk_${name} PUBLIC lk_${dep})
  endforeach()
endfunction()

# lk_tests(MODULE [LIBS target...]): one gtest program of tests/MODULE/*_test.cpp, discovered by ctest
# at run time, run from the repository root (fixtures are found as tests/...).
function(lk_tests name)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${name}_tests ${sources})
  target_include_directories(${name}_tests PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(${name}_tests PRIVATE lk_${name} ${ARG_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
  include(GoogleTest)
  gtest_discover_tests(${name}_tests WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
                       TEST_PREFIX ${name}. PROPERTIES LABELS unit DISCOVERY_TIMEOUT 60)
endfunction()

# embed_files(TARGET FILE...): each file becomes the object lk::embedded::NAME (index.html: index_html) in the program.
function(embed_files target)
  foreach(path ${ARGN})
    get_filename_component(name ${path} NAME)
    string(MAKE_C_IDENTIFIER ${name} symbol)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/embedded/${symbol}.cpp)
    add_custom_command(OUTPUT ${out} DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${path} ${CMAKE_SOURCE_DIR}/cmake/embed.cmake
      COMMAND ${CMAKE_COMMAND} -DFILE=${CMAKE_CURRENT_SOURCE_DIR}/${path} -DNAME=${path} -DSYMBOL=${symbol} -DOUT=${out}
              -P ${CMAKE_SOURCE_DIR}/cmake/embed.cmake VERBATIM)
    target_sources(${target} PRIVATE ${out})
  endforeach()
endfunction()
