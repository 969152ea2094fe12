// SPDX-License-Identifier: Apache-2.0
// FileDigest: the SHA-256 of bytes that arrive piece by piece, computed on a thread of its own, so that it costs no
// time beside a read that takes as long.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "lk/base/sha256.h"

namespace lk {

class FileDigest {
 public:
  explicit FileDigest(const std::string& prefix);
  ~FileDigest();  // stops where it is

  // The bytes must stay where they are until this is destroyed or finish() returned.
  void add(std::span<const std::byte> bytes);
  // Of all that was added; waits for it. Any thread, as often as wanted.
  std::array<uint8_t, 32> finish();

 private:
  void thread_main();

  Sha256 sha_;  // the thread's
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::span<const std::byte>> pieces_;  // guarded by mutex_, like all below
  bool complete_ = false, stopped_ = false, done_ = false;
  std::array<uint8_t, 32> digest_{};
  std::thread thread_;
};

}  // namespace lk
