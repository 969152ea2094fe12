// SPDX-License-Identifier: Apache-2.0
#include "lk/base/line_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

namespace lk {
namespace {

constexpr size_t kPiece = size_t{64} << 10;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

}  // namespace

Result<LineReader> LineReader::open(const std::string& path, size_t max_bytes) {
  LineReader reader;
  reader.path_ = path == "-" ? "standard input" : path;
  reader.max_bytes_ = max_bytes;
  reader.fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader.fd_ < 0)
    return Status(errno == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError,
                  fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  struct stat info {};
  if (::fstat(reader.fd_, &info) != 0) return io_error("cannot open {}: {}", path, std::strerror(errno));
  if (S_ISDIR(info.st_mode)) return invalid_argument("cannot open {}: it is a directory", path);
  if (S_ISREG(info.st_mode)) reader.file_bytes_ = info.st_size;
  return reader;
}

LineReader::LineReader(LineReader&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      max_bytes_(other.max_bytes_),
      file_bytes_(other.file_bytes_),
      buffer_(std::move(other.buffer_)),
      used_(other.used_),
      at_end_(other.at_end_),
      position_(other.position_),
      num_lines_(other.num_lines_) {}

LineReader::~LineReader() {
  if (fd_ > STDERR_FILENO) ::close(fd_);
}

bool LineReader::is_same_file(const std::string& path) const {
  struct stat own {
  }, other{};
  return ::fstat(fd_, &own) == 0 && ::stat(path.c_str(), &other) == 0 && own.st_dev == other.st_dev &&
         own.st_ino == other.st_ino && S_ISREG(own.st_mode);
}

Result<std::optional<LineReader::Line>> LineReader::next(const volatile int* stop) {
  Line line{.number = num_lines_ + 1};
  bool any = false;  // a byte of it
  for (;;) {
    const std::string_view rest = std::string_view(buffer_).substr(used_);
    const size_t end = std::min(rest.find('\n'), rest.size());
    any |= !rest.empty();
    position_ += static_cast<int64_t>(end);
    line.too_long |= line.text.size() + end > max_bytes_ + 1;  // its "\r" is none of it
    if (line.too_long)
      std::string().swap(line.text);
    else
      line.text += rest.substr(0, end);
    if (end < rest.size()) {
      used_ += end + 1;
      ++position_;
      break;
    }
    buffer_.clear();
    used_ = 0;
    if (!at_end_) {
      buffer_.resize(kPiece);
      const ssize_t got = ::read(fd_, buffer_.data(), buffer_.size());
      const int error = errno;
      buffer_.resize(got > 0 ? static_cast<size_t>(got) : 0);
      if (got < 0 && error == EINTR && (stop == nullptr || *stop == 0)) continue;
      if (got < 0 && error == EINTR) return Status(StatusCode::kCancelled, "interrupted");
      if (got < 0) return io_error("cannot read {}: {}", path_, std::strerror(error));
      at_end_ = got == 0;
      if (!at_end_) continue;
    }
    if (!any) return std::optional<Line>();
    line.whole = false;
    break;
  }
  if (++num_lines_ == 1 && line.text.starts_with(kByteOrderMark)) line.text.erase(0, kByteOrderMark.size());
  if (line.whole && line.text.ends_with('\r')) line.text.pop_back();
  if (line.text.size() > max_bytes_) {
    line.too_long = true;
    std::string().swap(line.text);
  }
  return std::optional<Line>(std::move(line));
}

}  // namespace lk
