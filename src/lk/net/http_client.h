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
  std::string url;              // http://, https:// or unix:/path/to.sock:/v1/models
  HttpHeaders headers;
  std::string body;
  std::chrono::milliseconds timeout{600'000};  // whole exchange
};

struct ClientCallbacks {  // all on the client's io thread
  std::function<void(int status, const HttpHeaders& headers)> on_head;
  std::function<void(std::string_view bytes)> on_data;  // body bytes as they arrive, chunking removed
  std::function<void(Status status)> on_done;           // once
};

class HttpClient {
 public:
  static std::unique_ptr<HttpClient> create(int num_threads = 1);
  virtual ~HttpClient() = default;  // cancels what is in flight
  // Thread safe. Connections are kept alive and reused per host. Returns a number for cancel().
  virtual int64_t send(ClientRequest request, ClientCallbacks callbacks) = 0;
  virtual void cancel(int64_t id) = 0;  // closes the socket; on_done(kCancelled)
};

// Splits a stream of bytes into server-sent events; `on_event` gets the data of each.
class SseParser {
 public:
  explicit SseParser(std::function<void(std::string_view data)> on_event) : on_event_(std::move(on_event)) {}
  void push(std::string_view bytes);

 private:
  std::function<void(std::string_view)> on_event_;
  std::string line_, data_;
};

}  // namespace lk
