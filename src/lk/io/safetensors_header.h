// SPDX-License-Identifier: Apache-2.0
// The JSON header of a safetensors file, read as a stream: duplicate names are seen (a DOM would
// hide them) and a hostile header costs no more memory than the entries it declares.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct SafetensorsHeaderEntry {
  std::string name;
  std::string dtype;  // as written: "BF16"
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data
};

struct SafetensorsHeader {
  std::vector<SafetensorsHeaderEntry> entries;  // in header order
  std::map<std::string, std::string> metadata;
};

// Checks the grammar only; ranges and dtypes are the caller's.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json);

}  // namespace lk
