// SPDX-License-Identifier: Apache-2.0
#include "lk/net/pending_answer.h"

#include <gtest/gtest.h>

#include <atomic>

#include "lk/net/http_server.h"

namespace lk {
namespace {

class Pending : public ::testing::Test {
 protected:
  void serve(HttpServer::Handler handler) {
    server_ = HttpServer::start({.listen = {{.address = "127.0.0.1:0"}}}, {}, std::move(handler)).value();
  }
  ClientRequest request() const { return {.method = "GET", .url = "http://" + server_->address(0) + "/x"}; }

  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<HttpClient> client_ = HttpClient::create().value();
};

TEST_F(Pending, AnAnswerIsWhole) {
  serve([](const HttpRequest& asked, const std::shared_ptr<HttpReply>& reply) {
    reply->respond({.status = 418, .headers = {{"x-it", "is"}}, .body = asked.path});
  });
  const Result<ClientAnswer> answer = PendingAnswer(*client_, request(), 2).wait();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(answer->status, 418);
  EXPECT_EQ(answer->body, "/x");
  EXPECT_EQ(answer->header("x-it"), "is");
  EXPECT_EQ(answer->header("x-other"), "");
}

TEST_F(Pending, ALongerOneIsBrokenOffBeforeItsEnd) {
  std::shared_ptr<HttpReply> held;
  serve([&](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/plain");
    reply->write("abc");  // and never ends
    held = reply;
  });
  EXPECT_EQ(PendingAnswer(*client_, request(), 2).wait().status().code(), StatusCode::kResourceExhausted);
  server_.reset();
}

TEST_F(Pending, StoppedOrCancelledItReturns) {
  std::vector<std::shared_ptr<HttpReply>> held;
  serve([&](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) { held.push_back(reply); });
  std::atomic<int> asked = 0;
  EXPECT_EQ(PendingAnswer(*client_, request(), 9).wait([&] { return ++asked == 2; }).status().code(),
            StatusCode::kCancelled);
  PendingAnswer other(*client_, request(), 9);
  client_->cancel(other.id());
  EXPECT_EQ(other.wait().status().code(), StatusCode::kCancelled);
  PendingAnswer last(*client_, request(), 9);
  client_.reset();
  EXPECT_EQ(last.wait().status().code(), StatusCode::kCancelled);
  server_.reset();
}

}  // namespace
}  // namespace lk
