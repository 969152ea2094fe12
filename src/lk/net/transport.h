// SPDX-License-Identifier: Apache-2.0
// Transport: non-blocking reads and writes on a connected socket, plain or TLS (OpenSSL). TlsContext: the certificate
// of a server.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "lk/base/status.h"

struct ssl_ctx_st;
struct ssl_st;

namespace lk {

class TlsContext {
 public:
  // PEM files; the certificate file may hold the chain. TLS 1.2 and later, no renegotiation.
  static Result<std::shared_ptr<TlsContext>> server(const std::string& cert_path, const std::string& key_path);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  ssl_ctx_st* get() const { return context_; }

 private:
  explicit TlsContext(ssl_ctx_st* context) : context_(context) {}
  ssl_ctx_st* context_;
};

struct IoResult {
  enum class Kind { kData, kWantRead, kWantWrite, kEof, kError } kind;
  size_t bytes = 0;  // kData: > 0
};

class Transport {
 public:
  // Does not own `fd`. `tls` is needed for the call only. The TLS handshake happens within the first reads.
  Transport(int fd, const TlsContext* tls);
  ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  IoResult read(char* data, size_t size);
  IoResult write(
      std::string_view data);      // after kWant*, the next call must start with the same bytes and not be shorter
  bool has_pending_input() const;  // bytes that were received but would not make the socket readable
  bool tls() const { return ssl_ != nullptr; }
  void shutdown_write();  // tells the peer that nothing follows
  void forget_fd() { fd_ = -1; }

 private:
  IoResult tls_result(int n);
  int fd_;
  ssl_st* ssl_ = nullptr;
  bool failed_ = false;  // SSL_shutdown must not follow a fatal error
};

}  // namespace lk
