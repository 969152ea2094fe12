// SPDX-License-Identifier: Apache-2.0
// The output half of HttpConnection: answers, flow control, closing.
#include <sys/socket.h>

#include <utility>

#include "lk/net/http_connection.h"

namespace lk {
namespace {

constexpr auto kLingerTime = std::chrono::seconds(2);
constexpr size_t kKeptCapacity = 8 << 10;  // of the output buffer between sends

}  // namespace

void HttpConnection::flush_later() {
  if (std::exchange(flush_queued_, true)) return;
  shard_->flush_later(shared_from_this());
}

std::string& HttpConnection::output() {
  if (unsent() == 0) last_progress_ = Clock::now();  // the stall clock starts with the first byte that waits
  return out_;
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
  while (unsent() > 0) {
    const IoResult result = transport_.write(std::string_view(out_).substr(out_sent_));
    write_wants_read_ = result.kind == IoResult::Kind::kWantRead;
    if (result.kind == IoResult::Kind::kData) {
      out_sent_ += result.bytes;
      state_.bytes_out += static_cast<int64_t>(result.bytes);
      last_progress_ = Clock::now();
    } else if (result.kind == IoResult::Kind::kWantWrite || result.kind == IoResult::Kind::kWantRead) {
      break;
    } else {
      return abort();
    }
  }
  if (unsent() == 0) {
    out_sent_ = 0;
    out_.clear();
    if (out_.capacity() > kKeptCapacity) out_ = std::string();
    if (close_after_flush_) linger();
  } else if (out_sent_ > out_.size() / 2) {
    out_.erase(0, std::exchange(out_sent_, 0));
  }
}

void HttpConnection::queue(HttpAnswer& answer, const HttpResponse& response) {
  const bool bodiless = response.status == 204 || response.status == 304;
  answer.keep_alive = answer.keep_alive && !state_.draining;
  ResponseHead head;
  head.status = response.status;
  head.headers = &response.headers;
  if (!bodiless) {
    head.content_type = response.content_type;
    head.content_length = static_cast<int64_t>(response.body.size());
  }
  head.http_1_0 = answer.http_1_0;
  head.keep_alive = answer.keep_alive;
  append_head(&output(), head);
  if (!bodiless && !answer.head_only) out_ += response.body;
  if (!answer.keep_alive) close_after_flush_ = true;
}

void HttpConnection::complete(HttpAnswer& answer) {
  const auto keep = std::move(answer_);
  const auto callback = std::move(answer.on_close);  // may own the reply, and with it `answer`
  answer.on_close = nullptr;
  answer.state = HttpAnswer::State::kComplete;
  phase_ = close_after_flush_ ? Phase::kLinger : Phase::kHead;
  deadline_ = Clock::now() + limits_.idle_timeout;
  flush_later();
}

void HttpConnection::respond(HttpAnswer& answer, const HttpResponse& response) {
  if (answer.state != HttpAnswer::State::kWaiting) return;
  queue(answer, response);
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
  append_head(&output(), head);
  flush_later();
}

bool HttpConnection::write(HttpAnswer& answer, std::string_view bytes) {
  if (answer.state != HttpAnswer::State::kStreaming) return false;
  if (answer.head_only || bytes.empty()) return true;
  if (answer.http_1_0) {
    output() += bytes;
  } else {
    append_chunk(&output(), bytes);
  }
  if (static_cast<int64_t>(unsent()) > limits_.max_buffered_bytes) {
    flush();
    if (phase_ != Phase::kClosed && static_cast<int64_t>(unsent()) > limits_.max_buffered_bytes) {
      ++state_.cut_slow_readers;
      abort();
    }
    if (phase_ == Phase::kClosed) return false;
  }
  flush_later();
  return true;
}

void HttpConnection::end(HttpAnswer& answer) {
  if (answer.state != HttpAnswer::State::kStreaming) return;
  if (!answer.http_1_0 && !answer.head_only) output() += "0\r\n\r\n";
  if (!answer.keep_alive) close_after_flush_ = true;
  complete(answer);
}

void HttpConnection::dropped(HttpAnswer& answer) {
  const auto callback = std::move(answer.on_close);
  answer.on_close = nullptr;
  if (answer.state == HttpAnswer::State::kWaiting) respond(answer, error_response(500, "internal error"));
  if (answer.state == HttpAnswer::State::kStreaming) abort();  // a clean end would make half an answer look whole
}

void HttpConnection::lose_answer() {
  const auto answer = std::move(answer_);
  if (answer == nullptr || answer->state == HttpAnswer::State::kComplete) return;
  answer->state = HttpAnswer::State::kLost;
  if (answer->on_close) shard_->call_later(std::exchange(answer->on_close, nullptr));
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
  out_ = std::string();
  out_sent_ = 0;
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
