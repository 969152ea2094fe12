// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_shard.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "lk/net/http_connection.h"

namespace lk {
namespace {

constexpr int kTicksOfRound = 16;

}  // namespace

std::shared_ptr<TlsContext> HttpServerState::tls() const {
  const std::lock_guard lock(mutex_);
  return tls_;
}

void HttpServerState::set_tls(std::shared_ptr<TlsContext> tls) {
  const std::lock_guard lock(mutex_);
  tls_ = std::move(tls);
}

bool HttpServerState::admit(const Peer& peer) {
  if (open_connections.load() >= options.limits.max_connections) return false;
  if (!peer.account.empty()) {
    const std::lock_guard lock(mutex_);
    int64_t& count = per_account_[peer.account];
    if (count >= options.limits.max_connections_per_address) return false;
    ++count;
  }
  ++open_connections;
  ++connections;
  return true;
}

void HttpServerState::leave(const Peer& peer) {
  --open_connections;
  if (peer.account.empty()) return;
  const std::lock_guard lock(mutex_);
  const auto found = per_account_.find(peer.account);
  if (--found->second == 0) per_account_.erase(found);
}

std::shared_ptr<OutputAccount> HttpServerState::output_account(const std::string& name) {
  const std::lock_guard lock(mutex_);
  std::weak_ptr<OutputAccount>& known = output_accounts_[name];
  std::shared_ptr<OutputAccount> account = known.lock();
  if (account) return account;
  known = account = std::make_shared<OutputAccount>();
  if (output_accounts_.size() > 2 * outputs_swept_) {
    std::erase_if(output_accounts_, [](const auto& entry) { return entry.second.expired(); });
    outputs_swept_ = std::max<size_t>(64, output_accounts_.size());
  }
  return account;
}

int64_t HttpServerState::change_output(OutputAccount& account, int64_t bytes) {
  if (bytes == 0) return account.bytes;
  const int64_t before = account.bytes.fetch_add(bytes);
  if (before == 0) ++output_accounts;
  if (before + bytes == 0) --output_accounts;
  output_bytes += bytes;
  return before;
}

bool HttpServerState::holds_too_much(const OutputAccount& account) const {
  const HttpLimits& l = options.limits;
  const int64_t held = account.bytes;
  if (held > l.max_output_bytes_per_account) return true;
  return output_bytes > l.max_total_output_bytes &&
         held > l.max_total_output_bytes / std::max<int64_t>(1, output_accounts);
}

void HttpServerState::add_busy(int64_t change) {
  const std::lock_guard lock(mutex_);
  busy_ += change;
  if (busy_ == 0) idle_.notify_all();
}

bool HttpServerState::wait_until_no_busy(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return idle_.wait_until(lock, deadline, [this] { return busy_ == 0; });
}

HttpShard::HttpShard(std::shared_ptr<HttpServerState> state, int index)
    : index(index),
      state(std::move(state)),
      loop([this] { epilogue(); }, this->state->options.on_turn),
      read_buffer_(64 << 10) {}
HttpShard::~HttpShard() = default;

// Deadlines are judged by one timer per shard: thousands of connections change theirs all the time and few ever expire.
// A round judges every connection once, a part of them at each tick: those that came together and are late together
// must not be cut in one go, for that long the streams of the others would wait.
void HttpShard::start_ticking() {
  const HttpLimits& l = state->options.limits;
  const auto shortest = std::min({l.header_timeout, l.body_timeout, l.idle_timeout, l.stall_timeout});
  const auto period = std::clamp(shortest / 8, std::chrono::milliseconds(5), std::chrono::milliseconds(250));
  loop.every(std::max(period / kTicksOfRound, std::chrono::milliseconds(1)), [this] { tick(); });
}

void HttpShard::tick() {
  if (ticks_left_ == 0) {
    round_.assign(connections_.begin(), connections_.end());
    ticks_left_ = kTicksOfRound;
  }
  const size_t end = round_.size() * static_cast<size_t>(--ticks_left_) / kTicksOfRound;
  const auto now = Clock::now();
  for (; round_.size() > end; round_.pop_back())
    if (const auto connection = round_.back().lock()) connection->tick(now);
}

void HttpShard::adopt(int fd, Peer peer, int listener) {
  std::shared_ptr<HttpConnection> connection;
  const Peer copy = peer;
  try {
    connection = std::make_shared<HttpConnection>(shared_from_this(), fd, std::move(peer), listener);
  } catch (const std::exception&) {  // no memory, or epoll refuses
    ::close(fd);
    state->leave(copy);
    return;
  }
  connections_.insert(connection);
  connection->start();
}

void HttpShard::drain() {
  for (const auto& connection : connections_) connection->flush_later();
}

void HttpShard::close_all() {
  const std::vector<std::shared_ptr<HttpConnection>> all(connections_.begin(), connections_.end());
  for (const auto& connection : all) connection->abort();
}

void HttpShard::flush_later(const std::shared_ptr<HttpConnection>& connection) { to_flush_.push_back(connection); }
void HttpShard::call_later(std::function<void()> callback) { to_call_.push_back(std::move(callback)); }
void HttpShard::remove(const std::shared_ptr<HttpConnection>& connection) { connections_.erase(connection); }

void HttpShard::epilogue() {
  while (!to_flush_.empty() || !to_call_.empty()) {
    flushing_.swap(to_flush_);
    for (const auto& connection : flushing_) run_guarded("a connection", [&] { connection->after_callback(); });
    flushing_.clear();
    std::vector<std::function<void()>> callbacks;
    callbacks.swap(to_call_);
    for (const auto& callback : callbacks) run_guarded("an on_close callback", callback);
  }
}

}  // namespace lk
