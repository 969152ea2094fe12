// SPDX-License-Identifier: Apache-2.0
// Names of options with a few fixed values.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "lk/base/status.h"

namespace lk {

template <typename Enum, size_t n>
using EnumNames = std::array<std::pair<std::string_view, Enum>, n>;

// kInvalidArgument with the known names; `what` says of what it should be one.
template <typename Enum, size_t n>
Result<Enum> parse_name(std::string_view what, std::string_view text, const EnumNames<Enum, n>& names) {
  std::string known;
  for (const auto& [name, value] : names) {
    if (name == text) return value;
    known += known.empty() ? name : std::string(", ").append(name);
  }
  return invalid_argument("unknown {} \"{}\"; known: {}", what, text, known);
}

}  // namespace lk
