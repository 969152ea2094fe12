// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/batch/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/line_reader.h"
#include "lk/serve/batch/batch_line.h"

namespace lk {
namespace {

Status failed(const char* verb, const std::string& path) {
  return io_error("cannot {} {}: {}", verb, path, std::strerror(errno));
}

}  // namespace

Result<BatchOutput> BatchOutput::open(const std::string& path,
                                      const std::function<void(std::string_view line)>& on_found) {
  BatchOutput output;
  output.path_ = path;
  if (path == "-") {
    output.fd_ = STDOUT_FILENO;
    return output;
  }
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error))
    return invalid_argument("{} is no regular file; - is standard output", path);
  output.part_ = path + ".part";
  output.fd_ = ::open(output.part_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (output.fd_ < 0) return failed("write", output.part_);
  if (::flock(output.fd_, LOCK_EX | LOCK_NB) != 0) return already_exists("another process is writing {}", output.part_);
  LK_RETURN_IF_ERROR(output.recover(on_found));
  return output;
}

BatchOutput::BatchOutput(BatchOutput&& other) noexcept
    : path_(std::move(other.path_)),
      part_(std::move(other.part_)),
      fd_(std::exchange(other.fd_, -1)),
      bytes_(other.bytes_),
      synced_(other.synced_) {}

BatchOutput::~BatchOutput() {
  if (fd_ > STDERR_FILENO) ::close(fd_);
}

// A line that was cut off is cut away; anything that is no result means that the file is not ours to touch.
Status BatchOutput::recover(const std::function<void(std::string_view)>& on_found) {
  LK_ASSIGN_OR_RETURN(LineReader reader, LineReader::open(part_, std::numeric_limits<int32_t>::max()));
  for (;;) {
    LK_ASSIGN_OR_RETURN(const std::optional<LineReader::Line> line, reader.next());
    if (!line || !line->whole) break;
    if (batch_id_of(line->text).empty())
      return failed_precondition("line {} of {} is no result of a batch; move it away to begin anew", line->number,
                                 part_);
    on_found(line->text);
    bytes_ = reader.bytes_read();
  }
  if (::ftruncate(fd_, bytes_) != 0) return failed("write", part_);
  if (::lseek(fd_, bytes_, SEEK_SET) != bytes_) return failed("write", part_);
  return Status();
}

Status BatchOutput::append(std::string_view line) {
  const size_t done = write_all(fd_, line);
  synced_ = false;
  if (done == line.size()) {
    bytes_ += static_cast<int64_t>(done);
    return Status();
  }
  Status status = failed("write", part_.empty() ? "standard output" : part_);
  if (!part_.empty() && done > 0) (void)!::ftruncate(fd_, bytes_);
  return status;
}

Status BatchOutput::sync() {
  if (part_.empty() || std::exchange(synced_, true)) return Status();
  return ::fdatasync(fd_) == 0 ? Status() : failed("write", part_);
}

Status BatchOutput::commit() {
  if (part_.empty()) return Status();
  if (::fsync(fd_) != 0) return failed("write", part_);
  if (::rename(part_.c_str(), path_.c_str()) != 0) return failed("write", path_);
  const std::filesystem::path parent = std::filesystem::absolute(path_).parent_path();
  const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return Status();  // not every file system lets it be synced
  ::fsync(directory);
  ::close(directory);
  return Status();
}

}  // namespace lk
