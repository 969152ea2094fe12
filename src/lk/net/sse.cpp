// SPDX-License-Identifier: Apache-2.0
// Source: WHATWG HTML, "Server-sent events", 9.2.5 and 9.2.6. Fields other than data are of no use here and are
// skipped.
#include <algorithm>

#include "lk/net/http_client.h"

namespace lk {

bool SseParser::push(std::string_view bytes) {
  if (overflowed_) return false;
  while (!bytes.empty()) {
    if (skip_newline_ && bytes.front() == '\n') bytes.remove_prefix(1);  // the second half of CR LF
    skip_newline_ = false;
    // Two vectorised searches; find_first_of would look at each byte.
    const size_t newline = bytes.find('\n');
    const size_t end = std::min(bytes.substr(0, newline).find('\r'), newline);
    const std::string_view part = bytes.substr(0, end);
    if (line_.size() + part.size() > max_event_bytes_) {
      overflowed_ = true;
      return false;
    }
    line_ += part;
    if (end == std::string_view::npos) break;
    skip_newline_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (!end_line()) return false;
  }
  return true;
}

bool SseParser::end_line() {
  std::string_view line = line_;
  if (first_line_ && line.starts_with("\xef\xbb\xbf")) line.remove_prefix(3);
  first_line_ = false;
  if (line.empty()) {
    if (has_data_) on_event_(data_);
    has_data_ = false;
    data_.clear();
  } else if (const size_t colon = line.find(':'); line.substr(0, colon) == "data") {
    line.remove_prefix(colon == std::string_view::npos ? line.size() : colon + 1);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (data_.size() + line.size() + 1 > max_event_bytes_) {
      overflowed_ = true;
      return false;
    }
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  }
  line_.clear();
  return true;
}

}  // namespace lk
