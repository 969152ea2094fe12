// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/query_value.h"

#include <algorithm>

namespace lk {
namespace {

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::optional<std::string> query_value(std::string_view query, std::string_view key) {
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view field = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = std::min(field.find('='), field.size());
    if (field.substr(0, equals) != key) continue;
    std::string value;
    for (size_t i = equals + 1; i < field.size(); ++i) {
      if (field[i] != '%') {
        value += field[i] == '+' ? ' ' : field[i];
        continue;
      }
      const int high = i + 1 < field.size() ? hex(field[i + 1]) : -1,
                low = i + 2 < field.size() ? hex(field[i + 2]) : -1;
      if (high < 0 || low < 0) return std::nullopt;
      value += static_cast<char>(high * 16 + low);
      i += 2;
    }
    return value;
  }
  return std::nullopt;
}

}  // namespace lk
