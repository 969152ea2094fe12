// SPDX-License-Identifier: Apache-2.0
// HttpConnection: one client on one shard. Reads a request, gives it to the handler, sends the answer, then reads the
// next one.
//
// While an answer is pending the connection goes on reading, so that the peer's departure is seen at once. An end of
// stream from the peer counts as departure even if only its sending half was closed: a client that has no more to say
// but waits for tokens is indistinguishable from one that is gone, and computing for nobody is the dearer mistake
// (uvicorn decides likewise).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "lk/net/http_format.h"
#include "lk/net/http_parser.h"
#include "lk/net/http_shard.h"
#include "lk/net/output_queue.h"

namespace lk {

// The state of one answer, shared by the connection and the handler's HttpReply.
struct HttpAnswer {
  enum class State { kWaiting, kStreaming, kComplete, kLost };
  State state = State::kWaiting;
  bool head_only = false;  // HEAD
  bool http_1_0 = false;
  bool keep_alive = true;
  std::function<void()> on_close;
  std::chrono::milliseconds silence{0};  // after which on_silence is called
  std::function<void()> on_silence;

  // Nothing more will happen to it. The callbacks may own the reply, and with it this answer: the caller destroys them.
  [[nodiscard]] std::function<void()> close(State end) {
    state = end;
    return [close = std::exchange(on_close, nullptr), silence = std::exchange(on_silence, nullptr)] {
      if (close) close();
    };
  }
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Clock = HttpShard::Clock;
  HttpConnection(std::shared_ptr<HttpShard> shard, int fd, Peer peer, int listener);
  ~HttpConnection();

  void start();
  void tick(Clock::time_point now);
  void abort();           // closes it at once; a pending answer is lost
  void after_callback();  // sends what was queued, goes on with pipelined requests, closes if idle while draining
  void flush_later();     // after_callback() at the end of the callback that runs

  // For HttpReply.
  HttpShard& shard() { return *shard_; }
  void respond(HttpAnswer& answer, HttpResponse response);
  void begin_stream(HttpAnswer& answer, int status, const HttpHeaders& headers, std::string_view content_type);
  bool write(HttpAnswer& answer, std::string_view bytes);
  bool write_parts(HttpAnswer& answer, HttpParts parts);
  void charge(const std::string& account);
  void end(HttpAnswer& answer);
  void dropped(HttpAnswer& answer);  // the handler let go of its reply

 private:
  enum class Phase {
    kHead,    // waiting for a request or reading its head
    kBody,    // reading its body
    kAnswer,  // the handler has it
    kLinger,  // the last answer is being sent; what comes in is discarded
    kClosed,
  };
  // Input.
  void wait_for_events();
  template <class F>
  void guarded(F f);
  void on_readable();
  bool wants_input() const;
  void take(std::string_view bytes);
  size_t process(std::string_view data);
  void begin_head();
  void on_head();
  void answer_from_filter(HttpResponse response);
  void on_request();
  void on_eof();
  void refuse(int status, std::string_view message);
  void refuse(const HttpResponse& response);
  bool account_body();
  void release_body();
  // Output.
  void queue(HttpAnswer& answer, HttpResponse response);
  void complete(HttpAnswer& answer);
  void flush();
  OutputQueue& output();
  size_t unsent() const { return out_.bytes(); }
  bool may_write(const HttpAnswer& answer);
  OutputAccount& account();
  void account_output();
  bool admits_output(size_t bytes);
  bool reads_too_slowly(Clock::time_point now);
  void linger();
  void lose_answer();
  bool idle() const;
  void update_busy();

  const std::shared_ptr<HttpShard> shard_;
  HttpServerState& state_;
  const HttpLimits& limits_;
  const Peer peer_;
  const int listener_;
  IoWatch watch_;
  Transport transport_;

  Phase phase_ = Phase::kHead;
  std::string in_;  // received, not consumed
  OutputQueue out_;
  std::string account_name_;
  std::shared_ptr<OutputAccount> account_;  // of the bytes in out_
  int64_t counted_output_bytes_ = 0;        // our share of the account
  std::unique_ptr<HttpParser> parser_;      // only while a request is being read
  std::shared_ptr<HttpAnswer> answer_;      // of the request in progress
  Clock::time_point deadline_;              // of the phase; max() = none
  Clock::time_point body_start_;
  // Since when bytes wait for the reader, or since it was last judged, and how many it has taken since then.
  Clock::time_point reading_since_;
  int64_t read_bytes_ = 0;
  Clock::time_point last_output_;   // that was queued
  int64_t counted_body_bytes_ = 0;  // our share of state_.body_bytes
  int64_t lingered_bytes_ = 0;
  bool waiting_read_ = false, waiting_write_ = false, read_wants_write_ = false, write_wants_read_ = false;
  bool flush_queued_ = false, busy_ = false, eof_ = false;
  bool close_after_flush_ = false;  // nothing follows what is in out_
  bool write_shut_ = false, looked_again_ = false;
};

}  // namespace lk
