// SPDX-License-Identifier: Apache-2.0
// What may stand in names that clients, operators and files supply: of tenants, keys, jobs, adapters, aliases,
// allow-lists.
#pragma once

#include <cstddef>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

// ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$: no separators, no "..", nothing hidden, safe in paths, labels, URLs and logs.
bool is_valid_name(std::string_view name);
// kInvalidArgument "WHAT "..." is not a name: ..."; what = "tenant".
Status check_name(std::string_view what, std::string_view name);

// As hubs and trainers write adapters' names: "org/name", "_draft", "a+b". Parts of ^[A-Za-z0-9_][A-Za-z0-9._+-]*$,
// between single slashes, 128 bytes in all. No part is hidden or ".."; '@' and ':' and '*' mean something in a request.
bool is_adapter_name(std::string_view name);
inline constexpr char kAdapterNamePattern[] = "^[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*$";
// kInvalidArgument; what = "adapter", "alias".
Status check_adapter_name(std::string_view what, std::string_view name);

// A glob pattern of adapters' names: the same characters, '*' (any run) and '?' (any one character).
bool is_valid_glob(std::string_view pattern);
// Whole-string match; at most |pattern| * |text| steps whatever the pattern.
bool glob_match(std::string_view pattern, std::string_view text);

}  // namespace lk
