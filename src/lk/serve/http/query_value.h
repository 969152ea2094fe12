// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lk {

// The value of a query's parameter; none when it is absent or badly escaped.
std::optional<std::string> query_value(std::string_view query, std::string_view key);

}  // namespace lk
