// SPDX-License-Identifier: Apache-2.0
// HttpShard: one io thread of a server and the connections that live on it; HttpServerState: what the shards share.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lk/net/http_server.h"
#include "lk/net/io_loop.h"
#include "lk/net/listener.h"
#include "lk/net/transport.h"

namespace lk {

class HttpConnection;

// Whose bytes wait for readers: a tenant, an address.
struct OutputAccount {
  std::atomic<int64_t> bytes{0};
};

struct HttpServerState {  // thread safe
  HttpServerOptions options;
  HttpServer::HeadFilter filter;
  HttpServer::Handler handler;
  // Null without TLS listeners. Connections keep the certificate they began with.
  std::shared_ptr<TlsContext> tls() const;
  void set_tls(std::shared_ptr<TlsContext> tls);

  std::atomic<bool> draining{false};
  std::atomic<int64_t> body_bytes{0};  // of requests that are being received
  std::atomic<int64_t> connections{0}, open_connections{0}, requests{0}, bytes_in{0}, bytes_out{0};
  std::atomic<int64_t> cut_slow_readers{0}, cut_slow_writers{0}, refused_connections{0}, bad_requests{0};
  std::atomic<int64_t> refused_outputs{0};
  std::atomic<int64_t> output_bytes{0};     // waiting for readers
  std::atomic<int64_t> output_accounts{0};  // that have any

  // Takes a place among the connections, or refuses.
  bool admit(const Peer& peer);
  void leave(const Peer& peer);
  std::shared_ptr<OutputAccount> output_account(const std::string& name);
  int64_t change_output(OutputAccount& account, int64_t bytes);  // returns what the account held before
  bool holds_too_much(const OutputAccount& account) const;
  void add_busy(int64_t change);
  bool wait_until_no_busy(std::chrono::steady_clock::time_point deadline);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<TlsContext> tls_;
  std::condition_variable idle_;
  int64_t busy_ = 0;  // connections with a request, or bytes of an answer to send
  std::unordered_map<std::string, int64_t> per_account_;
  std::unordered_map<std::string, std::weak_ptr<OutputAccount>> output_accounts_;
  size_t outputs_swept_ = 64;  // accounts that nobody uses are forgotten when there are twice as many
};

class HttpShard : public std::enable_shared_from_this<HttpShard> {
 public:
  using Clock = std::chrono::steady_clock;
  HttpShard(std::shared_ptr<HttpServerState> state, int index);
  ~HttpShard();

  const int index;
  const std::shared_ptr<HttpServerState> state;
  IoLoop loop;

  // Everything below: loop thread only.
  void start_ticking();
  void adopt(int fd, Peer peer, int listener);  // an accepted socket that was admitted
  void drain();                                 // closes idle connections
  void close_all();
  // Called by connections.
  void flush_later(const std::shared_ptr<HttpConnection>& connection);  // at the end of the callback that runs
  void call_later(std::function<void()> callback);                      // likewise
  void remove(const std::shared_ptr<HttpConnection>& connection);
  std::vector<char>& read_buffer() { return read_buffer_; }

 private:
  void epilogue();
  void tick();
  std::unordered_set<std::shared_ptr<HttpConnection>> connections_;
  std::vector<std::shared_ptr<HttpConnection>> to_flush_, flushing_;
  std::vector<std::function<void()>> to_call_;
  std::vector<std::weak_ptr<HttpConnection>> round_;  // whose deadlines are still to be judged in this round
  int ticks_left_ = 0;                                // of the round
  std::vector<char> read_buffer_;  // shared by all connections: they read when there is something to read
};

}  // namespace lk
