// SPDX-License-Identifier: Apache-2.0
// Requests of this process itself: the way of all others, without a connection.
#include <utility>

#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

// Gathers the answer.
class OwnReply final : public HttpReply {
 public:
  OwnReply(int shard, std::function<void(HttpResponse)> done) : shard_(shard), done_(std::move(done)) {}
  ~OwnReply() override {
    if (done_) respond(error_response(api_error(internal_error("the request was dropped"))));
  }
  int shard() const override { return shard_; }
  void respond(HttpResponse response) override {
    for (std::string& part : response.parts) response.body += std::exchange(part, {});
    response.parts.clear();
    std::exchange(done_, nullptr)(std::move(response));
  }
  void begin_stream(int status, HttpHeaders headers, std::string_view content_type) override {
    stream_ = {.status = status, .headers = std::move(headers), .content_type = std::string(content_type)};
  }
  bool write(std::string_view bytes) override { return stream_.body += bytes, true; }
  bool write_parts(HttpParts parts) override {
    for (const std::string& part : parts) stream_.body += part;
    return true;
  }
  void end() override { respond(std::move(stream_)); }
  void on_close(std::function<void()>) override {}
  void on_silence(std::chrono::milliseconds, std::function<void()>) override {}
  void charge(const std::string&) override {}

 private:
  const int shard_;
  std::function<void(HttpResponse)> done_;
  HttpResponse stream_;
};

}  // namespace

void ServerImpl::ask(HttpRequest request, std::function<void(HttpResponse)> done) {
  const int shard = static_cast<int>(next_asked_++ % static_cast<unsigned>(http_->num_shards()));
  request.peer = "unix";
  request.content_length = std::ssize(request.body);
  auto taken = std::make_shared<HttpRequest>(std::move(request));
  http_->post(shard, [this, shard, taken, done = std::move(done)]() mutable {
    auto reply = std::make_shared<OwnReply>(shard, std::move(done));
    if (std::optional<HttpResponse> refusal = filter(*taken)) return reply->respond(std::move(*refusal));
    handle(std::move(*taken), std::move(reply));
  });
}

}  // namespace lk
