// SPDX-License-Identifier: Apache-2.0
// Progress on standard error: one line that is redrawn on a terminal, a plain line every ten seconds otherwise.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

#include "commands.h"

namespace lk::apps {

class ProgressLine {
 public:
  explicit ProgressLine(bool redrawn = stderr_is_terminal()) : redrawn_(redrawn) {}

  bool redrawn() const { return redrawn_; }
  // Whether it is time for show(); the time counts from the last true.
  bool due() {
    const Clock::time_point now = Clock::now();
    if (now - shown_ < (redrawn_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10'000))) return false;
    shown_ = now;
    return true;
  }
  void show(const std::string& text) const {
    if (redrawn_)
      fmt::print(stderr, "\r{}\x1b[K", text);
    else
      fmt::print(stderr, "{}\n", text);
    std::fflush(stderr);
  }
  // With a bar of how much of it all is done, where there is a line to redraw.
  void show(double part, const std::string& text) const {
    constexpr size_t kWidth = 30;
    const auto filled = static_cast<size_t>(std::clamp(part, 0.0, 1.0) * static_cast<double>(kWidth));
    show(redrawn_ ? fmt::format("[{}{}] {}", std::string(filled, '#'), std::string(kWidth - filled, '.'), text) : text);
  }
  void clear() const {
    if (redrawn_) fmt::print(stderr, "\r\x1b[K");
  }

 private:
  using Clock = std::chrono::steady_clock;
  const bool redrawn_;
  Clock::time_point shown_ = Clock::now();
};

}  // namespace lk::apps
