// SPDX-License-Identifier: Apache-2.0
// One socket of HttpClient, TCP or unix, plain or TLS, and the names it connects to. Used on one io thread only.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>

#include "lk/net/http_client_parser.h"
#include "lk/net/http_client_url.h"

namespace lk::net_detail {

namespace asio = boost::asio;
using asio::generic::stream_protocol;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

// Looks names up off the io thread. Answers are kept for a minute, and requests for a name that is being looked up wait
// for that one.
class NameCache {
 public:
  using Endpoints = std::vector<asio::ip::tcp::endpoint>;
  using Callback = std::function<void(const error_code& error, const Endpoints& endpoints)>;
  explicit NameCache(asio::io_context& context) : resolver_(context) {}
  void resolve(const std::string& host, const std::string& port, Callback callback);

 private:
  struct Entry {
    Endpoints endpoints;
    Clock::time_point expires;
    std::vector<Callback> waiting;
    bool in_progress = false;
  };
  asio::ip::tcp::resolver resolver_;
  std::map<std::string, Entry> entries_;
};

class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  using Connected = std::function<void(Status status)>;

  ClientConnection(asio::io_context& context, asio::ssl::context* tls, bool verify_tls, int64_t max_header_bytes);

  // Tries the addresses of the name in turn, then the TLS handshake. Both callbacks below are dropped by close().
  void connect(const ClientUrl& url, NameCache& names, Connected callback);
  // Sends `bytes` and reads one answer into `sink`.
  void exchange(std::shared_ptr<const std::string> bytes, HttpResponseParser::Sink sink, bool head,
                std::function<void(Status status)> done);
  void close();

  // Fit for another exchange: the peer has neither closed nor sent anything unasked.
  bool is_reusable();
  bool answer_started() const { return parser_.started(); }
  bool keep_alive() const { return keep_alive_; }

  std::string pool_key;
  Clock::time_point idle_since;

 private:
  void connect_next(error_code last);
  void handshake();
  void connected(Status status);
  void read_more();
  void on_read(error_code error, size_t bytes);
  void finish(Status status);

  stream_protocol::socket socket_;
  asio::ssl::context* tls_context_;
  bool verify_tls_;
  std::optional<asio::ssl::stream<stream_protocol::socket&>> tls_;
  ClientUrl url_;
  std::vector<stream_protocol::endpoint> endpoints_;
  size_t next_endpoint_ = 0;
  Connected on_connected_;
  std::function<void(Status)> on_done_;
  HttpResponseParser parser_;
  std::array<char, 8192> buffer_;
  bool writing_ = false, keep_alive_ = false;
};

}  // namespace lk::net_detail
