// SPDX-License-Identifier: Apache-2.0
// The input half of HttpConnection; the output half is http_connection_output.cpp.
#include "lk/net/http_connection.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "lk/net/http_reply.h"
#include "lk/net/http_server.h"

namespace lk {
namespace {

constexpr int kReadsPerEvent = 4;                // then others get their turn
constexpr size_t kMaxPipelined = 64 << 10;       // bytes read ahead while an answer is pending
constexpr int64_t kMaxDiscardedBody = 64 << 10;  // a longer body of a refused request costs the connection
constexpr int64_t kMaxLingerBytes = 1 << 20;
constexpr auto kNever = HttpConnection::Clock::time_point::max();

}  // namespace

HttpConnection::HttpConnection(std::shared_ptr<HttpShard> shard, int fd, Peer peer, int listener)
    : shard_(std::move(shard)),
      state_(*shard_->state),
      limits_(state_.options.limits),
      peer_(std::move(peer)),
      listener_(listener),
      watch_(shard_->loop, fd),
      transport_(fd, state_.options.listen[static_cast<size_t>(listener)].tls ? state_.tls().get() : nullptr) {}

HttpConnection::~HttpConnection() = default;

void HttpConnection::start() {
  deadline_ = Clock::now() + limits_.header_timeout;
  on_readable();  // the request is often here already
}

bool HttpConnection::wants_input() const {
  if (eof_) return false;
  switch (phase_) {
    case Phase::kHead:
    case Phase::kBody:
      return static_cast<int64_t>(unsent()) <= limits_.max_buffered_bytes;  // answers go out before more come in
    case Phase::kAnswer:
      return in_.size() < kMaxPipelined;
    case Phase::kLinger:
      return true;
    case Phase::kClosed:
      break;
  }
  return false;
}

// Out of memory: this connection goes, the others stay.
template <class F>
void HttpConnection::guarded(F f) {
  try {
    f();
  } catch (const std::exception&) {
    abort();
  }
}

void HttpConnection::wait_for_events() {
  if (phase_ == Phase::kClosed) return;
  if (wants_input() && !waiting_read_ && !read_wants_write_) {
    waiting_read_ = true;
    const auto callback = [self = shared_from_this()] {
      self->waiting_read_ = false;
      self->guarded([&] { self->on_readable(); });
    };
    if (transport_.has_pending_input()) {
      shard_->loop.post(callback);
    } else {
      watch_.when_readable(callback);
    }
  }
  if (((unsent() > 0 && !write_wants_read_) || read_wants_write_) && !waiting_write_) {
    waiting_write_ = true;
    watch_.when_writable([self = shared_from_this()] {
      self->waiting_write_ = false;
      self->guarded([&] {
        if (std::exchange(self->read_wants_write_, false)) self->on_readable();
        self->flush();
        self->flush_later();
      });
    });
  }
}

void HttpConnection::on_readable() {
  std::vector<char>& buffer = shard_->read_buffer();
  for (int i = 0; i < kReadsPerEvent && wants_input(); ++i) {
    const IoResult result = transport_.read(buffer.data(), buffer.size());
    if (result.kind == IoResult::Kind::kData) {
      state_.bytes_in += static_cast<int64_t>(result.bytes);
      take({buffer.data(), result.bytes});
      if (!transport_.tls() && result.bytes < buffer.size()) break;
    } else if (result.kind == IoResult::Kind::kEof) {
      on_eof();
      break;
    } else if (result.kind == IoResult::Kind::kError) {
      abort();
      break;
    } else {
      read_wants_write_ = result.kind == IoResult::Kind::kWantWrite;
      break;
    }
  }
  flush_later();
}

void HttpConnection::take(std::string_view bytes) {
  if (phase_ == Phase::kClosed) return;
  if (phase_ == Phase::kLinger) {
    lingered_bytes_ += static_cast<int64_t>(bytes.size());
    if (lingered_bytes_ > kMaxLingerBytes) abort();
    return;
  }
  if (in_.empty()) {
    const size_t consumed = process(bytes);
    in_.assign(bytes.substr(consumed));
  } else {
    in_.append(bytes);
    in_.erase(0, process(in_));
  }
  if (in_.empty() && in_.capacity() > 1024) in_ = std::string();
}

// Consumes requests from the front of `data` until one has to be answered first.
size_t HttpConnection::process(std::string_view data) {
  size_t consumed = 0;
  while ((phase_ == Phase::kHead && (consumed < data.size())) || phase_ == Phase::kBody) {
    if (!wants_input() && !eof_) break;
    if (phase_ == Phase::kHead && parser_ == nullptr) begin_head();
    size_t used = 0;
    const HttpParser::Event event = parser_->parse(data.substr(consumed), &used);
    consumed += used;
    if (!account_body()) return data.size();
    if (event == HttpParser::Event::kNeedMore) break;
    if (event == HttpParser::Event::kHead) on_head();
    if (event == HttpParser::Event::kDone) on_request();
    if (event == HttpParser::Event::kError) {
      ++state_.bad_requests;
      const HttpError error = parser_->error();
      refuse(error.status, error.message);
    }
  }
  return phase_ == Phase::kLinger ? data.size() : consumed;
}

void HttpConnection::begin_head() {
  parser_ = std::make_unique<HttpParser>(limits_);
  deadline_ = Clock::now() + limits_.header_timeout;
}

void HttpConnection::on_head() {
  ++state_.requests;
  HttpRequest& head = parser_->request();
  head.peer = peer_.name;
  head.peer_account = peer_.account;
  head.listener = listener_;
  head.content_length = parser_->content_length();
  phase_ = Phase::kBody;
  body_start_ = Clock::now();
  deadline_ = body_start_ + limits_.body_timeout;
  answer_ = std::make_shared<HttpAnswer>();
  answer_->head_only = head.method == "HEAD";
  answer_->http_1_0 = parser_->http_1_0();
  answer_->keep_alive = parser_->keep_alive();
  if (state_.filter) {
    std::optional<HttpResponse> response;
    try {
      response = state_.filter(head);
    } catch (...) {  // its text may be anything: the peer gets none of it
      response = error_response(500, "internal error");
    }
    if (response) return answer_from_filter(std::move(*response));
    if (!head.admission && !parser_->limit_body(kUnadmittedBody))
      return refuse(413, fmt::format("the body is larger than {} bytes, and nobody reads it here", kUnadmittedBody));
  }
  if (parser_->expects_continue()) {
    output().append("HTTP/1.1 100 Continue\r\n\r\n");
    flush_later();
  }
}

// The peer may be sending its body already. A short one is read and dropped; for a long one the connection is given up.
void HttpConnection::answer_from_filter(HttpResponse response) {
  const int64_t body = parser_->content_length();
  if (body > kMaxDiscardedBody || body < 0 || parser_->expects_continue()) answer_->keep_alive = false;
  parser_->discard_body();
  HttpAnswer& answer = *answer_;
  queue(answer, std::move(response));
  answer.state = HttpAnswer::State::kComplete;
  if (close_after_flush_) phase_ = Phase::kLinger;
  flush_later();
}

void HttpConnection::on_request() {
  HttpRequest request = std::move(parser_->request());
  parser_ = nullptr;
  release_body();
  if (answer_->state == HttpAnswer::State::kComplete) {  // by the filter
    answer_ = nullptr;
    phase_ = Phase::kHead;
    deadline_ = Clock::now() + limits_.idle_timeout;
    return;
  }
  phase_ = Phase::kAnswer;
  last_output_ = Clock::now();
  looked_again_ = false;
  deadline_ = kNever;
  update_busy();
  const auto answer = answer_;
  try {
    state_.handler(std::move(request), make_http_reply(shared_from_this(), answer));
  } catch (...) {
    dropped(*answer);
  }
}

void HttpConnection::on_eof() {
  eof_ = true;
  const bool all_answered =
      phase_ == Phase::kHead || phase_ == Phase::kLinger || (answer_ && answer_->state == HttpAnswer::State::kComplete);
  if (!all_answered || unsent() == 0) return abort();
  phase_ = Phase::kLinger;  // what was answered is still delivered
  close_after_flush_ = true;
}

// Answers on behalf of the server and gives the connection up.
void HttpConnection::refuse(int status, std::string_view message) { refuse(error_response(status, message)); }

void HttpConnection::refuse(const HttpResponse& response) {
  parser_ = nullptr;
  release_body();
  if (answer_ == nullptr) answer_ = std::make_shared<HttpAnswer>();
  if (answer_->state == HttpAnswer::State::kWaiting) {
    answer_->keep_alive = false;
    queue(*answer_, response);
  }
  answer_ = nullptr;
  close_after_flush_ = true;
  phase_ = Phase::kLinger;
  flush_later();
}

// Bodies of all connections together are bounded too, and whoever let the request in may find its body too large.
bool HttpConnection::account_body() {
  const int64_t bytes = parser_ ? static_cast<int64_t>(parser_->request().body.size()) : 0;
  const int64_t before = std::exchange(counted_body_bytes_, bytes);
  const int64_t total = state_.body_bytes += bytes - before;
  if (bytes == 0) return true;
  if (total > limits_.max_total_body_bytes) {
    refuse(503, "the server is receiving too many large requests");
    return false;
  }
  if (bytes == before || !parser_->request().admission) return true;
  const std::optional<HttpResponse> response = parser_->request().admission->on_body(bytes);
  if (response) refuse(*response);
  return !response;
}

void HttpConnection::release_body() { state_.body_bytes -= std::exchange(counted_body_bytes_, 0); }

void HttpConnection::tick(Clock::time_point now) {
  if (phase_ == Phase::kClosed) return;
  if (unsent() > 0 && reads_too_slowly(now)) {
    ++state_.cut_slow_readers;
    return abort();
  }
  if (phase_ == Phase::kAnswer && answer_->on_silence && unsent() == 0 && now - last_output_ >= answer_->silence) {
    last_output_ = now;
    const auto callback = answer_->on_silence;  // what it does may end the answer
    guarded(callback);
  }
  bool late = now > deadline_;
  if (phase_ == Phase::kBody && !late) {
    const auto grace = std::min<Clock::duration>(std::chrono::seconds(5), limits_.body_timeout / 4);
    const double seconds = std::chrono::duration<double>(now - body_start_).count();
    late = now - body_start_ > grace &&
           static_cast<double>(parser_->body_bytes()) < seconds * static_cast<double>(limits_.min_body_rate);
  }
  if (!late) return;
  if (phase_ == Phase::kHead && parser_ == nullptr && unsent() > 0) {  // still reading its last answer
    deadline_ = now + limits_.idle_timeout;
    return;
  }
  if (phase_ == Phase::kHead && in_.empty()) return abort();  // idle
  if (phase_ == Phase::kLinger) {
    if (unsent() == 0) abort();
    return;
  }
  ++state_.cut_slow_writers;
  refuse(408, "the request did not arrive in time");
  after_callback();
}

}  // namespace lk
