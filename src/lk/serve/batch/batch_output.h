// SPDX-License-Identifier: Apache-2.0
// BatchOutput: results on their way into a file. Whole lines are appended to PATH.part, which becomes PATH, in one
// step, once the batch is complete: who sees PATH sees all of it. What a killed process left in PATH.part is taken up
// again.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

class BatchOutput {
 public:
  // `path` "-": standard output, where nothing is taken up. `on_found` is told of each result that is there.
  // kAlreadyExists when another process writes there; kFailedPrecondition when PATH.part is something else.
  static Result<BatchOutput> open(const std::string& path, const std::function<void(std::string_view line)>& on_found);
  BatchOutput(BatchOutput&& other) noexcept;
  BatchOutput& operator=(BatchOutput&&) = delete;
  ~BatchOutput();

  // `line` ends with its line break. After a failure (no room) the file still has whole lines only.
  Status append(std::string_view line);
  Status sync();    // what was appended outlasts a loss of power
  Status commit();  // syncs, and PATH.part becomes PATH
  const std::string& part_path() const { return part_; }

 private:
  BatchOutput() = default;
  Status recover(const std::function<void(std::string_view)>& on_found);
  std::string path_, part_;
  int fd_ = -1;
  int64_t bytes_ = 0;  // of whole lines
  bool synced_ = true;
};

}  // namespace lk
