// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/line_stream.h"

#include <memory>
#include <string>

namespace lk {
namespace {

constexpr size_t kMostLineBytes = size_t{64} << 20;

}  // namespace

int64_t open_lines(HttpClient& client, ClientRequest request, LineCallbacks lines) {
  struct Stream {
    LineCallbacks lines;
    int status = 0;
    std::string line;
    bool overflowed = false;
  };
  const auto stream = std::make_shared<Stream>();
  stream->lines = std::move(lines);
  ClientCallbacks callbacks;
  callbacks.on_head = [stream](int status, const HttpHeaders&) { stream->status = status; };
  callbacks.on_data = [stream](std::string_view bytes) {
    while (!bytes.empty() && !stream->overflowed) {
      const size_t end = bytes.find('\n');
      stream->line += bytes.substr(0, end);
      stream->overflowed = stream->line.size() > kMostLineBytes;
      if (end == std::string_view::npos || stream->overflowed) return;
      bytes.remove_prefix(end + 1);
      if (stream->status != 200) continue;
      if (!stream->line.empty()) stream->lines.on_line(stream->line);
      stream->line.clear();
    }
  };
  callbacks.on_done = [stream](const Status& ended) {
    if (stream->overflowed)
      return stream->lines.on_end(data_loss("a line of more than {} bytes", kMostLineBytes), 0, "");
    stream->lines.on_end(ended, stream->status, stream->line);
  };
  return client.send(std::move(request), std::move(callbacks));
}

}  // namespace lk
