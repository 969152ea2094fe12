// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_client_connection.h"

#include <sys/socket.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/write.hpp>

namespace lk::net_detail {
namespace {

Status unavailable_error(const std::string& what, const error_code& error) {
  return unavailable("{}: {}", what, error.message());
}

}  // namespace

void NameCache::resolve(const std::string& host, const std::string& port, Callback callback) {
  error_code not_numeric;
  if (const auto address = asio::ip::make_address(host, not_numeric); !not_numeric)
    return callback({}, {{address, static_cast<uint16_t>(std::stoi(port))}});
  // RFC 6761 §6.3: this name is the loopback address, whatever (or no) hosts file says.
  if (host == "localhost")
    return callback({}, {{asio::ip::address_v4::loopback(), static_cast<uint16_t>(std::stoi(port))},
                         {asio::ip::address_v6::loopback(), static_cast<uint16_t>(std::stoi(port))}});
  const std::string key = host + ":" + port;
  Entry& entry = entries_[key];
  if (!entry.endpoints.empty() && Clock::now() < entry.expires) return callback({}, entry.endpoints);
  entry.waiting.push_back(std::move(callback));
  if (entry.in_progress) return;
  entry.in_progress = true;
  resolver_.async_resolve(host, port, asio::ip::resolver_base::numeric_service,
                          [this, key](const error_code& error, const asio::ip::tcp::resolver::results_type& results) {
                            Entry& found = entries_[key];
                            found.in_progress = false;
                            found.endpoints.clear();
                            for (const auto& result : results) found.endpoints.push_back(result.endpoint());
                            found.expires = Clock::now() + std::chrono::minutes(1);
                            const std::vector<Callback> waiting = std::move(found.waiting);
                            found.waiting.clear();
                            const Endpoints endpoints = found.endpoints;
                            for (const Callback& waiter : waiting) waiter(error, endpoints);
                          });
}

ClientConnection::ClientConnection(asio::io_context& context, asio::ssl::context* tls, bool verify_tls,
                                   int64_t max_header_bytes)
    : socket_(context), tls_context_(tls), verify_tls_(verify_tls), parser_(max_header_bytes) {}

void ClientConnection::connect(const ClientUrl& url, NameCache& names, Connected callback) {
  url_ = url;
  on_connected_ = std::move(callback);
  if (!url.unix_path.empty()) {
    endpoints_ = {asio::local::stream_protocol::endpoint(url.unix_path)};
    return connect_next({});
  }
  names.resolve(
      url.host, url.port, [self = shared_from_this()](const error_code& error, const NameCache::Endpoints& endpoints) {
        if (!self->on_connected_) return;  // closed meanwhile
        if (error || endpoints.empty())
          return self->connected(unavailable_error(fmt::format("the name {} is not known", self->url_.host), error));
        self->endpoints_.assign(endpoints.begin(), endpoints.end());
        self->connect_next({});
      });
}

void ClientConnection::connect_next(error_code last) {
  error_code ignored;
  if (next_endpoint_ > 0) socket_.close(ignored);
  if (next_endpoint_ >= endpoints_.size()) {
    const std::string where = url_.unix_path.empty() ? fmt::format("{}:{}", url_.host, url_.port) : url_.unix_path;
    return connected(unavailable_error("cannot connect to " + where, last));
  }
  const stream_protocol::endpoint endpoint = endpoints_[next_endpoint_++];
  socket_.async_connect(endpoint, [self = shared_from_this()](const error_code& error) {
    if (!self->on_connected_) return;
    if (error) return self->connect_next(error);
    error_code not_tcp;  // a unix socket has no such option
    self->socket_.set_option(asio::ip::tcp::no_delay(true), not_tcp);
    if (self->url_.tls)
      self->handshake();
    else
      self->connected(Status());
  });
}

void ClientConnection::handshake() {
  tls_.emplace(socket_, *tls_context_);
  error_code not_numeric;
  asio::ip::make_address(url_.host, not_numeric);
  if (not_numeric) SSL_set_tlsext_host_name(tls_->native_handle(), url_.host.c_str());
  if (verify_tls_) {
    tls_->set_verify_mode(asio::ssl::verify_peer);
    tls_->set_verify_callback(asio::ssl::host_name_verification(url_.host));
  }
  tls_->async_handshake(asio::ssl::stream_base::client, [self = shared_from_this()](const error_code& error) {
    if (!self->on_connected_) return;
    self->connected(
        error ? unavailable_error(fmt::format("no TLS connection to {}:{}", self->url_.host, self->url_.port), error)
              : Status());
  });
}

void ClientConnection::connected(Status status) {
  const Connected callback = std::move(on_connected_);
  on_connected_ = nullptr;
  callback(std::move(status));
}

void ClientConnection::exchange(std::shared_ptr<const std::string> bytes, HttpResponseParser::Sink sink, bool head,
                                std::function<void(Status)> done) {
  parser_.start(std::move(sink), head);
  on_done_ = std::move(done);
  writing_ = true;
  // A failed write is not the end: the peer may have answered (413, say) without reading everything. The read tells.
  const auto written = [self = shared_from_this(), bytes](const error_code&, size_t) { self->writing_ = false; };
  if (tls_)
    asio::async_write(*tls_, asio::buffer(*bytes), written);
  else
    asio::async_write(socket_, asio::buffer(*bytes), written);
  read_more();
}

void ClientConnection::read_more() {
  auto handler = [self = shared_from_this()](const error_code& error, size_t bytes) { self->on_read(error, bytes); };
  if (tls_)
    tls_->async_read_some(asio::buffer(buffer_), std::move(handler));
  else
    socket_.async_read_some(asio::buffer(buffer_), std::move(handler));
}

void ClientConnection::on_read(error_code error, size_t bytes) {
  if (!on_done_) return;  // closed meanwhile
  if (error == asio::error::eof) return finish(parser_.finish());
  if (error) return finish(data_loss("the connection broke: {}", error.message()));
  const Result<size_t> consumed = parser_.push({buffer_.data(), bytes});
  if (!on_done_) return;  // closed by a callback
  if (!consumed.ok()) return finish(consumed.status());
  if (!parser_.done()) return read_more();
  keep_alive_ = parser_.keep_alive() && !writing_ && *consumed == bytes;
  finish(Status());
}

void ClientConnection::finish(Status status) {
  const auto callback = std::move(on_done_);
  on_done_ = nullptr;
  parser_.drop_sink();
  callback(std::move(status));
}

void ClientConnection::close() {
  on_connected_ = nullptr;
  on_done_ = nullptr;
  keep_alive_ = false;
  parser_.drop_sink();
  error_code ignored;
  socket_.close(ignored);
}

bool ClientConnection::is_reusable() {
  if (!keep_alive_ || !socket_.is_open()) return false;
  char byte = 0;
  const ssize_t count = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

}  // namespace lk::net_detail
