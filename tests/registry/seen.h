// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lk/registry/registry.h"

namespace lk::testing {

inline constexpr std::chrono::seconds kPatience{60};  // of a busy machine

// What a watch said last, and lines for the operator.
struct Seen {
  std::mutex mutex;
  std::condition_variable news;
  Registry::Entries entries;
  int calls = 0;
  std::string lines;

  auto on_change() {
    return [this](const Registry::Entries& now) {
      std::lock_guard lock(mutex);
      entries = now;
      ++calls;
      news.notify_all();
    };
  }
  auto log() {
    return [this](std::string_view event, std::string_view detail) {
      std::lock_guard lock(mutex);
      lines += fmt::format("{}: {}\n", event, detail);
      news.notify_all();
    };
  }
  template <class Condition>
  bool wait(Condition condition) {
    std::unique_lock lock(mutex);
    return news.wait_for(lock, kPatience, condition);
  }
  bool wait_for_names(std::vector<std::string> names) {
    return wait([&] {
      std::vector<std::string> now;
      for (const auto& [name, entry] : entries) now.push_back(name);
      return calls > 0 && now == names;
    });
  }
  std::vector<std::string> names() {
    std::lock_guard lock(mutex);
    std::vector<std::string> now;
    for (const auto& [name, entry] : entries) now.push_back(name);
    return now;
  }
  // For what nobody tells of: looks again and again.
  template <class Condition>
  static bool wait(Condition condition, std::chrono::milliseconds look) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(look);
    }
    return true;
  }
  bool wait_for_line(std::string_view text) {
    return wait([&] { return lines.find(text) != std::string::npos; });
  }
};

}  // namespace lk::testing
