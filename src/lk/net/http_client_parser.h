// SPDX-License-Identifier: Apache-2.0
// HttpResponseParser: one HTTP/1.x answer after another out of a stream of bytes, in whatever pieces they arrive.
// Source: RFC 9112. Every buffer is bounded by max_header_bytes; the body is handed on as it comes and never stored.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "lk/net/http_server.h"

namespace lk {

class HttpResponseParser {
 public:
  struct Sink {
    std::function<void(int status, const HttpHeaders& headers)> on_head;  // names in lower case; not called for 1xx
    std::function<void(std::string_view bytes)> on_data;                  // never empty
  };
  explicit HttpResponseParser(int64_t max_header_bytes) : max_header_bytes_(max_header_bytes) {}

  // Makes ready for the next answer. `head`: the answer to a HEAD request, which has no body.
  void start(Sink sink, bool head);
  // Takes bytes up to the end of the answer and returns how many; the rest is not part of it. A failure is final.
  Result<size_t> push(std::string_view bytes);
  // The peer closed the connection. OK if that ends the answer properly.
  Status finish();

  void drop_sink() { sink_ = {}; }

  bool started() const { return started_; }  // a byte has arrived
  bool done() const { return state_ == State::kDone; }
  bool keep_alive() const { return keep_alive_; }  // valid once done

 private:
  enum class State { kStatusLine, kHeader, kBody, kUntilClose, kChunkSize, kChunkData, kChunkEnd, kTrailer, kDone };
  bool take_line(std::string_view& bytes, Status& status);
  Status on_line();
  Status parse_status_line();
  Status parse_header_line();
  Status parse_chunk_size();
  Status end_of_head();
  void take_body(std::string_view& bytes);

  int64_t max_header_bytes_;
  Sink sink_;
  bool head_ = false, started_ = false, keep_alive_ = true;
  State state_ = State::kDone;
  std::string line_;
  int64_t header_bytes_ = 0;
  int status_ = 0;
  HttpHeaders headers_;
  bool chunked_ = false, has_length_ = false, http_1_0_ = false;
  uint64_t remaining_ = 0;  // of the body or the chunk
};

}  // namespace lk
