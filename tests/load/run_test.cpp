// SPDX-License-Identifier: Apache-2.0
// Runs against a server that answers after known delays: a delay is a lower bound that no load of the machine can
// break.
#include <gtest/gtest.h>

#include <atomic>
#include <latch>

#include <boost/json.hpp>

#include "lk/load/runner.h"
#include "lk/load/workload.h"
#include "testing/raw_server.h"

namespace lk::load {
namespace {

using namespace std::chrono_literals;
using testing::RawPeer;
using testing::RawServer;
namespace json = boost::json;

constexpr auto kFirst = 30ms, kGap = 5ms;

// Streams max_tokens events: the first after kFirst, the others kGap apart.
bool stream_answer(RawPeer& peer, const testing::RawRequest& request) {
  const auto chunk = [](const std::string& event) { return fmt::format("{:x}\r\n{}\r\n", event.size(), event); };
  const json::object body = json::parse(request.body).as_object();
  const int64_t tokens = body.at("max_tokens").as_int64();
  if (!peer.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"))
    return false;
  for (int64_t i = 0; i < tokens; ++i) {
    std::this_thread::sleep_for(i == 0 ? kFirst : kGap);
    if (!peer.write(chunk("data: {\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n"))) return false;
  }
  const size_t prompt = body.at("prompt").as_array().size();
  return peer.write(
      chunk(fmt::format(
          "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
          prompt, tokens)) +
      "0\r\n\r\n");
}

void serve_streams(RawPeer& peer) {
  while (const auto request = peer.read_request())
    if (!stream_answer(peer, *request)) return;
}

struct Load {
  std::unique_ptr<HttpClient> client = HttpClient::create().value();
  WorkloadOptions workload{.input = {4, 4}, .output = {6, 6}};
  RunOptions run{.max_in_flight = 4, .num_requests = 20};
  explicit Load(const std::string& url) {
    run.plan = [this, url](int64_t index) {
      GeneratedRequest request = make_request(workload, index, "m");
      return PlannedRequest{.url = url + request.path,
                            .body = request.body,
                            .adapter = static_cast<int>(index % 2),
                            .max_tokens = request.max_tokens};
    };
  }
};

TEST(RunLoad, AClosedLoopMeasuresTheDelaysOfTheServer) {
  RawServer server(serve_streams);
  Load load(server.url());
  const RunResult result = run_load(*load.client, load.run);
  const LoadReport r = make_report(result.records, result.facts, parse_slo("ttft=60000,tpot=60000").value());
  EXPECT_EQ(r.ok, 20) << (r.error_examples.empty() ? "" : r.error_examples.begin()->second);
  EXPECT_EQ(r.prompt_tokens, 80);
  EXPECT_EQ(r.output_tokens, 120);
  EXPECT_EQ(r.peak_concurrency, 4);
  EXPECT_EQ(server.num_connections(), 4);
  EXPECT_DOUBLE_EQ(*r.slo_attainment, 1);
  EXPECT_EQ(r.delay_ms.count, 0);  // a closed loop has no schedule
  EXPECT_EQ(r.itl_ms.count, 100);
  for (const RequestRecord& record : result.records) {
    EXPECT_GE(record.ttft_s(), 0.030);
    EXPECT_GE(record.e2e_s(), 0.030 + 5 * 0.005);
    double gaps = 0;
    for (const float gap : record.gaps_s) gaps += static_cast<double>(gap);
    EXPECT_NEAR(gaps, record.e2e_s() - record.ttft_s(), 1e-5);
    EXPECT_NEAR(record.tpot_s(), gaps / 5, 1e-5);
  }
  EXPECT_GE(r.duration_s, 5 * 0.055);  // five rounds of four
  EXPECT_NEAR(r.requests_per_s * r.duration_s, 20, 1e-9);
  EXPECT_EQ(r.adapters.at(0).ok, 10);
  EXPECT_EQ(r.adapters.at(1).ok, 10);
}

TEST(RunLoad, AnOpenLoopDoesNotWaitForAnswers) {
  std::latch all_sent(30);
  RawServer server([&](RawPeer& peer) {
    const auto request = peer.read_request();
    if (!request) return;
    all_sent.arrive_and_wait();  // no answer before the last request
    stream_answer(peer, *request);
  });
  Load load(server.url());
  load.run = {
      .open_loop = true, .arrival = ArrivalKind::kConstant, .rate = 300, .num_requests = 30, .plan = load.run.plan};
  const RunResult result = run_load(*load.client, load.run);
  const LoadReport r = make_report(result.records, result.facts, {});
  EXPECT_EQ(r.ok, 30);
  EXPECT_EQ(r.peak_concurrency, 30);
  EXPECT_EQ(r.delay_ms.count, 30);
  for (size_t i = 0; i < result.records.size(); ++i) {
    EXPECT_NEAR(result.records[i].scheduled_s, static_cast<double>(i) / 300, 1e-9);
    EXPECT_GE(result.records[i].sent_s, result.records[i].scheduled_s);  // never early
  }
}

TEST(RunLoad, ACapOfAnOpenLoopShowsAsSendDelay) {
  RawServer server(serve_streams);
  Load load(server.url());
  load.run = {.open_loop = true,
              .arrival = ArrivalKind::kConstant,
              .rate = 1000,
              .max_in_flight = 1,
              .num_requests = 6,
              .plan = load.run.plan};
  const RunResult result = run_load(*load.client, load.run);
  const LoadReport r = make_report(result.records, result.facts, {});
  EXPECT_EQ(r.ok, 6);
  EXPECT_EQ(r.peak_concurrency, 1);
  EXPECT_GE(r.delay_ms.max, 5 * 55 - 5);  // five answers before it, less its own schedule
}

TEST(RunLoad, CountsRefusalsTimeoutsAndBrokenAnswersApart) {
  std::atomic<int> number{0};
  RawServer server([&](RawPeer& peer) {
    while (const auto request = peer.read_request()) {
      const int turn = number++ % 5;
      if (turn == 0 && !peer.respond(R"({"error":{"message":"quota"}})", "429 Too Many Requests", "Retry-After: 1\r\n"))
        return;
      if (turn == 1 && !peer.respond(R"({"error":{"message":"full"}})", "503 Service Unavailable")) return;
      if (turn == 2) {
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");  // and nothing more
        peer.wait_for_close();
        return;
      }
      if (turn == 3) {
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ndata: ");
        return;
      }
      if (turn == 4 && !stream_answer(peer, *request)) return;
    }
  });
  Load load(server.url());
  load.run.max_in_flight = 1;
  load.run.num_requests = 10;
  load.run.timeout = 3s;
  const RunResult result = run_load(*load.client, load.run);
  const LoadReport r = make_report(result.records, result.facts, {});
  EXPECT_EQ(r.errors, (std::map<std::string, int64_t>{{"429", 2}, {"503", 2}, {"broken", 2}, {"timeout", 2}}));
  EXPECT_EQ(r.ok, 2);
  EXPECT_EQ(r.error_examples.at("429"), "quota");
}

TEST(RunLoad, StopsSendingAfterItsDuration) {
  RawServer server(serve_streams);
  Load load(server.url());
  load.run.num_requests = 0;
  load.run.duration_s = 0.3;
  const RunResult result = run_load(*load.client, load.run);
  EXPECT_FALSE(result.records.empty());
  for (const RequestRecord& record : result.records) {
    EXPECT_LT(record.scheduled_s, 60);        // generous: the machine may stall between the check and the send
    EXPECT_EQ(record.outcome, Outcome::kOk);  // what was sent is waited for
  }
}

TEST(RunLoad, AnInterruptCancelsWhatIsInFlight) {
  std::atomic<int> waiting{0};
  RawServer server([&](RawPeer& peer) {
    peer.read_request();
    ++waiting;
    peer.wait_for_close();
  });
  Load load(server.url());
  load.run.interrupted = [&] { return waiting == 4; };
  const RunResult result = run_load(*load.client, load.run);
  EXPECT_TRUE(result.was_interrupted);
  ASSERT_EQ(result.records.size(), 4u);
  for (const RequestRecord& record : result.records) EXPECT_EQ(record.outcome, Outcome::kCancelled);
}

TEST(RunLoad, AnInterruptForgetsWhatWasNotSentYet) {
  std::atomic<int> waiting{0};
  RawServer server([&](RawPeer& peer) {
    peer.read_request();
    ++waiting;
    peer.wait_for_close();
  });
  Load load(server.url());
  load.run = {.open_loop = true,
              .arrival = ArrivalKind::kConstant,
              .rate = 50,
              .num_requests = 1'000'000,
              .plan = load.run.plan};
  load.run.interrupted = [&] { return waiting > 0; };
  const RunResult result = run_load(*load.client, load.run);
  EXPECT_TRUE(result.was_interrupted);
  ASSERT_GE(result.records.size(), 1u);
  for (const RequestRecord& record : result.records) {
    EXPECT_GE(record.sent_s, record.scheduled_s);
    EXPECT_EQ(record.outcome, Outcome::kCancelled);
  }
}

TEST(RunLoad, CountsWhatCouldNotBeSent) {
  Load load("nonsense");
  for (const bool open_loop : {false, true}) {
    load.run.open_loop = open_loop;
    load.run.max_in_flight = open_loop ? 0 : 4;
    load.run.rate = 1000;
    load.run.num_requests = 5;
    const RunResult result = run_load(*load.client, load.run);
    EXPECT_EQ(make_report(result.records, result.facts, {}).errors, (std::map<std::string, int64_t>{{"broken", 5}}));
  }
}

}  // namespace
}  // namespace lk::load
