// SPDX-License-Identifier: Apache-2.0
// LineReader: the lines of a file or a pipe, one at a time. Only the line at hand is in memory, and no more of it than
// was asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "lk/base/status.h"

namespace lk {

class LineReader {
 public:
  struct Line {
    int64_t number = 0;     // from 1
    std::string text;       // without its line break ("\n" or "\r\n"); empty when it is too long
    bool too_long = false;  // has more than max_bytes, which were passed over
    bool whole = true;      // a line break followed
  };

  // "-" is standard input. kNotFound, kIoError with the path.
  static Result<LineReader> open(const std::string& path, size_t max_bytes);
  LineReader(LineReader&& other) noexcept;
  LineReader& operator=(LineReader&&) = delete;
  ~LineReader();

  // Nothing at the end. A mark of UTF-8 at the start of the file is no part of its first line. kIoError; a signal that
  // interrupts the wait for a pipe gives a line as soon as there is one, unless `stop` (may be null) is set by then:
  // kCancelled.
  Result<std::optional<Line>> next(const volatile int* stop = nullptr);
  int64_t bytes_read() const { return position_; }    // of the lines so far
  int64_t file_bytes() const { return file_bytes_; }  // of a regular file; -1: not known
  bool is_same_file(const std::string& path) const;   // by any name

 private:
  LineReader() = default;
  std::string path_;
  int fd_ = -1;
  size_t max_bytes_ = 0;
  int64_t file_bytes_ = -1;
  std::string buffer_;
  size_t used_ = 0;  // of buffer_
  bool at_end_ = false;
  int64_t position_ = 0, num_lines_ = 0;
};

}  // namespace lk
