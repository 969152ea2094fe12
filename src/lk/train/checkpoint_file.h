// SPDX-License-Identifier: Apache-2.0
// Checkpoints on disk: DIR/checkpoint-STEP, a directory that is there completely or not at all. It is written under a
// hidden name, synced with all its files, renamed, and the parent synced; checkpoint.json lists the files with their
// SHA-256. What a crash leaves behind is a hidden directory that the next claim() removes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct CheckpointPart {
  std::vector<std::string> names;                             // of its files, without directories
  std::function<Status(const std::string& directory)> write;  // makes them
};
CheckpointPart bytes_part(std::string name, std::string bytes);

class CheckpointStore {
 public:
  struct Options {
    int64_t keep = 2;  // complete checkpoints, at least 1
    // For tests: asked before every operation ("write a", "sync a", "rename", "remove"); a failure stands for the
    // operation's own.
    std::function<Status(std::string_view operation)> fault = {};
  };
  CheckpointStore(std::string directory, Options options)
      : directory_(std::move(directory)), options_(std::move(options)) {}

  // Makes the directory, keeps other processes from writing to it while this object lives, and removes leftovers. Until
  // then the directory is only looked at.
  Status claim();

  struct Found {
    int64_t step = 0;
    std::string path;
    std::vector<std::string> skipped;  // newer ones that are not what they were written as, and why
  };
  // The newest complete checkpoint, every byte of which was read.
  Result<std::optional<Found>> newest() const;

  // Afterwards the checkpoint is on disk, and so are the `keep` - 1 before it; or it failed, and those that were there
  // still are. Requires: claim().
  Status save(int64_t step, const std::vector<CheckpointPart>& parts);

 private:
  struct Lock {  // an open directory
    int fd = -1;
    Lock() = default;
    Lock(Lock&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
    Lock& operator=(Lock&& other) noexcept {
      std::swap(fd, other.fd);
      return *this;
    }
    ~Lock();
  };
  std::string path_of(int64_t step) const;
  std::string hidden_path(int64_t step) const;
  std::vector<int64_t> steps() const;  // ascending
  Status before(const std::string& operation) const;
  Status write_parts(const std::string& path, int64_t step, const std::vector<CheckpointPart>& parts) const;
  Status publish(const std::string& hidden, int64_t step) const;
  void remove_old(int64_t saved) const;

  std::string directory_;
  Options options_;
  Lock lock_;
};

}  // namespace lk
