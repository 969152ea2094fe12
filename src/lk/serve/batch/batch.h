// SPDX-License-Identifier: Apache-2.0
// Batch: `lorikeet batch`. The requests of a file, asked of a Server of this process, which answers them as it would
// over HTTP; their results in another file as they come. Of either file only what is under way is in memory, beside
// some forty bytes a line.
#pragma once

#include <csignal>
#include <functional>
#include <memory>
#include <string>

#include "lk/base/status.h"
#include "lk/serve/http/server.h"

namespace lk {

struct BatchProgress {
  int64_t answered = 0, failed = 0;  // in this run; failed: other than 200, or no request at all
  int64_t before = 0;                // were there already
  int64_t under_way = 0;
  int64_t bytes_read = 0, file_bytes = -1;  // of the input; -1: a pipe
};

struct BatchOptions {
  std::string input, output;  // "-": standard input and output
  std::string errors;         // where what failed goes instead; "": with the others
  size_t max_line = size_t{8} << 20;
  int64_t max_under_way = 512;                            // requests
  int64_t max_bytes_under_way = int64_t{32} << 20;        // of their bodies
  std::function<void(const BatchProgress&)> on_progress;  // some times a second, on a thread of its own
  std::function<void(int64_t line, const std::string& field)> on_ignored;  // once for each name; the caller's thread
  const volatile std::sig_atomic_t* stop = nullptr;  // set: no more is read, what is under way is given up
};

class Batch {
 public:
  // Opens the files and takes up what is there; reads no more of the input than its size.
  static Result<std::unique_ptr<Batch>> open(BatchOptions options);
  virtual ~Batch() = default;
  // Once. kCancelled when it was stopped: what was answered is kept, and the same call goes on behind it. `base`: the
  // digest of what answers, of which results of an interrupted run must be, too.
  virtual Result<BatchProgress> run(Server& server, const std::string& base) = 0;
};

}  // namespace lk
