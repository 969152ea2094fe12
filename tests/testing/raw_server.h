// SPDX-License-Identifier: Apache-2.0
// A socket server whose every byte the test writes: one thread per connection runs the test's script.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "lk/base/check.h"

namespace lk::testing {

struct RawRequest {
  std::string head;  // with its blank line
  std::string body;
  bool starts_with(std::string_view text) const { return head.starts_with(text); }
};

class RawPeer {
 public:
  RawPeer(int fd, SSL* tls, int index) : fd_(fd), tls_(tls), index_(index) {}
  int index() const { return index_; }  // connections are numbered as they come
  // Nothing when the client closed.
  std::optional<RawRequest> read_request() {
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos)
      if (!read_some()) return std::nullopt;
    RawRequest request{.head = buffer_.substr(0, end + 4)};
    size_t length = 0;
    if (const size_t at = request.head.find("Content-Length: "); at != std::string::npos)
      length = std::strtoul(request.head.c_str() + at + 16, nullptr, 10);
    while (buffer_.size() < end + 4 + length)
      if (!read_some()) return std::nullopt;
    request.body = buffer_.substr(end + 4, length);
    buffer_.erase(0, end + 4 + length);
    return request;
  }
  // False when the client closed.
  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = tls_ ? SSL_write(tls_, bytes.data(), static_cast<int>(bytes.size()))
                                 : ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  bool respond(std::string_view body, std::string_view status = "200 OK", std::string_view headers = "") {
    return write(fmt::format("HTTP/1.1 {}\r\n{}Content-Length: {}\r\n\r\n{}", status, headers, body.size(), body));
  }
  void wait_for_close() {
    while (read_some()) buffer_.clear();
  }

 private:
  bool read_some() {
    char bytes[4096];
    const ssize_t count = tls_ ? SSL_read(tls_, bytes, sizeof bytes) : ::recv(fd_, bytes, sizeof bytes, 0);
    if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
    return count > 0;
  }
  int fd_;
  SSL* tls_;
  int index_;
  std::string buffer_;
};

class RawServer {
 public:
  using Script = std::function<void(RawPeer& peer)>;
  // On 127.0.0.1, or on a unix socket at `unix_path`; with TLS if a context is given (it must outlive this).
  explicit RawServer(Script script, const std::string& unix_path = "", SSL_CTX* tls = nullptr)
      : script_(std::move(script)), tls_(tls) {
    ::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
    if (unix_path.empty()) {
      listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      socklen_t size = sizeof address;
      LK_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0, "bind");
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
      port_ = ntohs(address.sin_port);
      url_ = fmt::format("{}://127.0.0.1:{}", tls ? "https" : "http", port_);
    } else {
      listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      unix_path.copy(address.sun_path, sizeof address.sun_path - 1);
      LK_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      url_ = "unix:" + unix_path + ":";
    }
    LK_CHECK(::listen(listener_, 4096) == 0, "listen");
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~RawServer() {
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    ::close(listener_);
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
  }
  const std::string& url() const { return url_; }  // without a path
  int port() const { return port_; }
  int num_connections() const { return num_connections_; }

 private:
  void accept_all() {
    // OpenSSL writes without MSG_NOSIGNAL, and a client may be gone by then. Only in these threads (they inherit it):
    // the client under test must do without.
    sigset_t pipe;
    ::sigemptyset(&pipe);
    ::sigaddset(&pipe, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
    for (int fd; (fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) {
      {
        const std::lock_guard lock(mutex_);
        open_.push_back(fd);
      }
      threads_.emplace_back([this, fd, index = num_connections_++] { serve(fd, index); });
    }
  }
  void serve(int fd, int index) {
    SSL* tls = nullptr;
    bool ready = true;
    if (tls_) {
      tls = SSL_new(tls_);
      SSL_set_fd(tls, fd);
      ready = SSL_accept(tls) == 1;
    }
    if (ready) {
      RawPeer peer(fd, tls, index);
      script_(peer);
    }
    if (tls) {
      if (ready) SSL_shutdown(tls);
      SSL_free(tls);
    }
    const std::lock_guard lock(mutex_);
    open_.remove(fd);
    ::close(fd);
  }

  Script script_;
  SSL_CTX* tls_;
  int listener_ = -1, port_ = 0;
  std::string url_;
  std::atomic<int> num_connections_{0};
  std::mutex mutex_;
  std::list<int> open_;
  std::thread acceptor_;
  std::list<std::thread> threads_;
};

}  // namespace lk::testing
