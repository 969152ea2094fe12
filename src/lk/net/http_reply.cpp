// SPDX-License-Identifier: Apache-2.0
#include "lk/net/http_reply.h"

#include <utility>

#include "lk/base/check.h"
#include "lk/net/http_connection.h"

namespace lk {
namespace {

class ConnectionReply final : public HttpReply {
 public:
  ConnectionReply(std::shared_ptr<HttpConnection> connection, std::shared_ptr<HttpAnswer> answer)
      : connection_(std::move(connection)), answer_(std::move(answer)) {}

  // The last reference may die on any thread: tasks that captured it are dropped where they end.
  ~ConnectionReply() override {
    IoLoop& loop = connection_->shard().loop;
    if (loop.in_loop()) {
      connection_->dropped(*answer_);
    } else {
      loop.post([connection = std::move(connection_), answer = std::move(answer_)] { connection->dropped(*answer); });
    }
  }
  int shard() const override { return connection_->shard().index; }
  void respond(HttpResponse response) override {
    check_thread();
    connection_->respond(*answer_, std::move(response));
  }
  void begin_stream(int status, HttpHeaders headers, std::string_view content_type) override {
    check_thread();
    connection_->begin_stream(*answer_, status, headers, content_type);
  }
  bool write(std::string_view bytes) override {
    check_thread();
    return connection_->write(*answer_, bytes);
  }
  bool write_parts(HttpParts parts) override {
    check_thread();
    return connection_->write_parts(*answer_, std::move(parts));
  }
  void end() override {
    check_thread();
    connection_->end(*answer_);
  }
  void on_close(std::function<void()> callback) override {
    check_thread();
    if (answer_->state == HttpAnswer::State::kLost) {
      connection_->shard().call_later(std::move(callback));
    } else if (answer_->state != HttpAnswer::State::kComplete) {
      answer_->on_close = std::move(callback);
    }
  }
  void on_silence(std::chrono::milliseconds interval, std::function<void()> callback) override {
    check_thread();
    if (answer_->state != HttpAnswer::State::kWaiting && answer_->state != HttpAnswer::State::kStreaming) return;
    answer_->silence = interval;
    answer_->on_silence = std::move(callback);
  }
  void charge(const std::string& account) override {
    check_thread();
    connection_->charge(account);
  }

 private:
  void check_thread() const { LK_DCHECK(connection_->shard().loop.in_loop(), "HttpReply used outside its shard"); }
  std::shared_ptr<HttpConnection> connection_;
  std::shared_ptr<HttpAnswer> answer_;
};

}  // namespace

std::shared_ptr<HttpReply> make_http_reply(std::shared_ptr<HttpConnection> connection,
                                           std::shared_ptr<HttpAnswer> answer) {
  return std::make_shared<ConnectionReply>(std::move(connection), std::move(answer));
}

}  // namespace lk
