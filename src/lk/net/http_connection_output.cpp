// SPDX-License-Identifier: Apache-2.0
// The output half of HttpConnection: answers, flow control, closing.
#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "lk/net/http_connection.h"

namespace lk {
namespace {

constexpr auto kLingerTime = std::chrono::seconds(2);
constexpr size_t kMaxSend = 256 << 10;  // in one go, before other connections get their turn

}  // namespace

void HttpConnection::flush_later() {
  if (std::exchange(flush_queued_, true)) return;
  shard_->flush_later(shared_from_this());
}

OutputQueue& HttpConnection::output() {
  last_output_ = Clock::now();
  if (unsent() == 0) {  // the reader is judged from the first byte on that waits for it
    reading_since_ = last_output_;
    read_bytes_ = 0;
  }
  return out_;
}

bool HttpConnection::reads_too_slowly(Clock::time_point now) {
  const std::chrono::duration<double> waited = now - reading_since_;
  if (waited <= limits_.stall_timeout) return false;
  if (read_bytes_ == 0 ||
      static_cast<double>(read_bytes_) < static_cast<double>(limits_.min_read_rate) * waited.count())
    return true;
  reading_since_ = now;
  read_bytes_ = 0;
  return false;
}

void HttpConnection::charge(const std::string& account) {
  if (account_ && account == account_name_) return;
  if (account_) state_.change_output(*account_, -std::exchange(counted_output_bytes_, 0));
  account_ = state_.output_account(account);
  account_name_ = account;
}

OutputAccount& HttpConnection::account() {
  if (!account_) charge(peer_.account.empty() ? peer_.name : peer_.account);
  return *account_;
}

void HttpConnection::account_output() {
  const auto bytes = static_cast<int64_t>(unsent());
  if (bytes == counted_output_bytes_) return;
  state_.change_output(account(), bytes - std::exchange(counted_output_bytes_, bytes));
}

// Whether so much more may wait for the reader, besides what does for others of its account: it is counted at once, so
// that shards which ask at the same moment see each other. One that has nothing waiting may have an answer of any
// length: those are bounded elsewhere.
bool HttpConnection::admits_output(size_t bytes) {
  account_output();
  const auto more = static_cast<int64_t>(bytes);
  const int64_t before = state_.change_output(account(), more);
  counted_output_bytes_ += more;
  if (before == 0 || !state_.holds_too_much(account())) return true;
  state_.change_output(account(), -more);
  counted_output_bytes_ -= more;
  ++state_.refused_outputs;
  return false;
}

void HttpConnection::after_callback() {
  flush_queued_ = false;
  for (;;) {
    if (!waiting_write_) flush();  // otherwise the socket is known to be full
    if (phase_ == Phase::kClosed) return;
    if ((phase_ != Phase::kHead && phase_ != Phase::kBody) || in_.empty()) break;
    const size_t consumed = process(in_);  // requests that waited for the answer before theirs
    in_.erase(0, consumed);
    if (consumed == 0) break;
  }
  account_output();
  if (out_.gathered_bytes() > kHttpPartBytes && !admits_output(0)) return abort();
  if (idle() && state_.draining) {
    // A request that had arrived when the drain began is still served.
    if (std::exchange(looked_again_, true)) {
      linger();
    } else {
      on_readable();
    }
  }
  update_busy();
  wait_for_events();
}

void HttpConnection::flush() {
  if (phase_ == Phase::kClosed) return;
  for (size_t left = kMaxSend; unsent() > 0 && left > 0;) {
    const IoResult result = transport_.write(out_.front());
    write_wants_read_ = result.kind == IoResult::Kind::kWantRead;
    if (result.kind == IoResult::Kind::kData) {
      out_.sent(result.bytes);
      read_bytes_ += static_cast<int64_t>(result.bytes);
      state_.bytes_out += static_cast<int64_t>(result.bytes);
      left -= std::min(left, result.bytes);
    } else if (result.kind == IoResult::Kind::kWantWrite || result.kind == IoResult::Kind::kWantRead) {
      break;
    } else {
      return abort();
    }
  }
  if (unsent() == 0 && close_after_flush_) linger();
}

void HttpConnection::queue(HttpAnswer& answer, HttpResponse response) {
  const bool bodiless = response.status == 204 || response.status == 304;
  size_t bytes = response.body.size();
  for (const std::string& part : response.parts) bytes += part.size();
  if (!bodiless && !answer.head_only && bytes > kHttpPartBytes && !admits_output(bytes)) {
    response = error_response(503, "too many answers wait to be read by you: read them first");
    response.headers.emplace_back("Retry-After", "1");
    bytes = response.body.size();
  }
  answer.keep_alive = answer.keep_alive && !state_.draining;
  ResponseHead head;
  head.status = response.status;
  head.headers = &response.headers;
  if (!bodiless) {
    head.content_type = response.content_type;
    head.content_length = static_cast<int64_t>(bytes);
  }
  head.http_1_0 = answer.http_1_0;
  head.keep_alive = answer.keep_alive;
  output().gather([&](std::string* out) { append_head(out, head); });
  if (!bodiless && !answer.head_only) {
    if (response.body.size() > kHttpPartBytes)
      out_.append_part(std::move(response.body));
    else
      out_.append(response.body);
    for (std::string& part : response.parts) out_.append_part(std::move(part));
  }
  if (!answer.keep_alive) close_after_flush_ = true;
}

void HttpConnection::complete(HttpAnswer& answer) {
  const auto keep = std::move(answer_);
  const auto callbacks = answer.close(HttpAnswer::State::kComplete);
  phase_ = close_after_flush_ ? Phase::kLinger : Phase::kHead;
  deadline_ = Clock::now() + limits_.idle_timeout;
  flush_later();
}

void HttpConnection::respond(HttpAnswer& answer, HttpResponse response) {
  if (answer.state != HttpAnswer::State::kWaiting) return;
  queue(answer, std::move(response));
  complete(answer);
}

void HttpConnection::begin_stream(HttpAnswer& answer, int status, const HttpHeaders& headers,
                                  std::string_view content_type) {
  if (answer.state != HttpAnswer::State::kWaiting) return;
  answer.state = HttpAnswer::State::kStreaming;
  answer.keep_alive = answer.keep_alive && !answer.http_1_0 && !state_.draining;
  ResponseHead head;
  head.status = status;
  head.headers = &headers;
  head.content_type = content_type;
  head.chunked = !answer.http_1_0;
  head.http_1_0 = answer.http_1_0;
  head.keep_alive = answer.keep_alive;
  output().gather([&](std::string* out) { append_head(out, head); });
  flush_later();
}

// False when the peer is gone; cuts it when too much of what was written before still waits for it.
bool HttpConnection::may_write(const HttpAnswer& answer) {
  if (answer.state != HttpAnswer::State::kStreaming) return false;
  const auto full = [&] { return static_cast<int64_t>(out_.gathered_bytes()) > limits_.max_buffered_bytes; };
  if (full()) flush();
  if (phase_ != Phase::kClosed && full()) {
    ++state_.cut_slow_readers;
    abort();
  }
  return phase_ != Phase::kClosed;
}

bool HttpConnection::write(HttpAnswer& answer, std::string_view bytes) {
  if (!may_write(answer)) return false;
  if (answer.head_only || bytes.empty()) return true;
  output().gather([&](std::string* out) {
    if (answer.http_1_0)
      *out += bytes;
    else
      append_chunk(out, bytes);
  });
  flush_later();
  return true;
}

bool HttpConnection::write_parts(HttpAnswer& answer, HttpParts parts) {
  if (!may_write(answer)) return false;
  if (answer.head_only) return true;
  size_t bytes = 0;
  for (const std::string& part : parts) bytes += part.size();
  if (!admits_output(bytes)) {
    abort();
    return false;
  }
  if (bytes == 0) return true;
  if (!answer.http_1_0) output().append(fmt::format("{:x}\r\n", bytes));  // one chunk
  for (std::string& part : parts) output().append_part(std::move(part));
  if (!answer.http_1_0) out_.append("\r\n");
  flush_later();
  return true;
}

void HttpConnection::end(HttpAnswer& answer) {
  if (answer.state != HttpAnswer::State::kStreaming) return;
  if (!answer.http_1_0 && !answer.head_only) output().append("0\r\n\r\n");
  if (!answer.keep_alive) close_after_flush_ = true;
  complete(answer);
}

void HttpConnection::dropped(HttpAnswer& answer) {
  const auto callbacks = answer.close(answer.state);
  if (answer.state == HttpAnswer::State::kWaiting) respond(answer, error_response(500, "internal error"));
  if (answer.state == HttpAnswer::State::kStreaming) abort();  // a clean end would make half an answer look whole
}

void HttpConnection::lose_answer() {
  const auto answer = std::move(answer_);
  if (answer == nullptr || answer->state == HttpAnswer::State::kComplete) return;
  shard_->call_later(answer->close(HttpAnswer::State::kLost));
}

// Closes our half and waits a little for the peer's: closing with unread input would reset the connection, and the
// reset may overtake the answer.
void HttpConnection::linger() {
  phase_ = Phase::kLinger;
  answer_ = nullptr;
  parser_ = nullptr;
  release_body();
  if (eof_) return abort();
  if (std::exchange(write_shut_, true)) return;
  transport_.shutdown_write();
  deadline_ = Clock::now() + kLingerTime;
}

void HttpConnection::abort() {
  if (phase_ == Phase::kClosed) return;
  const auto self = shared_from_this();
  if (unsent() > 0 || answer_ != nullptr) {  // reset: the kernel need not keep what nobody takes
    const struct linger reset { 1, 0 };
    ::setsockopt(watch_.fd(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  }
  phase_ = Phase::kClosed;
  lose_answer();
  parser_ = nullptr;
  release_body();
  transport_.forget_fd();
  watch_.close();
  out_.clear();
  account_output();
  update_busy();
  state_.leave(peer_);
  shard_->remove(self);
}

bool HttpConnection::idle() const { return phase_ == Phase::kHead && in_.empty() && unsent() == 0; }

void HttpConnection::update_busy() {
  const bool busy = phase_ != Phase::kClosed && !idle() && (phase_ != Phase::kLinger || unsent() > 0);
  if (busy == busy_) return;
  busy_ = busy;
  state_.add_busy(busy ? 1 : -1);
}

}  // namespace lk
