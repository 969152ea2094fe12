// SPDX-License-Identifier: Apache-2.0
#include "lk/base/bytes.h"

#include <charconv>
#include <string_view>
#include <utility>

namespace lk {

Result<int64_t> parse_bytes(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  double factor = 0;
  for (const auto& [name, value] : {std::pair<std::string_view, double>{"", 1},
                                    {"B", 1},
                                    {"KiB", 0x1p10},
                                    {"MiB", 0x1p20},
                                    {"GiB", 0x1p30},
                                    {"TiB", 0x1p40},
                                    {"K", 0x1p10},
                                    {"M", 0x1p20},
                                    {"G", 0x1p30},
                                    {"T", 0x1p40},
                                    {"kB", 1e3},
                                    {"MB", 1e6},
                                    {"GB", 1e9},
                                    {"TB", 1e12}})
    if (unit == name) factor = value;
  if (error != std::errc() || factor == 0)
    return invalid_argument(
        "\"{}\" is not a size; write for example 8GiB, 512MiB or a number of bytes (KiB, MiB, GiB, TiB are powers of "
        "1024, as are K, M, G, T; kB, MB, GB, TB of 1000)",
        text);
  const double bytes = number * factor;
  if (!(bytes >= 1 && bytes <= 0x1p50)) return invalid_argument("{} must be from 1 byte to 1024TiB", text);
  return static_cast<int64_t>(bytes);
}

std::string format_bytes(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b >= 0x1p40) return fmt::format("{:.2f} TiB", b * 0x1p-40);
  if (b >= 0x1p30) return fmt::format("{:.2f} GiB", b * 0x1p-30);
  if (b >= 0x1p20) return fmt::format("{:.1f} MiB", b * 0x1p-20);
  if (b >= 0x1p10) return fmt::format("{:.1f} KiB", b * 0x1p-10);
  return fmt::format("{} B", bytes);
}

}  // namespace lk
