// SPDX-License-Identifier: Apache-2.0
// HttpParser: one HTTP/1.x request from a stream of bytes, without I/O. The grammar of the head is Boost.Beast's; on
// top of it everything on which two parsers could disagree (request smuggling) is refused: folded header lines, control
// bytes, repeated or mixed Content-Length and Transfer-Encoding, codings other than chunked, more than one Host. Sizes
// are judged before bytes are kept.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "lk/net/chunk_decoder.h"
#include "lk/net/http_server.h"

namespace lk {

class HttpParser {
 public:
  enum class Event {
    kNeedMore,  // present the rest again, with more behind it
    kHead,      // once: the head is complete, nothing of the body was looked at
    kDone,      // the request is complete; the bytes behind it belong to the next one
    kError,     // error() says why; the stream cannot be used any more
  };
  explicit HttpParser(const HttpLimits& limits);

  // Parses the front of `data`, which starts at the first byte not consumed so far.
  Event parse(std::string_view data, size_t* consumed);
  const HttpError& error() const { return error_; }

  // After kHead.
  HttpRequest& request() { return request_; }
  bool keep_alive() const { return keep_alive_; }
  bool http_1_0() const { return http_1_0_; }
  bool expects_continue() const { return expects_continue_; }
  bool has_body() const { return content_length_ != 0; }
  int64_t content_length() const { return content_length_; }  // -1: chunked, not known
  int64_t body_bytes() const { return body_bytes_; }          // received so far
  void discard_body() { discard_body_ = true; }               // count and check, but do not keep
  // A shorter limit than HttpLimits' for this body. False: it says that it is longer.
  bool limit_body(int64_t max_bytes);

  static constexpr int64_t kMaxHeaders = 128;
  static constexpr int kMaxBlankLines = 2;

 private:
  class HeadParser;  // Beast's

  Event parse_head(std::string_view data, size_t* consumed);
  Event parse_body(std::string_view data, size_t* consumed);
  bool scan_head(std::string_view data, size_t* end);
  void check_expectation();
  void check_framing();
  void add_body(std::string_view bytes);
  void parse_target();
  Event fail(int status, std::string message);

  const HttpLimits& limits_;
  std::unique_ptr<ChunkDecoder> chunks_;  // of a chunked body
  HttpRequest request_;
  HttpError error_;
  int blank_lines_ = 0;
  size_t scanned_ = 0;  // bytes of the head that were looked at
  bool head_done_ = false, http_1_0_ = false, keep_alive_ = false, expects_continue_ = false, discard_body_ = false;
  int64_t content_length_ = 0, body_bytes_ = 0;
};

// Percent-decodes; false when an escape is malformed or stands for NUL.
bool percent_decode(std::string_view in, std::string* out);

}  // namespace lk
