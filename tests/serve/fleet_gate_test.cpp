// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/route/fleet_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "lk/cluster/fleet_headers.h"
#include "lk/serve/access/principal_json.h"
#include "lk/serve/access/state_store.h"
#include "lk/serve/http/routes.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kContext = 100;

// What is answered, and by whom, at once.
class Reply final : public HttpReply {
 public:
  int status = 0;
  int shard() const override { return 0; }
  void respond(HttpResponse response) override { status = response.status; }
  void begin_stream(int, HttpHeaders, std::string_view) override {}
  bool write(std::string_view) override { return false; }
  bool write_parts(HttpParts) override { return false; }
  void end() override {}
  void on_close(std::function<void()>) override {}
  void on_silence(std::chrono::milliseconds, std::function<void()>) override {}
  void charge(const std::string&) override {}
};

class FleetGateTest : public ::testing::Test {
 protected:
  // A gate that judges keys; its tenant may have two answers in flight and so many tokens a minute.
  void judge_keys(int64_t tokens_per_minute = 0, int64_t max_in_flight = 2) {
    auto store = StateStore::open(dir_.file("state.db")).value();
    ASSERT_TRUE(store
                    ->put_tenant({.name = "acme",
                                  .weight = 2,
                                  .max_in_flight = max_in_flight,
                                  .tokens_per_minute = tokens_per_minute,
                                  .adapters = {"sql*"}})
                    .ok());
    infer_ = store->create_key("acme", static_cast<uint8_t>(Scope::kInfer), "", 0)->text;
    admin_ = store->create_key("acme", static_cast<uint8_t>(Scope::kAdmin), "", 0)->text;
    options_.judges = true;
    store_ = std::move(store);
  }
  void make() { gate_ = FleetGate::create(options_, std::move(store_)).value(); }
  void TearDown() override {
    if (gate_) gate_->stop();
  }
  static HttpRequest head(const std::string& method, const std::string& path, const std::string& key = "") {
    HttpRequest request{.method = method, .target = path, .path = path, .peer = "10.0.0.1", .peer_account = "10.0.0.1"};
    request.headers = {{"host", "127.0.0.1"}};
    if (!key.empty()) request.headers.emplace_back("authorization", "Bearer " + key);
    return request;
  }
  int status(HttpRequest request) {
    const std::optional<HttpResponse> refusal = gate_->judge(request);
    return refusal ? refusal->status : 200;
  }
  // A request that is let in, with its body.
  int ask(HttpRequest& request, const std::string& body) {
    if (const std::optional<HttpResponse> refusal = gate_->judge(request)) return refusal->status;
    const auto facts = read_request_facts(body);
    const auto refusal = entry(request).admit(facts ? &*facts : nullptr, std::ssize(body), kContext);
    return refusal ? refusal->status : 200;
  }
  static RouterEntry& entry(const HttpRequest& request) { return static_cast<RouterEntry&>(*request.admission); }

  testing::TempDir dir_;
  FleetGateOptions options_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<FleetGate> gate_;
  std::string infer_, admin_;
};

TEST_F(FleetGateTest, EveryRouteOfTheServerIsRoutedOrSaidNotToBe) {
  judge_keys();
  make();
  for (const Route& route : routes()) {
    std::string path(route.path.substr(0, route.path.find('{')));
    if (path.size() < route.path.size()) path += "x";
    HttpRequest request = head(std::string(route.method), path, admin_);
    const std::optional<HttpResponse> refusal = gate_->judge(request);
    if (route.access == Access::kFleet) {
      EXPECT_EQ(refusal ? refusal->status : 200, 404) << route.path;
      continue;
    }
    ASSERT_FALSE(refusal) << route.path << " " << refusal->body;
    EXPECT_EQ(entry(request).how, route.routed) << route.path;
    // Who has no key, or one that is wrong, is told before a replica hears of it.
    for (const std::string key : {"", "lk-wrong", "lk-aaaaaaaaaaaa-bbbb"})
      EXPECT_EQ(status(head(std::string(route.method), path, key)), route.access == Access::kOpen ? 200 : 401)
          << route.method << " " << route.path << " " << key;
  }
  EXPECT_EQ(status(head("GET", "/v1/none", admin_)), 404);
  EXPECT_EQ(status(head("DELETE", "/v1/models", admin_)), 405);
  EXPECT_EQ(status(head("GET", "/v1/status", infer_)), 403) << "its scope";
  EXPECT_EQ(status(head("POST", "/v1/adapters", infer_)), 403);
  EXPECT_EQ(status(head("GET", "/v1/keys", infer_)), 403);
  EXPECT_THAT(gate_->metrics(), HasSubstr("lorikeet_route_door_refusals_total{reason=\"auth\"}"));
}

TEST_F(FleetGateTest, SaysWhoseRequestItIsUnderTheFleetKey) {
  judge_keys();
  options_.fleet_key = "lk-fleetfleetfl-secret";
  make();
  HttpRequest request = head("POST", "/v1/completions", infer_);
  ASSERT_EQ(ask(request, "{}"), 200);
  const RouterEntry& let_in = entry(request);
  EXPECT_TRUE(let_in.is_known);
  EXPECT_EQ(let_in.account, "tenant acme");
  ASSERT_EQ(let_in.identity.size(), 2u);
  EXPECT_EQ(let_in.identity[0], std::pair(std::string(kFleetKeyHeader), options_.fleet_key));
  EXPECT_EQ(let_in.identity[1].first, kPrincipalHeader);
  const Result<Principal> who = parse_principal(let_in.identity[1].second);
  ASSERT_TRUE(who.ok());
  EXPECT_EQ(who->tenant->name, "acme");
  EXPECT_EQ(who->tenant->weight, 2);
  EXPECT_EQ(who->tenant->max_in_flight, 0) << "limits are the router's";
  EXPECT_NE(who->tenant->cache_salt, 0u);
  EXPECT_TRUE(who->tenant->may_use("sql2"));
  EXPECT_FALSE(who->tenant->may_use("base"));
  EXPECT_EQ(who->scopes, static_cast<uint8_t>(Scope::kInfer));
  EXPECT_EQ(status(head("GET", "/metrics", options_.fleet_key)), 200) << "the fleet key opens the router's figures";
  EXPECT_EQ(status(head("POST", "/v1/completions", options_.fleet_key)), 401) << "and nothing else";
}

TEST_F(FleetGateTest, LimitsHoldHere) {
  judge_keys(1000);
  make();
  HttpRequest first = head("POST", "/v1/chat/completions", infer_), second = first, third = first;
  EXPECT_EQ(ask(first, R"({"max_tokens":10})"), 200);
  EXPECT_EQ(ask(second, R"({"max_tokens":10})"), 200);
  EXPECT_EQ(status(third), 429);
  entry(first).finish(12);
  EXPECT_EQ(ask(third, R"({"prompt":["a","b"]})"), 429) << "two answers, one place";
  third.admission.reset();
  entry(second).finish(12);
  HttpRequest many = head("POST", "/v1/completions", infer_);
  EXPECT_EQ(ask(many, R"({"n":3})"), 400) << "never: more than it may have";
  many.admission.reset();
  // Who asks for as much as fits is charged the context, and what was really used in the end.
  HttpRequest large = head("POST", "/v1/completions", infer_);
  EXPECT_EQ(ask(large, R"({"n":2,"max_tokens":1e9})"), 200);
  EXPECT_THAT(gate_->metrics(), HasSubstr("lorikeet_route_tenant_in_flight{tenant=\"acme\"} 2\n"));
  entry(large).finish(3000);  // more than two minutes' tokens
  EXPECT_EQ(status(head("POST", "/v1/completions", infer_)), 429);
  EXPECT_EQ(status(head("POST", "/tokenize", infer_)), 429);
  EXPECT_EQ(status(head("GET", "/v1/models", infer_)), 200) << "which costs nothing";
  const std::string metrics = gate_->metrics();
  EXPECT_THAT(metrics, HasSubstr("lorikeet_route_tenant_tokens_total{tenant=\"acme\"} 3024\n"));
  EXPECT_THAT(metrics, HasSubstr("lorikeet_route_tenant_in_flight{tenant=\"acme\"} 0\n"));
}

// Who leaves before the first token has had a prompt computed.
TEST_F(FleetGateTest, ThePromptOfAClientThatLeftIsCharged) {
  judge_keys(1000);
  make();
  HttpRequest request = head("POST", "/v1/completions", infer_);
  ASSERT_EQ(ask(request, "{\"prompt\":\"" + std::string(1000, 'x') + "\"}"), 200);
  entry(request).finish(0, true);
  EXPECT_THAT(gate_->metrics(), HasSubstr("lorikeet_route_tenant_tokens_total{tenant=\"acme\"} 254\n"));
  HttpRequest refused = head("POST", "/v1/completions", infer_);
  ASSERT_EQ(ask(refused, "{}"), 200);
  entry(refused).finish(0);  // nobody was there to answer
  EXPECT_THAT(gate_->metrics(), HasSubstr("lorikeet_route_tenant_tokens_total{tenant=\"acme\"} 254\n"));
}

// What a replica will make is what is charged, however it is written.
TEST_F(FleetGateTest, LengthsAreThoseThatReplicasGoBy) {
  judge_keys(1000, 0);
  make();
  // The bucket has 1000 tokens: as many requests fit as their charge leaves room for.
  const auto fit = [&](const std::string& path, const std::string& body) {
    int64_t count = 0;
    std::vector<HttpRequest> let_in;
    for (; count < 1000; ++count) {
      let_in.push_back(head("POST", path, infer_));
      if (ask(let_in.back(), body) != 200) break;
    }
    for (HttpRequest& request : let_in)
      if (request.admission) entry(request).finish(0);
    return count;
  };
  // A prompt of about 12 tokens each, and the output.
  EXPECT_EQ(fit("/v1/completions", R"({"max_completion_tokens":1,"max_tokens":88})"), 10);
  EXPECT_GE(fit("/v1/completions", R"({"max_completion_tokens":88})"), 1000 / (16 + 9)) << "OpenAI's 16";
  EXPECT_LE(fit("/v1/completions", R"({"max_completion_tokens":1})"), 1000 / 16);
  EXPECT_LE(fit("/v1/completions", R"({"max_tokens":1,"max_tokens":88})"), 11);
  EXPECT_LE(fit("/v1/chat/completions", R"({"max_tokens":1,"max_completion_tokens":88})"), 11);
  EXPECT_LE(fit("/v1/chat/completions", R"({"n":1,"n":2,"max_tokens":44})"), 11);
}

// Nobody's path makes a tenant, or takes one away, that is not for keys of scope admin.
TEST_F(FleetGateTest, OnlyRoutesOfAdministratorsAdministrate) {
  judge_keys();
  make();
  for (const auto& [method, path] : {std::pair("GET", "/v1/status"), {"POST", "/v1/new"}, {"DELETE", "/v1/new/acme"}}) {
    HttpRequest request = head(method, path, admin_);
    const auto reply = std::make_shared<Reply>();
    gate_->answer(std::move(request), reply, [](const std::function<void()>&) {});
    EXPECT_EQ(reply->status, 404) << path;
  }
}

TEST_F(FleetGateTest, NobodySaysHowAnAnswerBegan) {
  make();
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"}) {
    HttpRequest request = head("POST", path);
    EXPECT_EQ(ask(request, R"({"lorikeet_resume":{}})"), 403) << path;
  }
}

TEST_F(FleetGateTest, WithoutKeysPagesOfOthersAreKeptOut) {
  make();
  EXPECT_TRUE(gate_->open());
  EXPECT_EQ(status(head("GET", "/v1/models")), 200);
  HttpRequest other = head("GET", "/v1/models");
  other.headers = {{"host", "evil.example"}};
  EXPECT_EQ(status(other), 403);
  other.headers = {{"host", "127.0.0.1"}, {"origin", "http://evil.example"}};
  EXPECT_EQ(status(other), 403);
  other.headers = {{"host", "127.0.0.1:8080"}, {"origin", "http://127.0.0.1:8080"}};
  EXPECT_EQ(status(other), 200) << "the console";
  HttpRequest request = head("POST", "/v1/completions");
  ASSERT_EQ(ask(request, "{}"), 200);
  EXPECT_TRUE(entry(request).identity.empty());
  EXPECT_EQ(status(head("GET", "http://other/")), 400);
}

TEST_F(FleetGateTest, KeysThatReplicasJudgeMustBeThere) {
  options_.fleet_key = "lk-fleetfleetfl-secret";
  make();
  EXPECT_FALSE(gate_->open());
  EXPECT_EQ(status(head("POST", "/v1/completions")), 401);
  EXPECT_EQ(status(head("GET", "/metrics", "lk-some-key")), 401);
  EXPECT_EQ(status(head("GET", "/metrics", options_.fleet_key)), 200);
  HttpRequest request = head("POST", "/v1/completions", "lk-some-key");
  ASSERT_EQ(ask(request, "{}"), 200);
  EXPECT_FALSE(entry(request).is_known) << "the key goes on";
  EXPECT_EQ(entry(request).identity.size(), 1u);
  HttpRequest other = head("POST", "/v1/completions", "lk-abcdefghijkl-secret");
  ASSERT_EQ(ask(other, "{}"), 200);
  EXPECT_EQ(entry(other).account, "key lk-abcdefghijkl") << "nothing of its secret";
}

// Lists that wait to be merged: one who asks for many leaves room for others.
TEST_F(FleetGateTest, WorkIsBoundedAndShared) {
  make();
  HttpRequest many = head("GET", "/v1/models"), other = many;
  other.peer_account = "10.0.0.2";
  ASSERT_EQ(status(many), 200);
  ASSERT_FALSE(gate_->judge(many));
  ASSERT_FALSE(gate_->judge(other));
  std::promise<void> begun, go_on, done;
  const auto refused = [] { ADD_FAILURE() << "nothing waits so long"; };
  ASSERT_TRUE(gate_->work(
      entry(many),
      [&] {
        begun.set_value();
        go_on.get_future().wait();
      },
      refused));
  begun.get_future().wait();
  int taken = 0;
  while (taken < 100'000 && gate_->work(
                                entry(many), [] {}, refused))
    ++taken;
  EXPECT_EQ(taken, 256);
  EXPECT_TRUE(gate_->work(
      entry(other), [&] { done.set_value(); }, refused));
  go_on.set_value();
  done.get_future().wait();
}

// What it is told to judge by may have no key yet, or no more.
TEST_F(FleetGateTest, OpensToNobodyWithoutKeys) {
  store_ = StateStore::open(dir_.file("state.db")).value();
  options_.judges = true;
  make();
  EXPECT_FALSE(gate_->open());
  EXPECT_EQ(status(head("POST", "/v1/completions")), 401);
}

TEST_F(FleetGateTest, ATenantThatDoesNotFitAHeadIsToldSo) {
  judge_keys();
  Tenant tenant{.name = "acme"};
  for (int i = 0; i < 500; ++i) tenant.adapters.push_back("a-long-name-of-an-adapter-" + std::to_string(i));
  ASSERT_TRUE(store_->put_tenant(tenant).ok());
  make();
  HttpRequest request = head("POST", "/v1/completions", infer_);
  const std::optional<HttpResponse> refusal = gate_->judge(request);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->status, 403) << "asking again is no use";
  EXPECT_THAT(refusal->body, HasSubstr("tenant_too_large"));
}

}  // namespace
}  // namespace lk
