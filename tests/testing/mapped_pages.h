// SPDX-License-Identifier: Apache-2.0
// How much of a mapped file is in this process's memory.
#pragma once

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace lk::testing {

// Bytes, over all mappings of the file, from /proc/self/smaps. `path` as the kernel knows it: absolute, without links.
inline int64_t mapped_bytes_in_memory(const std::string& path) {
  std::ifstream smaps("/proc/self/smaps");
  int64_t bytes = 0;
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (!first.empty() && first.back() != ':') {
      ours = line.ends_with(path);
      continue;
    }
    int64_t kib = 0;
    if (ours && first == "Rss:" && words >> kib) bytes += kib * 1024;
  }
  return bytes;
}

}  // namespace lk::testing
