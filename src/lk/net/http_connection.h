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

namespace lk {

// The state of one answer, shared by the connection and the handler's HttpReply.
struct HttpAnswer {
  enum class State { kWaiting, kStreaming, kComplete, kLost };
  State state = State::kWaiting;
  bool head_only = false;  // HEAD
  bool http_1_0 = false;
  bool keep_alive = true;
  std::function<void()> on_close;
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
  void respond(HttpAnswer& answer, const HttpResponse& response);
  void begin_stream(HttpAnswer& answer, int status, const HttpHeaders& headers, std::string_view content_type);
  bool write(HttpAnswer& answer, std::string_view bytes);
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
  void answer_from_filter(const HttpResponse& response);
  void on_request();
  void on_eof();
  void refuse(int status, std::string_view message);
  bool account_body();
  void release_body();
  // Output.
  void queue(HttpAnswer& answer, const HttpResponse& response);
  void complete(HttpAnswer& answer);
  void flush();
  std::string& output();
  size_t unsent() const { return out_.size() - out_sent_; }
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
  std::string in_;   // received, not consumed
  std::string out_;  // to be sent from out_sent_ on
  size_t out_sent_ = 0;
  std::unique_ptr<HttpParser> parser_;  // only while a request is being read
  std::shared_ptr<HttpAnswer> answer_;  // of the request in progress
  Clock::time_point deadline_;          // of the phase; max() = none
  Clock::time_point body_start_;
  Clock::time_point last_progress_;  // of sending
  int64_t counted_body_bytes_ = 0;   // our share of state_.body_bytes
  int64_t lingered_bytes_ = 0;
  bool waiting_read_ = false, waiting_write_ = false, read_wants_write_ = false, write_wants_read_ = false;
  bool flush_queued_ = false, busy_ = false, eof_ = false;
  bool close_after_flush_ = false;  // nothing follows what is in out_
  bool write_shut_ = false, looked_again_ = false;
};

}  // namespace lk
