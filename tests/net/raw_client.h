// SPDX-License-Identifier: Apache-2.0
// A blocking socket that says exactly what a test wants, and helpers around HttpServer.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "lk/net/http_server.h"

namespace lk::testing {

constexpr int kPatienceSeconds = 60;

// Waits for a condition; false after a very long time.
template <class Condition>
bool eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kPatienceSeconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

struct RawResponse {
  int status = 0;  // 0: the connection ended before a head
  std::string head, body;
  bool complete = false;
  bool has(std::string_view text) const { return head.find(text) != std::string::npos; }
};

class RawClient {
 public:
  explicit RawClient(const std::string& address, int receive_buffer = 0) {
    if (address.starts_with("unix:")) {
      fd_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
      sockaddr_un a{};
      a.sun_family = AF_UNIX;
      std::strncpy(a.sun_path, address.c_str() + 5, sizeof a.sun_path - 1);
      connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof a) == 0;
    } else if (address.starts_with('[')) {
      fd_ = ::socket(AF_INET6, SOCK_STREAM, 0);
      sockaddr_in6 a{};
      a.sin6_family = AF_INET6;
      a.sin6_addr = in6addr_loopback;
      a.sin6_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
      connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof a) == 0;
    } else {
      fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
      if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
      sockaddr_in a{};
      a.sin_family = AF_INET;
      a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      a.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
      connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&a), sizeof a) == 0;
    }
    const timeval patience{kPatienceSeconds, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  int fd() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // More bytes into buffer_; false at the end of the stream, a reset, or when patience is over (then timed_out()).
  bool fill() {
    char data[16384];
    const ssize_t n = ::recv(fd_, data, sizeof data, 0);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) timed_out_ = true;
    if (n <= 0) return false;
    buffer_.append(data, static_cast<size_t>(n));
    return true;
  }
  bool timed_out() const { return timed_out_; }
  // The next response; `head_only` for answers to HEAD.
  RawResponse read(bool head_only = false) {
    RawResponse r;
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill()) return r;
    }
    r.head = buffer_.substr(0, end + 4);
    buffer_.erase(0, end + 4);
    r.status = std::stoi(r.head.substr(9, 3));
    if (head_only || r.status < 200 || r.status == 204) {
      r.complete = true;
    } else if (r.has("Transfer-Encoding: chunked")) {
      std::string chunk;
      while (read_chunk(&chunk)) {
        if (chunk.empty()) {
          r.complete = true;
          break;
        }
        r.body += chunk;
      }
    } else if (const size_t at = r.head.find("Content-Length: "); at != std::string::npos) {
      const size_t length = std::stoul(r.head.substr(at + 16));
      while (buffer_.size() < length && fill()) {
      }
      r.complete = buffer_.size() >= length;
      r.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    } else {
      while (fill()) {
      }
      r.body = std::exchange(buffer_, {});
      r.complete = true;
    }
    return r;
  }
  // "" = the last chunk. False when the stream ends before.
  bool read_chunk(std::string* chunk) {
    size_t line;
    while ((line = buffer_.find("\r\n")) == std::string::npos) {
      if (!fill()) return false;
    }
    const size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
    while (buffer_.size() < line + 2 + size + 2) {
      if (!fill()) return false;
    }
    *chunk = buffer_.substr(line + 2, size);
    buffer_.erase(0, line + 2 + size + 2);
    return true;
  }
  bool read_head(std::string* head) {
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!fill()) return false;
    }
    *head = buffer_.substr(0, end + 4);
    buffer_.erase(0, end + 4);
    return true;
  }
  // True when the server closed (cleanly or not) and nothing more came before.
  bool closed() { return buffer_.empty() && !fill() && !timed_out_; }

 private:
  int fd_ = -1;
  bool connected_ = false, timed_out_ = false;
  std::string buffer_;
};

inline HttpServerOptions local_options(int shards = 1) {
  HttpServerOptions options;
  options.listen = {{"127.0.0.1:0", false}};
  options.num_shards = shards;
  return options;
}

inline std::unique_ptr<HttpServer> start_server(const HttpServerOptions& options, HttpServer::Handler handler,
                                                HttpServer::HeadFilter filter = nullptr) {
  auto server = HttpServer::start(options, std::move(filter), std::move(handler));
  EXPECT_TRUE(server.ok()) << server.status().message();
  return server.ok() ? std::move(server).value() : nullptr;
}

// Answers "METHOD path body".
inline void echo(HttpRequest request, const std::shared_ptr<HttpReply>& reply) {
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = request.method + " " + request.path + " " + request.body;
  reply->respond(std::move(response));
}

inline std::string get(const std::string& path, const std::string& fields = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: test\r\n" + fields + "\r\n";
}
inline std::string post(const std::string& path, const std::string& body, const std::string& fields = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         fields + "\r\n" + body;
}

}  // namespace lk::testing
