// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_server.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "lk/base/thread_name.h"
#include "lk/net/http_format.h"
#include "lk/net/http_shard.h"

namespace lk {
namespace {

using Clock = std::chrono::steady_clock;

// The listening sockets, all on shard 0. Loop thread only.
class Acceptor {
 public:
  Acceptor(std::vector<std::shared_ptr<HttpShard>>& shards, HttpServerState& state) : shards_(shards), state_(state) {}

  void add(Listener listener) {
    auto entry = std::make_unique<Entry>(std::move(listener));
    entry->watch = std::make_unique<IoWatch>(shards_[0]->loop, entry->listener.release_fd());
    entries_.push_back(std::move(entry));
  }
  void start() {
    for (size_t i = 0; i < entries_.size(); ++i) wait(i);
    shards_[0]->loop.every(std::chrono::milliseconds(500), [this] { close_refused(); });
  }
  void close() {
    for (const auto& entry : entries_) entry->watch->close();
    entries_.clear();
    while (!refused_.empty()) close_oldest_refused();
  }
  const std::string& address(size_t listener) const { return entries_[listener]->listener.address(); }

 private:
  struct Entry {
    explicit Entry(Listener listener) : listener(std::move(listener)) {}
    Listener listener;
    std::unique_ptr<IoWatch> watch;
  };

  void wait(size_t i) {
    entries_[i]->watch->when_readable([this, i] {
      if (i < entries_.size()) accept_some(i);
    });
  }

  void accept_some(size_t i) {
    for (int n = 0; n < 64; ++n) {  // then the streams of this shard get their turn
      Peer peer;
      const int fd = Listener::accept(entries_[i]->watch->fd(), &peer);
      if (fd >= 0) {
        place(fd, std::move(peer), static_cast<int>(i));
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) break;
      if (errno == ECONNABORTED || errno == EINTR || errno == EPROTO) continue;
      // Out of descriptors or memory: the socket stays readable, so waiting for it would spin.
      shards_[0]->loop.after(std::chrono::milliseconds(100), [this, i] {
        if (i < entries_.size()) accept_some(i);
      });
      return;
    }
    wait(i);
  }

  void place(int fd, Peer peer, int listener) {
    if (!state_.admit(peer)) return refuse(fd, listener);
    HttpShard& shard = *shards_[next_++ % shards_.size()];
    const auto adopt = [&shard, fd, peer, listener] { shard.adopt(fd, peer, listener); };
    if (shard.index == 0) {
      adopt();
    } else if (!shard.loop.post(adopt)) {
      ::close(fd);
      state_.leave(peer);
    }
  }

  // The answer costs one send. The socket is closed a moment later, so that no reset overtakes the answer.
  void refuse(int fd, int listener) {
    ++state_.refused_connections;
    if (state_.options.listen[static_cast<size_t>(listener)].tls) {
      ::close(fd);
      return;
    }
    const HttpResponse response = error_response(503, "the server has too many connections, try again later");
    const HttpHeaders headers = {{"Retry-After", "1"}};
    std::string bytes;
    ResponseHead head;
    head.status = 503;
    head.headers = &headers;
    head.content_type = response.content_type;
    head.content_length = static_cast<int64_t>(response.body.size());
    head.keep_alive = false;
    append_head(&bytes, head);
    bytes += response.body;
    (void)!::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    ::shutdown(fd, SHUT_WR);
    refused_.emplace_back(fd, Clock::now());
    if (refused_.size() > 256) close_oldest_refused();
  }
  void close_oldest_refused() {
    ::close(refused_.front().first);
    refused_.pop_front();
  }
  void close_refused() {
    const auto now = Clock::now();
    while (!refused_.empty() && now - refused_.front().second > std::chrono::milliseconds(500)) close_oldest_refused();
  }

  std::vector<std::shared_ptr<HttpShard>>& shards_;
  HttpServerState& state_;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::deque<std::pair<int, Clock::time_point>> refused_;
  size_t next_ = 0;
};

class Server final : public HttpServer {
 public:
  explicit Server(std::shared_ptr<HttpServerState> state) : state_(std::move(state)), acceptor_(shards_, *state_) {
    for (int i = 0; i < state_->options.num_shards; ++i) shards_.push_back(std::make_shared<HttpShard>(state_, i));
  }

  Status listen() {
    for (const HttpListen& listen : state_->options.listen) {
      LK_ASSIGN_OR_RETURN(Listener listener, Listener::open(listen.address));
      addresses_.push_back(listener.address());
      acceptor_.add(std::move(listener));
    }
    return {};
  }

  void run() {
    for (const auto& shard : shards_) shard->loop.post([&shard = *shard] { shard.start_ticking(); });
    for (const auto& shard : shards_)
      threads_.emplace_back([shard] {
        set_thread_name("lk-http");
        shard->loop.run();
      });
  }

  ~Server() override {
    for (const auto& shard : shards_)
      LK_CHECK(!shard->loop.in_loop(), "a server cannot be destroyed on its own thread");
    if (threads_.empty()) {  // listen() failed
      acceptor_.close();
      return;
    }
    // Shard 0 first: it hands connections to the others.
    std::mutex mutex;
    std::condition_variable closed;
    bool done = false;
    shards_[0]->loop.post([&] {
      acceptor_.close();
      const std::lock_guard lock(mutex);
      done = true;
      closed.notify_one();
    });
    {
      std::unique_lock lock(mutex);
      closed.wait(lock, [&] { return done; });
    }
    for (const auto& shard : shards_) {
      shard->loop.post([&shard = *shard] {
        shard.close_all();
        // Once more behind what is posted meanwhile, so that on_close callbacks find a working loop.
        shard.loop.post([&shard] { shard.loop.finish(); });
      });
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void accept() override {
    shards_[0]->loop.post([this] { acceptor_.start(); });
  }
  int num_shards() const override { return static_cast<int>(shards_.size()); }
  void post(int shard, std::function<void()> task) override {
    shards_.at(static_cast<size_t>(shard))->loop.post(std::move(task));
  }
  std::string address(int listener) const override { return addresses_.at(static_cast<size_t>(listener)); }

  HttpStats stats() const override {
    HttpStats s;
    s.connections = state_->connections;
    s.open_connections = state_->open_connections;
    s.requests = state_->requests;
    s.bytes_in = state_->bytes_in;
    s.bytes_out = state_->bytes_out;
    s.cut_slow_readers = state_->cut_slow_readers;
    s.cut_slow_writers = state_->cut_slow_writers;
    s.refused_connections = state_->refused_connections;
    s.bad_requests = state_->bad_requests;
    s.refused_outputs = state_->refused_outputs;
    s.output_bytes = state_->output_bytes;
    return s;
  }

  Status reload_tls() override {
    if (!state_->tls()) return Status();
    LK_ASSIGN_OR_RETURN(std::shared_ptr<TlsContext> tls,
                        TlsContext::server(state_->options.tls_cert, state_->options.tls_key));
    state_->set_tls(std::move(tls));
    return Status();
  }

  void stop_accepting() override {
    state_->draining = true;
    shards_[0]->loop.post([this] {
      acceptor_.close();
      for (const auto& shard : shards_) shard->loop.post([&shard = *shard] { shard.drain(); });
    });
  }

  bool wait_idle(std::chrono::milliseconds timeout) override {
    const auto deadline = Clock::now() + timeout;
    return pass_all_shards(deadline) && state_->wait_until_no_busy(deadline);
  }

 private:
  // Waits until every shard has done what was posted to it before, directly or by way of shard 0 (accepted sockets, the
  // drain).
  bool pass_all_shards(Clock::time_point deadline) {
    struct Barrier {
      std::mutex mutex;
      std::condition_variable passed;
      size_t left;
    };
    const auto barrier = std::make_shared<Barrier>();
    barrier->left = shards_.size();
    shards_[0]->loop.post([this, barrier] {
      for (const auto& shard : shards_) {
        shard->loop.post([barrier] {
          const std::lock_guard lock(barrier->mutex);
          if (--barrier->left == 0) barrier->passed.notify_all();
        });
      }
    });
    std::unique_lock lock(barrier->mutex);
    return barrier->passed.wait_until(lock, deadline, [&] { return barrier->left == 0; });
  }

  const std::shared_ptr<HttpServerState> state_;
  std::vector<std::shared_ptr<HttpShard>> shards_;
  Acceptor acceptor_;
  std::vector<std::string> addresses_;
  std::vector<std::thread> threads_;
};

Status check_options(const HttpServerOptions& options) {
  if (options.num_shards < 1 || options.num_shards > 256) {
    return invalid_argument("num_shards must be from 1 to 256, got {}", options.num_shards);
  }
  const HttpLimits& l = options.limits;
  if (l.max_header_bytes < 256 || l.max_header_bytes > (1 << 20)) {
    return invalid_argument("max_header_bytes must be from 256 to 1048576, got {}", l.max_header_bytes);
  }
  if (l.max_body_bytes < 0 || l.max_buffered_bytes < 1 || l.max_connections < 1 || l.max_connections_per_address < 1 ||
      l.max_output_bytes_per_account < 1 || l.max_total_output_bytes < 1 || l.min_read_rate < 0 ||
      l.max_total_body_bytes < l.max_body_bytes) {
    return invalid_argument("the HTTP limits must be positive, and max_total_body_bytes at least max_body_bytes");
  }
  if (std::min({l.header_timeout, l.body_timeout, l.idle_timeout, l.stall_timeout}).count() < 1) {
    return invalid_argument("the HTTP timeouts must be at least 1 ms");
  }
  return {};
}

}  // namespace

Status HttpServer::check(const HttpServerOptions& options) {
  LK_RETURN_IF_ERROR(check_options(options));
  if (std::ranges::any_of(options.listen, &HttpListen::tls))
    LK_RETURN_IF_ERROR(TlsContext::server(options.tls_cert, options.tls_key).status());
  Status taken;
  for (const HttpListen& listen : options.listen) {
    const Result<Listener> listener = Listener::open(listen.address);
    if (listener.ok()) continue;
    if (listener.status().code() != StatusCode::kAlreadyExists) return listener.status();
    taken = listener.status();
  }
  return taken;
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpServerOptions& options, HeadFilter filter,
                                                      Handler handler) {
  LK_ASSIGN_OR_RETURN(std::unique_ptr<HttpServer> server, open(options, std::move(filter), std::move(handler)));
  server->accept();
  return server;
}

Result<std::unique_ptr<HttpServer>> HttpServer::open(const HttpServerOptions& options, HeadFilter filter,
                                                     Handler handler) {
  LK_RETURN_IF_ERROR(check_options(options));
  auto state = std::make_shared<HttpServerState>();
  state->options = options;
  state->filter = std::move(filter);
  state->handler = std::move(handler);
  if (std::any_of(options.listen.begin(), options.listen.end(), [](const HttpListen& l) { return l.tls; })) {
    LK_ASSIGN_OR_RETURN(std::shared_ptr<TlsContext> tls, TlsContext::server(options.tls_cert, options.tls_key));
    state->set_tls(std::move(tls));
  }
  ::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  auto server = std::make_unique<Server>(std::move(state));
  LK_RETURN_IF_ERROR(server->listen());
  server->run();
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace lk
