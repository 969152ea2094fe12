// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client.h"

namespace lk {

void SseParser::push(std::string_view bytes) {
  for (const char c : bytes) {
    if (c != '\n') {
      line_ += c;
      continue;
    }
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    std::string_view line = line_;
    if (line.empty()) {
      if (!data_.empty()) on_event_(data_);
      data_.clear();
    } else if (line.starts_with("data:")) {
      line.remove_prefix(line.starts_with("data: ") ? 6 : 5);
      if (!data_.empty()) data_ += '\n';
      data_ += line;
    }
    line_.clear();
  }
}

}  // namespace lk
