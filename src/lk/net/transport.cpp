// SPDX-License-Identifier: Apache-2.0
#include "lk/net/transport.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace lk {
namespace {

using Kind = IoResult::Kind;

std::string openssl_error() {
  char text[256] = "unknown error";
  if (const unsigned long code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof text);
  ERR_clear_error();
  return text;
}

// A client that offers protocols gets http/1.1 or nothing.
int select_protocol(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in, unsigned in_size,
                    void*) {
  static const unsigned char kOurs[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_size, kOurs, sizeof kOurs - 1, in, in_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_NOACK;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::server(const std::string& cert_path, const std::string& key_path) {
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  if (context == nullptr) return internal_error("TLS: {}", openssl_error());
  std::shared_ptr<TlsContext> result(new TlsContext(context));
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_COMPRESSION);
  // Buffers are given back between records: an idle connection keeps none.
  SSL_CTX_set_mode(context,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);  // resumption by tickets only
  SSL_CTX_set_alpn_select_cb(context, select_protocol, nullptr);
  if (SSL_CTX_use_certificate_chain_file(context, cert_path.c_str()) != 1) {
    return invalid_argument("TLS certificate {}: {}", cert_path, openssl_error());
  }
  if (SSL_CTX_use_PrivateKey_file(context, key_path.c_str(), SSL_FILETYPE_PEM) != 1) {
    return invalid_argument("TLS key {}: {}", key_path, openssl_error());
  }
  if (SSL_CTX_check_private_key(context) != 1) {
    return invalid_argument("TLS key {} does not belong to certificate {}", key_path, cert_path);
  }
  return result;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

Transport::Transport(int fd, const TlsContext* tls) : fd_(fd) {
  if (tls == nullptr) return;
  ssl_ = SSL_new(tls->get());
  if (ssl_ == nullptr || SSL_set_fd(ssl_, fd) != 1) {
    failed_ = true;
    ERR_clear_error();
    return;
  }
  SSL_set_accept_state(ssl_);
}

Transport::~Transport() {
  if (ssl_ != nullptr) SSL_free(ssl_);
}

IoResult Transport::tls_result(int n) {
  if (n > 0) return {Kind::kData, static_cast<size_t>(n)};
  const int error = SSL_get_error(ssl_, n);
  ERR_clear_error();  // the queue belongs to the thread: what stays would be taken for the next connection's
  switch (error) {
    case SSL_ERROR_WANT_READ:
      return {Kind::kWantRead};
    case SSL_ERROR_WANT_WRITE:
      return {Kind::kWantWrite};
    case SSL_ERROR_ZERO_RETURN:
      return {Kind::kEof};
    default:
      failed_ = true;
      return {Kind::kError};
  }
}

IoResult Transport::read(char* data, size_t size) {
  if (failed_ || fd_ < 0) return {Kind::kError};
  if (ssl_ != nullptr) return tls_result(SSL_read(ssl_, data, static_cast<int>(size)));
  for (;;) {
    const ssize_t n = ::recv(fd_, data, size, 0);
    if (n > 0) return {Kind::kData, static_cast<size_t>(n)};
    if (n == 0) return {Kind::kEof};
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {Kind::kWantRead};
    if (errno != EINTR) return {Kind::kError};
  }
}

IoResult Transport::write(std::string_view data) {
  if (failed_ || fd_ < 0) return {Kind::kError};
  if (ssl_ != nullptr)
    return tls_result(SSL_write(ssl_, data.data(), static_cast<int>(std::min<size_t>(data.size(), 16 << 10))));
  for (;;) {
    const ssize_t n = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (n > 0) return {Kind::kData, static_cast<size_t>(n)};
    if (n == 0 || errno == EAGAIN || errno == EWOULDBLOCK) return {Kind::kWantWrite};
    if (errno != EINTR) return {Kind::kError};
  }
}

bool Transport::has_pending_input() const { return ssl_ != nullptr && !failed_ && SSL_pending(ssl_) > 0; }

void Transport::shutdown_write() {
  if (fd_ < 0) return;
  if (ssl_ != nullptr && !failed_ && SSL_is_init_finished(ssl_)) {
    SSL_shutdown(ssl_);
    ERR_clear_error();
  }
  ::shutdown(fd_, SHUT_WR);
}

}  // namespace lk
