// SPDX-License-Identifier: Apache-2.0
// Each io thread ("shard") owns its exchanges and its pool of idle connections, so nothing is locked: send() and
// cancel() post to it.
#include "lk/net/http_client.h"

#include <atomic>
#include <deque>
#include <map>
#include <thread>
#include <unordered_map>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>

#include "lk/net/http_client_connection.h"

namespace lk {
namespace {

using namespace net_detail;  // NOLINT: this file is that detail

struct Exchange {
  Exchange(asio::io_context& context) : deadline(context), connect_deadline(context) {}
  int64_t id = 0;
  ClientUrl url;
  std::shared_ptr<const std::string> bytes;  // of the request
  bool head = false, may_repeat = false, reused = false;
  ClientCallbacks callbacks;
  asio::steady_timer deadline, connect_deadline;
  std::shared_ptr<ClientConnection> connection;
};

class Shard {
 public:
  Shard(const HttpClientOptions& options, asio::ssl::context& tls)
      : options_(options),
        tls_(tls),
        work_(asio::make_work_guard(context_)),
        names_(context_),
        sweep_timer_(context_),
        thread_([this] { context_.run(); }) {}

  ~Shard() {
    asio::post(context_, [this] {
      while (!exchanges_.empty()) finish(exchanges_.begin()->second, cancelled("the client was shut down"));
      idle_.clear();
      context_.stop();
    });
    thread_.join();
  }

  void start(int64_t id, ClientRequest request, ClientCallbacks callbacks) {
    // shared_ptr: a posted function must be copyable.
    auto exchange = std::make_shared<Exchange>(context_);
    exchange->id = id;
    exchange->callbacks = std::move(callbacks);
    asio::post(context_,
               [this, exchange, request = std::move(request)]() mutable { begin(exchange, std::move(request)); });
  }

  void cancel(int64_t id) {
    asio::post(context_, [this, id] {
      if (const auto found = exchanges_.find(id); found != exchanges_.end())
        finish(found->second, cancelled("the request was cancelled"));
    });
  }

 private:
  using ExchangePtr = std::shared_ptr<Exchange>;

  void begin(const ExchangePtr& exchange, ClientRequest request) {
    exchanges_[exchange->id] = exchange;
    Result<ClientUrl> url = parse_client_url(request.url);
    if (!url.ok()) return finish(exchange, url.status());
    exchange->url = std::move(*url);
    Result<std::string> bytes = format_client_request(request, exchange->url);
    if (!bytes.ok()) return finish(exchange, bytes.status());
    exchange->bytes = std::make_shared<const std::string>(std::move(*bytes));
    exchange->head = request.method == "HEAD";
    exchange->may_repeat = is_idempotent_method(request.method);
    if (request.not_before <= Clock::now()) return go(exchange, request.timeout);
    exchange->deadline.expires_at(request.not_before);
    exchange->deadline.async_wait([this, exchange, timeout = request.timeout](const error_code& error) {
      if (!error && exchanges_.contains(exchange->id)) go(exchange, timeout);
    });
  }

  void go(const ExchangePtr& exchange, std::chrono::milliseconds timeout) {
    if (exchange->callbacks.on_start) exchange->callbacks.on_start();
    exchange->deadline.expires_after(timeout);
    exchange->deadline.async_wait([this, exchange, timeout](const error_code& error) {
      if (!error) finish(exchange, deadline_exceeded("no complete answer within {} ms", timeout.count()));
    });
    if (take_idle(exchange))
      run(exchange);
    else
      connect(exchange);
  }

  bool take_idle(const ExchangePtr& exchange) {
    const auto found = idle_.find(exchange->url.pool_key());
    if (found == idle_.end()) return false;
    // Last in, first out: the rest grow old and are swept.
    while (!found->second.empty() && !exchange->connection) {
      std::shared_ptr<ClientConnection> connection = std::move(found->second.back());
      found->second.pop_back();
      if (connection->is_reusable())
        exchange->connection = std::move(connection);
      else
        connection->close();
    }
    if (found->second.empty()) idle_.erase(found);
    exchange->reused = exchange->connection != nullptr;
    return exchange->reused;
  }

  void connect(const ExchangePtr& exchange) {
    exchange->reused = false;
    exchange->connection =
        std::make_shared<ClientConnection>(context_, &tls_, options_.verify_tls, options_.max_header_bytes);
    exchange->connection->pool_key = exchange->url.pool_key();
    exchange->connect_deadline.expires_after(options_.connect_timeout);
    exchange->connect_deadline.async_wait([this, exchange](const error_code& error) {
      if (!error)
        finish(exchange, unavailable("no connection to {} within {} ms", exchange->url.host_header,
                                     options_.connect_timeout.count()));
    });
    exchange->connection->connect(exchange->url, names_, [this, exchange](Status status) {
      if (!exchanges_.contains(exchange->id)) return;
      exchange->connect_deadline.cancel();
      // The timer may have expired with its handler already queued: from here on it must not act.
      exchange->connect_deadline.expires_at(Clock::time_point::max());
      if (!status.ok()) return finish(exchange, std::move(status));
      run(exchange);
    });
  }

  void run(const ExchangePtr& exchange) {
    HttpResponseParser::Sink sink{exchange->callbacks.on_head, exchange->callbacks.on_data};
    exchange->connection->exchange(exchange->bytes, std::move(sink), exchange->head, [this, exchange](Status status) {
      const bool broke_unused = !status.ok() && exchange->reused && !exchange->connection->answer_started();
      if (broke_unused && exchange->may_repeat) {
        exchange->connection->close();
        return connect(exchange);
      }
      finish(exchange, std::move(status));
    });
  }

  // The only place where an exchange ends. A second call does nothing.
  void finish(ExchangePtr exchange, Status status) {
    if (exchanges_.erase(exchange->id) == 0) return;
    exchange->deadline.cancel();
    exchange->connect_deadline.cancel();
    if (exchange->connection) {
      if (status.ok() && exchange->connection->keep_alive())
        keep(std::move(exchange->connection));
      else
        exchange->connection->close();
    }
    const ClientCallbacks callbacks = std::move(exchange->callbacks);
    exchange->callbacks = {};
    if (callbacks.on_done) callbacks.on_done(std::move(status));
  }

  void keep(std::shared_ptr<ClientConnection> connection) {
    auto& pool = idle_[connection->pool_key];
    connection->idle_since = Clock::now();
    if (pool.size() >= options_.max_idle_per_host) {
      pool.front()->close();
      pool.pop_front();
    }
    pool.push_back(std::move(connection));
    if (!sweeping_) sweep_later();
  }

  void sweep_later() {
    sweeping_ = true;
    sweep_timer_.expires_after(
        std::max<std::chrono::milliseconds>(options_.idle_timeout / 2, std::chrono::milliseconds(10)));
    sweep_timer_.async_wait([this](const error_code& error) {
      sweeping_ = false;
      if (error) return;
      const auto oldest = Clock::now() - options_.idle_timeout;
      for (auto pool = idle_.begin(); pool != idle_.end();) {
        while (!pool->second.empty() && pool->second.front()->idle_since <= oldest) {
          pool->second.front()->close();
          pool->second.pop_front();
        }
        pool = pool->second.empty() ? idle_.erase(pool) : std::next(pool);
      }
      if (!idle_.empty()) sweep_later();
    });
  }

  const HttpClientOptions options_;
  asio::ssl::context& tls_;
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  NameCache names_;
  asio::steady_timer sweep_timer_;
  bool sweeping_ = false;
  std::unordered_map<int64_t, ExchangePtr> exchanges_;
  std::map<std::string, std::deque<std::shared_ptr<ClientConnection>>> idle_;  // oldest first
  std::thread thread_;                                                         // last: it runs as soon as it exists
};

class AsioHttpClient final : public HttpClient {
 public:
  explicit AsioHttpClient(asio::ssl::context tls) : tls_(std::move(tls)) {}
  void start(const HttpClientOptions& options) {
    for (int i = 0; i < options.num_threads; ++i) shards_.push_back(std::make_unique<Shard>(options, tls_));
  }

  int64_t send(ClientRequest request, ClientCallbacks callbacks) override {
    const int64_t id = next_id_.fetch_add(1);
    shard(id).start(id, std::move(request), std::move(callbacks));
    return id;
  }
  void cancel(int64_t id) override { shard(id).cancel(id); }

 private:
  Shard& shard(int64_t id) { return *shards_[static_cast<size_t>(id) % shards_.size()]; }
  asio::ssl::context tls_;
  std::atomic<int64_t> next_id_{0};
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace

Result<std::unique_ptr<HttpClient>> HttpClient::create(const HttpClientOptions& options) {
  if (options.num_threads < 1 || options.num_threads > 256)
    return invalid_argument("an HTTP client needs 1..256 threads, not {}", options.num_threads);
  asio::ssl::context tls(asio::ssl::context::tls_client);
  SSL_CTX_set_min_proto_version(tls.native_handle(), TLS1_2_VERSION);
  error_code error;
  if (!options.tls_ca.empty()) {
    tls.load_verify_file(options.tls_ca, error);
    if (error) return invalid_argument("cannot read authorities from {}: {}", options.tls_ca, error.message());
  } else if (options.verify_tls) {
    tls.set_default_verify_paths(error);
    if (error) return io_error("cannot read the system's certificate authorities: {}", error.message());
  }
  auto client = std::make_unique<AsioHttpClient>(std::move(tls));
  client->start(options);
  return Result<std::unique_ptr<HttpClient>>(std::move(client));
}

}  // namespace lk
