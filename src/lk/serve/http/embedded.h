// SPDX-License-Identifier: Apache-2.0
// Files that cmake/embed.cmake puts into the program. Use console.h.
#pragma once

#include <cstddef>

namespace lk::embedded {

struct File {
  const unsigned char* bytes;
  size_t size;
  const char* digest;  // hex
};
extern const File index_html, console_css, console_js, icon_svg, answer_schemas_json;

}  // namespace lk::embedded
