// SPDX-License-Identifier: Apache-2.0
// HttpClient and HttpServer against each other.
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>

#include "lk/net/http_client.h"
#include "lk/net/http_server.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

struct Answer {
  int code = 0;
  std::string body;
  Status status;
};

std::future<Answer> start(HttpClient& client, ClientRequest request, int64_t* id = nullptr) {
  auto answer = std::make_shared<Answer>();
  auto promise = std::make_shared<std::promise<Answer>>();
  const int64_t number =
      client.send(std::move(request), {.on_head = [answer](int code, const HttpHeaders&) { answer->code = code; },
                                       .on_data = [answer](std::string_view bytes) { answer->body += bytes; },
                                       .on_done =
                                           [answer, promise](Status status) {
                                             answer->status = std::move(status);
                                             promise->set_value(*answer);
                                           }});
  if (id) *id = number;
  return promise->get_future();
}

std::unique_ptr<HttpServer> serve(const std::string& address, int shards, HttpServer::Handler handler) {
  HttpServerOptions options{.listen = {{.address = address}}, .num_shards = shards};
  return HttpServer::start(options, {}, std::move(handler)).value();
}

void echo(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  reply->respond({.body = request.method + " " + request.path + " " + request.body});
}

TEST(ClientAndServer, RequestsShareAConnection) {
  const auto server = serve("127.0.0.1:0", 1, echo);
  const auto client = HttpClient::create().value();
  for (int i = 0; i < 50; ++i) {
    const Answer answer = start(*client, {.url = "http://" + server->address(0) + "/v1/x",
                                          .body = std::string(static_cast<size_t>(i) * 5000, 'b')})
                              .get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.message();
    EXPECT_EQ(answer.body.size(), 11 + static_cast<size_t>(i) * 5000);
  }
  EXPECT_EQ(server->stats().connections, 1);
}

TEST(ClientAndServer, OverAUnixSocket) {
  testing::TempDir dir;
  const auto server = serve("unix:" + dir.file("s"), 1, echo);
  const auto client = HttpClient::create().value();
  EXPECT_EQ(start(*client, {.method = "GET", .url = "unix:" + dir.file("s") + ":/v1/models"}).get().body,
            "GET /v1/models ");
}

TEST(ClientAndServer, HundredsOfStreamsAtOnceAllEndComplete) {
  constexpr int kStreams = 400, kEvents = 50;
  struct Streams {
    std::mutex mutex;
    std::vector<std::vector<std::shared_ptr<HttpReply>>> by_shard{2};
    int count = 0;
  } streams;
  HttpServer* server_ptr = nullptr;
  const auto server = serve("127.0.0.1:0", 2, [&](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    const std::lock_guard lock(streams.mutex);
    streams.by_shard[static_cast<size_t>(reply->shard())].push_back(reply);
    if (++streams.count < kStreams) return;
    for (int shard = 0; shard < 2; ++shard)  // every stream is open: now all of them get their events
      server_ptr->post(shard, [replies = std::move(streams.by_shard[static_cast<size_t>(shard)])] {
        for (int i = 0; i < kEvents; ++i)
          for (const auto& reply : replies) reply->write(fmt::format("data: {}\n\n", i));
        for (const auto& reply : replies) reply->end();
      });
  });
  server_ptr = server.get();
  const auto client = HttpClient::create({.num_threads = 2}).value();
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < kStreams; ++i) answers.push_back(start(*client, {.url = "http://" + server->address(0) + "/"}));
  for (auto& future : answers) {
    const Answer answer = future.get();
    ASSERT_TRUE(answer.status.ok()) << answer.status.message();
    int next = 0;
    SseParser parser([&](std::string_view data) { EXPECT_EQ(data, std::to_string(next++)); });
    EXPECT_TRUE(parser.push(answer.body));
    EXPECT_EQ(next, kEvents);
  }
}

TEST(ClientAndServer, TheServerSeesACancelledStream) {
  std::promise<void> opened, closed;
  const auto server = serve("127.0.0.1:0", 1, [&](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream(200, {}, "text/event-stream");
    reply->on_close([&, reply] { closed.set_value(); });
    opened.set_value();
  });
  const auto client = HttpClient::create().value();
  int64_t id = 0;
  auto answer = start(*client, {.url = "http://" + server->address(0) + "/"}, &id);
  opened.get_future().wait();
  client->cancel(id);
  EXPECT_EQ(answer.get().status.code(), StatusCode::kCancelled);
  EXPECT_EQ(closed.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
}

}  // namespace
}  // namespace lk
