// SPDX-License-Identifier: Apache-2.0
// LK_CHECK: aborts on a bug in this program, with file, line and a message. Never for bad input.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace lk {
[[noreturn]] void check_failed(const char* file, int line, const char* condition, std::string_view message);
}  // namespace lk

// LK_CHECK(cond) or LK_CHECK(cond, "fmt {}", args...)
#define LK_CHECK(cond, ...)                                                                                    \
  do {                                                                                                         \
    if (!(cond)) [[unlikely]]                                                                                  \
      ::lk::check_failed(__FILE__, __LINE__, #cond, std::string_view{__VA_OPT__(::fmt::format(__VA_ARGS__))}); \
  } while (0)

#ifdef NDEBUG
#define LK_DCHECK(cond, ...) \
  do {                       \
  } while (0)
#else
#define LK_DCHECK(cond, ...) LK_CHECK(cond __VA_OPT__(, ) __VA_ARGS__)
#endif
