// SPDX-License-Identifier: Apache-2.0
// Text from outside may hold any bytes; what goes into logs, labels, JSON, messages and terminals must not.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lk {

// Valid UTF-8 of at most max_bytes without control characters (C0, DEL, C1): one printable line.
bool is_plain_text(std::string_view text, size_t max_bytes);
// What is_plain_text() accepts: cut at max_bytes, never within a character; each byte that may not stand there becomes
// '?'.
std::string clean_text(std::string_view text, size_t max_bytes);
// For messages that repeat what was given: printable ASCII of at most max_bytes, '?' for the rest.
std::string printable(std::string_view text, size_t max_bytes = 64);

}  // namespace lk
