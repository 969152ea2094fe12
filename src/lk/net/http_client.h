// SPDX-License-Identifier: Apache-2.0
// HttpClient: many concurrent HTTP/1.1 requests with streamed answers, for the load generator and, later, the router.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "lk/net/http_server.h"

namespace lk {

struct ClientRequest {
  std::string method = "POST";
  std::string url;  // http://, https:// or unix:/path/to.sock:/v1/models
  HttpHeaders headers;
  std::string body;
  std::chrono::milliseconds timeout{600'000};  // whole exchange
  // Sent at this time, by the io thread: no other thread has to wake for it. In the past (the default): at once. The
  // timeout starts then.
  std::chrono::steady_clock::time_point not_before{};
};

struct ClientCallbacks {           // all on the client's io thread
  std::function<void()> on_start;  // its time has come; not called for what was cancelled or found malformed before
  std::function<void(int status, const HttpHeaders& headers)> on_head;  // names in lower case
  std::function<void(std::string_view bytes)> on_data;                  // body bytes as they arrive, chunking removed
  // Once. OK when the answer is complete, whatever its status code. kUnavailable: no connection; kDataLoss: broken off
  // or malformed; kDeadlineExceeded; kCancelled; kInvalidArgument: url or headers.
  std::function<void(Status status)> on_done;
};

struct HttpClientOptions {
  int num_threads = 1;                  // io threads; a request and its callbacks stay on one of them
  bool verify_tls = true;               // https: check the certificate chain and the host name
  std::string tls_ca;                   // PEM file of trusted authorities instead of the system's
  int64_t max_header_bytes = 64 << 10;  // status line, headers and trailers of one answer
  std::chrono::milliseconds connect_timeout{30'000};
  std::chrono::milliseconds idle_timeout{
      30'000};                      // an unused connection is closed after this; keep below the server's own
  size_t max_idle_per_host = 4096;  // per io thread
};

class HttpClient {
 public:
  static Result<std::unique_ptr<HttpClient>> create(const HttpClientOptions& options = {});
  // Cancels what is in flight; every on_done was called when it returns. Not from a callback.
  virtual ~HttpClient() = default;
  // Thread safe. Connections are kept alive and reused per host. Returns a number for cancel(). A malformed url or
  // header is reported through on_done like every other failure. A request is sent again only if its kept-alive
  // connection broke before the first byte of an answer and the method is idempotent (GET, HEAD, PUT, DELETE, OPTIONS).
  virtual int64_t send(ClientRequest request, ClientCallbacks callbacks) = 0;
  virtual void cancel(int64_t id) = 0;  // closes the socket; on_done(kCancelled). Nothing happens if it was done
};

// Splits a stream of bytes into server-sent events; `on_event` gets the data of each.
class SseParser {
 public:
  explicit SseParser(std::function<void(std::string_view data)> on_event, size_t max_event_bytes = 4 << 20)
      : on_event_(std::move(on_event)), max_event_bytes_(max_event_bytes) {}
  // False, now and ever after, once a line or the data of an event exceeds max_event_bytes.
  bool push(std::string_view bytes);

 private:
  bool end_line();
  std::function<void(std::string_view)> on_event_;
  size_t max_event_bytes_;
  std::string line_, data_;
  bool has_data_ = false, skip_newline_ = false, first_line_ = true, overflowed_ = false;
};

}  // namespace lk
