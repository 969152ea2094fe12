// SPDX-License-Identifier: Apache-2.0
// What a server does as a member of a fleet: publications, and files for other replicas.
#include <fcntl.h>
#include <unistd.h>

#include <charconv>

#include "lk/serve/http/server_impl.h"

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

Result<std::string> read_part(const AdapterCache::Blob& blob, int64_t first, int64_t length) {
  const int fd = ::open(blob.path.c_str(), O_RDONLY | O_CLOEXEC);
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

void ServerImpl::load_adapter(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  if (fleet_)
    fleet_->changes().publish(std::move(request), std::move(done));
  else
    registry_->load(std::move(request), std::move(done));
}

void ServerImpl::take_out_of_fleet(const std::shared_ptr<Exchange>& exchange, const std::string& target,
                                   std::function<void(const Status& fleet, bool was_fleets)> then) {
  if (!fleet_ || !(registry_->is_fleet(target) || fleet_->catalog().has_alias(target))) return then(Status(), false);
  fleet_->changes().remove(target, [exchange, then = std::move(then)](const Status& status) {
    exchange->post([then, status] { then(status, true); });
  });
}

// At most kBlobPiece at a time: who wants more asks again, here or elsewhere.
void ServerImpl::fleet_blob(const std::shared_ptr<Exchange>& exchange) {
  if (!fleet_ || !is_sha256(exchange->parameter)) return exchange->fail(not_found("no such file here"));
  format(exchange, [fleet = fleet_.get(), exchange, range = parse_range(exchange->request.header("range"))] {
    const std::optional<AdapterCache::Blob> blob = fleet->find_blob(exchange->parameter);
    if (!blob) return exchange->post([exchange] { exchange->fail(not_found("no such file here")); });
    if (!range || range->first >= blob->bytes)
      return exchange->post([exchange, bytes = blob->bytes] {
        exchange->fail(ApiError{
            .status = 416, .message = fmt::format("the file has {} bytes", bytes), .code = "range_not_satisfiable"});
      });
    const int64_t last = range->last < 0 ? blob->bytes - 1 : std::min(range->last, blob->bytes - 1);
    const int64_t first = range->first, length = std::min(last - first + 1, kBlobPiece);
    Result<std::string> bytes = read_part(*blob, first, length);
    if (!bytes.ok()) return exchange->post([exchange, status = bytes.status()] { exchange->fail(status); });
    auto response = std::make_shared<HttpResponse>();
    response->status = 206;
    response->content_type = "application/octet-stream";
    response->headers = {{"content-range", fmt::format("bytes {}-{}/{}", first, first + length - 1, blob->bytes)}};
    response->parts = split_into_parts(*bytes);
    exchange->post([exchange, response] { exchange->respond(std::move(*response)); });
  });
}

}  // namespace lk
