// SPDX-License-Identifier: Apache-2.0
#include "lk/io/file_digest.h"

#include <algorithm>

#include "lk/base/thread_name.h"

namespace lk {

FileDigest::FileDigest(const std::string& prefix) {
  sha_.update(prefix.data(), prefix.size());
  thread_ = std::thread([this] { thread_main(); });
}

FileDigest::~FileDigest() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void FileDigest::add(std::span<const std::byte> bytes) {
  constexpr size_t kPiece = size_t{1} << 20;  // how long the destructor may have to wait
  {
    std::lock_guard lock(mutex_);
    for (size_t begin = 0; begin < bytes.size(); begin += kPiece)
      pieces_.push_back(bytes.subspan(begin, std::min(kPiece, bytes.size() - begin)));
  }
  changed_.notify_all();
}

std::array<uint8_t, 32> FileDigest::finish() {
  std::unique_lock lock(mutex_);
  complete_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return done_; });
  std::thread ended = std::move(thread_);  // not kept for as long as the file is
  lock.unlock();
  if (ended.joinable()) ended.join();
  return digest_;
}

void FileDigest::thread_main() {
  set_thread_name("lk-digest");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopped_ || complete_ || !pieces_.empty(); });
    if (stopped_) return;
    if (pieces_.empty()) break;
    const std::span<const std::byte> piece = pieces_.front();
    pieces_.pop_front();
    lock.unlock();
    sha_.update(piece);
    lock.lock();
  }
  digest_ = sha_.finish();
  done_ = true;
  changed_.notify_all();
}

}  // namespace lk
