// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/file_part.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>

namespace lk {
namespace {

// "bytes=FIRST-[LAST]"; of several ranges, or another unit, nothing.
struct Range {
  int64_t first = 0, last = -1;  // -1: to the end
};

std::optional<Range> parse_range(std::string_view text) {
  Range range;
  if (text.empty()) return range;
  if (!text.starts_with("bytes=")) return std::nullopt;
  text.remove_prefix(6);
  const char* const end = text.data() + text.size();
  const auto [dash, error] = std::from_chars(text.data(), end, range.first);
  if (error != std::errc() || dash == end || *dash != '-' || range.first < 0) return std::nullopt;
  if (dash + 1 == end) return range;
  const auto [rest, bad] = std::from_chars(dash + 1, end, range.last);
  if (bad != std::errc() || rest != end || range.last < range.first) return std::nullopt;
  return range;
}

Result<std::string> read_part(const std::string& path, int64_t first, int64_t length) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error("the file is not here any more");
  std::string bytes(static_cast<size_t>(length), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::pread(fd, bytes.data() + done, bytes.size() - done, first + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  ::close(fd);
  if (done < bytes.size()) return io_error("the file is not what it was");
  return bytes;
}

}  // namespace

ApiResult<HttpResponse> file_part(const std::string& path, int64_t bytes, std::string_view wanted) {
  const std::optional<Range> range = parse_range(wanted);
  if (!range || range->first >= bytes)
    return ApiError{
        .status = 416, .message = fmt::format("the file has {} bytes", bytes), .code = "range_not_satisfiable"};
  const int64_t last = range->last < 0 ? bytes - 1 : std::min(range->last, bytes - 1);
  const int64_t length = std::min(last - range->first + 1, kFilePartBytes);
  const Result<std::string> part = read_part(path, range->first, length);
  if (!part.ok()) return api_error(part.status());
  HttpResponse response{.status = 206, .content_type = "application/octet-stream"};
  response.headers = {{"content-range", fmt::format("bytes {}-{}/{}", range->first, range->first + length - 1, bytes)}};
  response.parts = split_into_parts(*part);
  return response;
}

}  // namespace lk
