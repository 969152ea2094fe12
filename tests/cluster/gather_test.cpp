// SPDX-License-Identifier: Apache-2.0
// What a router asks of all replicas at once, over sockets: replicas that answer, refuse, say too much or nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>

#include "lk/cluster/fleet_headers.h"
#include "lk/cluster/replica_report.h"
#include "lk/cluster/router.h"
#include "lk/net/http_client.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr auto kPatience = 9s;  // less than a router waits for a replica: what a time-out brings about is too late
constexpr int kPlaces = 64;     // of gatherings at a time

// Answers each path as it is told; of what it is not told it says nothing until its client leaves.
class Replica {
 public:
  explicit Replica(std::string id) : id_(std::move(id)) {
    server_ = HttpServer::start(
                  {.listen = {{.address = "127.0.0.1:0"}}}, [](HttpRequest&) { return std::nullopt; },
                  [this](HttpRequest request, std::shared_ptr<HttpReply> reply) { handle(request, std::move(reply)); })
                  .value();
  }
  std::string url() const { return "http://" + server_->address(0); }
  void say(const std::string& path, int status, std::string body) { answers_[path] = {status, std::move(body)}; }
  std::string tokens;               // that it says its answers took
  std::vector<std::string> bodies;  // that were sent, of those that were answered
  // Until so many requests wait here.
  bool wait_for(int waiting) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return waiting_ == waiting; });
  }

 private:
  void handle(const HttpRequest& request, std::shared_ptr<HttpReply> reply) {
    if (request.path == "/v1/fleet/state") {
      reply->begin_stream(200, {}, "text/event-stream");
      reply->write("data: " + format_report({.id = id_, .ready = true, .context = 100}, nullptr) + "\n\n");
      return held_.push_back(std::move(reply));
    }
    if (const auto found = answers_.find(request.path); found != answers_.end()) {
      HttpResponse response{.status = found->second.first};
      if (request.method == "POST") {
        response.headers.emplace_back(kTokensHeader, tokens);
        bodies.push_back(request.body);
      }
      response.parts = split_into_parts(found->second.second);
      return reply->respond(std::move(response));
    }
    count(1);
    reply->on_close([this] { count(-1); });
    held_.push_back(std::move(reply));
  }
  void count(int more) {
    {
      std::lock_guard lock(mutex_);
      waiting_ += more;
    }
    changed_.notify_all();
  }

  const std::string id_;
  std::map<std::string, std::pair<int, std::string>> answers_;  // set before anybody asks
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;                               // guarded by mutex_
  std::vector<std::shared_ptr<HttpReply>> held_;  // the shard's
  std::unique_ptr<HttpServer> server_;
};

class Entry final : public RouterEntry {
 public:
  std::optional<HttpResponse> on_body(int64_t) override { return std::nullopt; }
  std::optional<HttpResponse> admit(const RequestFacts*, int64_t, int64_t) override { return std::nullopt; }
  void finish(int64_t used_tokens, bool) override { used_ = used_tokens; }
  static int64_t used() { return used_; }  // of the last answer

 private:
  static inline std::atomic<int64_t> used_{-1};
};

// Lets everybody in: what they ask for is said by the path, who they are by a header.
class Gate final : public RouterGate {
 public:
  std::optional<HttpResponse> judge(HttpRequest& head) override {
    auto entry = std::make_shared<Entry>();
    entry->how = head.path.starts_with("/list")    ? RoutedAs::kModelList
                 : head.path.starts_with("/usage") ? RoutedAs::kUsageList
                 : head.path.starts_with("/one")   ? RoutedAs::kWhoKnows
                 : head.method == "POST"           ? RoutedAs::kOne
                                                   : RoutedAs::kOwn;
    entry->generates = head.path == "/v1/completions";
    entry->payer = head.header("payer");
    head.admission = std::move(entry);
    return std::nullopt;
  }
  void answer(HttpRequest, std::shared_ptr<HttpReply> reply, std::function<void(std::function<void()>)>) override {
    reply->respond({.status = 404});
  }
  bool work(const RouterEntry&, std::function<void()> run, std::function<void()>) override {
    run();
    return true;
  }
  void set_share(int, int) override {}
  void stop() override {}
  std::string metrics() const override { return "of the gate\n"; }
};

struct Answer {
  int status = 0;
  HttpHeaders headers;
  std::string body;
  std::string header(std::string_view name) const {
    for (const auto& [key, value] : headers)
      if (key == name) return value;
    return "";
  }
};

class GatherTest : public ::testing::Test {
 protected:
  void start() {
    RouterOptions options{.listen = {{.address = "127.0.0.1:0"}}};
    options.fleet.urls = {a_.url(), b_.url()};
    options.fleet.silence = 24h;  // one report is enough
    router_ = Router::start(options, std::make_unique<Gate>()).value();
    for (int i = 0; i < 2; ++i)
      while (router_->fleet().show(std::chrono::steady_clock::now())[static_cast<size_t>(i)].life !=
             FleetView::Life::kReady)
        std::this_thread::sleep_for(1ms);
  }
  struct Asked {
    int64_t id = 0;
    std::future<Answer> answer;
  };
  Asked send(const std::string& path, const std::string& payer = "someone", const std::string& body = "") {
    const auto done = std::make_shared<std::promise<Answer>>();
    const auto answer = std::make_shared<Answer>();
    ClientCallbacks callbacks;
    callbacks.on_head = [answer](int status, const HttpHeaders& headers) {
      answer->status = status;
      answer->headers = headers;
    };
    callbacks.on_data = [answer](std::string_view bytes) { answer->body += bytes; };
    callbacks.on_done = [answer, done](const Status&) { done->set_value(*answer); };
    Asked asked{.answer = done->get_future()};
    asked.id = client_->send(
        {.method = body.empty() ? "GET" : "POST",
         .url = "http://" + router_->address(0) + path,
         .headers = {{"payer", payer}, {"x-request-id", "chosen-twice"}, {"content-type", "application/json"}},
         .body = body,
         .timeout = kPatience},
        std::move(callbacks));
    return asked;
  }
  Answer get(const std::string& path, const std::string& payer = "someone") { return send(path, payer).answer.get(); }

  Replica a_{"a"}, b_{"b"};
  std::unique_ptr<Router> router_;
  std::unique_ptr<HttpClient> client_ = HttpClient::create().value();
};

std::string list_of(const std::string& name, size_t bytes = 0) {
  return R"({"object":"list","data":[{"id":")" + name + R"(","parent":"base"}],"rest":")" + std::string(bytes, 'x') +
         R"("})";
}
constexpr size_t kTooLarge = size_t{17} << 20;

TEST_F(GatherTest, ALookUpWaitsForNobodyOnceItIsFound) {
  b_.say("/one", 200, R"({"id":"sql"})");
  start();
  const Answer answer = get("/one");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, R"({"id":"sql"})");
  EXPECT_TRUE(a_.wait_for(0)) << "who said nothing is let go";
}

TEST_F(GatherTest, WhatIsNowhereIsSaidOnlyWhenAllWereAsked) {
  a_.say("/one", 404, "{}");
  b_.say("/one", 200, std::string(kTooLarge, 'x'));
  a_.say("/one/none", 404, "{}");
  b_.say("/one/none", 404, "{}");
  a_.say("/one/refused", 404, "{}");
  b_.say("/one/refused", 500, "{}");
  start();
  const Answer answer = get("/one");
  EXPECT_EQ(answer.status, 502);
  EXPECT_THAT(answer.body, HasSubstr("replica_unreachable"));
  EXPECT_EQ(answer.header(kReplicasHeader), "1/2");
  EXPECT_EQ(get("/one/none").status, 404);
  EXPECT_EQ(get("/one/none").header(kReplicasHeader), "2/2");
  EXPECT_EQ(get("/one/refused").status, 500);
}

TEST_F(GatherTest, ListsSayHowManyReplicasTheyAreOf) {
  for (const std::string path : {"/list", "/list/large", "/list/broken"}) a_.say(path, 200, list_of("sql"));
  b_.say("/list", 200, list_of("tag"));
  b_.say("/list/large", 200, list_of("tag", kTooLarge));
  b_.say("/list/broken", 200, "{");
  start();
  const Answer whole = get("/list");
  EXPECT_EQ(whole.header(kReplicasHeader), "2/2");
  EXPECT_THAT(whole.body, HasSubstr(R"({"id":"sql","parent":"base"},{"id":"tag","parent":"base"})"));
  for (const std::string path : {"/list/large", "/list/broken"}) {
    const Answer part = get(path);
    EXPECT_EQ(part.status, 200) << path;
    EXPECT_EQ(part.header(kReplicasHeader), "1/2") << path;
    EXPECT_THAT(part.body, ::testing::Not(HasSubstr("tag")));
  }
}

TEST_F(GatherTest, WhoLeavesIsAskedForNoLonger) {
  start();
  const Asked asked = send("/list");
  ASSERT_TRUE(a_.wait_for(1));
  ASSERT_TRUE(b_.wait_for(1));
  client_->cancel(asked.id);
  EXPECT_TRUE(a_.wait_for(0));
  EXPECT_TRUE(b_.wait_for(0));
}

TEST_F(GatherTest, WhatAReplicaSaysThatAnAnswerTookIsWithinReason) {
  a_.say("/v1/embeddings", 200, "{}");
  b_.say("/v1/embeddings", 200, "{}");
  start();
  for (const auto& [told, used] : {std::pair("70", 70), {"-5", 0}, {"9223372036854775807", 200}, {"x", 0}}) {
    a_.tokens = b_.tokens = told;
    ASSERT_EQ(send("/v1/embeddings", "someone", R"({"input":["a","b"]})").answer.get().status, 200);
    EXPECT_EQ(Entry::used(), used) << told;
  }
}

TEST_F(GatherTest, EqualIdsOfRequestsMakeNoEqualAnswers) {
  for (Replica* replica : {&a_, &b_}) replica->say("/v1/completions", 400, "{}");
  start();
  for (int i = 0; i < 2; ++i)
    ASSERT_EQ(send("/v1/completions", "someone", R"({"stream":true})").answer.get().status, 400);
  std::vector<std::string> bodies = a_.bodies;
  bodies.insert(bodies.end(), b_.bodies.begin(), b_.bodies.end());
  ASSERT_GE(bodies.size(), 2u);
  EXPECT_THAT(bodies[0], HasSubstr("\"seed\":"));
  const auto seed = [](const std::string& body) { return body.substr(body.find("\"seed\":"), 20); };
  EXPECT_NE(seed(bodies[0]), seed(bodies[1]));
}

TEST_F(GatherTest, OnePayerLeavesRoomForOthersAndForFigures) {
  a_.say("/list/quick", 200, list_of("sql"));
  b_.say("/list/quick", 200, list_of("sql"));
  start();
  std::vector<Asked> many;
  for (int i = 0; i < kPlaces; ++i) many.push_back(send("/list", "greedy"));
  ASSERT_TRUE(a_.wait_for(kPlaces));
  const Answer refused = get("/list/quick", "greedy");
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("overloaded"));
  EXPECT_EQ(refused.header("retry-after"), "1");
  EXPECT_EQ(get("/list/quick", "other").status, 200);
  EXPECT_THAT(get("/metrics").body, HasSubstr("of the gate"));
  for (const Asked& asked : many) client_->cancel(asked.id);
  ASSERT_TRUE(a_.wait_for(0));
  ASSERT_TRUE(b_.wait_for(0));
  // Places are given back with the last exchange, which may be a moment later.
  Answer again;
  for (const auto end = std::chrono::steady_clock::now() + kPatience;
       again.status != 200 && std::chrono::steady_clock::now() < end;)
    again = get("/list/quick", "greedy");
  EXPECT_EQ(again.status, 200);
}

}  // namespace
}  // namespace lk
