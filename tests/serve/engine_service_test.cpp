// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/engine_service.h"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "lk/base/rng.h"
#include "lk/lora/adapter.h"
#include "serve/service_testing.h"

namespace lk {
namespace {

using testing::Heard;
using testing::Hold;
using testing::Service;

constexpr const char* kPrompt = "Once upon a time";

AdapterId add_demo_adapter(Service& service, const std::string& name) {
  auto host = load_adapter(name, testing::kDemoAdapters + name, service->text().config(), nullptr).value();
  return service->add_adapter(service->prepare_adapter(std::make_shared<HostAdapter>(std::move(host))).value());
}

TEST(EngineService, EventsOfEachRequestAreInOrderAndAddUpToItsCompletion) {
  Service service;
  std::vector<std::shared_ptr<Heard>> receivers;
  for (int shard = 0; shard < 3; ++shard) {
    receivers.push_back(std::make_shared<Heard>(shard));
    for (int choice = 0; choice < 4; ++choice)
      service.submit({.request = service.prepare(std::string(kPrompt) + std::string(static_cast<size_t>(choice), '!'),
                                                 5 + 7 * choice),
                      .sink = receivers.back(),
                      .choice = choice,
                      .wants_prompt = choice % 2 == 0});
  }
  for (const auto& heard : receivers) {
    ASSERT_TRUE(heard->wait_for_ends(4));
    for (int number = 0; number < 4; ++number) {
      const Heard::Choice choice = heard->choice(number);
      testing::expect_complete(choice);
      EXPECT_EQ(choice.completion.finish, FinishReason::kLength);
      EXPECT_EQ(choice.tokens.size(), static_cast<size_t>(5 + 7 * number));
      EXPECT_EQ(choice.num_prompts, number % 2 == 0 ? 1 : 0);
      EXPECT_TRUE(choice.prompt_was_first);
      EXPECT_LE(choice.timing.arrival, choice.timing.started);
      EXPECT_LE(choice.timing.started, choice.timing.first_token);
      EXPECT_LE(choice.timing.first_token, choice.timing.finished);
    }
  }
  EXPECT_EQ(service.wrong_shards, 0);
  service.expect_empty_queue();
}

TEST(EngineService, FactsOfThePromptComeAlsoWhenTheFirstTokenIsTheLast) {
  Service service;
  auto heard = std::make_shared<Heard>();
  for (int max_tokens : {1, 5})
    service.submit(
        {.request = service.prepare(kPrompt, max_tokens), .sink = heard, .choice = max_tokens, .wants_prompt = true});
  ASSERT_TRUE(heard->wait_for_ends(2));
  EXPECT_FALSE(heard->choice(5).prompt_token_ids.empty());
  EXPECT_EQ(heard->choice(1).prompt_token_ids, heard->choice(5).prompt_token_ids);
  EXPECT_EQ(heard->choice(1).completion.prompt_token_ids, heard->choice(5).prompt_token_ids);
}

// The rate that predicts waits is measured while there is a queue (sched/wait_forecast_test.cpp: idle time does not
// count).
TEST(EngineService, PredictedWaitComesFromTheRateOfStartsAndRefusesByPatience) {
  Service service({.max_queue_tokens = 1 << 30, .max_wait_seconds = 1000}, {.max_running = 1});
  const auto begin = Clock::now();
  int64_t tokens = 0;
  double rate = 0;
  while (rate == 0 && Clock::now() - begin < testing::kPatience) {
    auto heard = std::make_shared<Heard>();
    for (int choice = 0; choice < 6; ++choice) {
      auto request = service.prepare(kPrompt, 40);
      tokens += request->completion.prompt_tokens;
      service.submit({.request = std::move(request), .sink = heard, .choice = choice});
    }
    ASSERT_TRUE(heard->wait_for_ends(6));
    const EngineService::Share large{.prompt_tokens = 1'000'000};
    ASSERT_TRUE(service->admit({}, large).status.ok());
    if (const double wait = service->predicted_wait_seconds(); wait > 0) rate = 1e6 / wait;
    service->abandon({}, large);
  }
  const double average = static_cast<double>(tokens) / std::chrono::duration<double>(Clock::now() - begin).count();
  EXPECT_GT(rate, average / 6);
  EXPECT_EQ(service->predicted_wait_seconds(), 0) << "nothing waits";

  const auto seconds = [&](double wait) {
    return EngineService::Share{.prompt_tokens = static_cast<int64_t>(rate * wait)};
  };
  ASSERT_TRUE(service->admit({}, seconds(100)).status.ok()) << "an empty queue is no wait";
  const EngineService::Admission refused = service->admit({}, {}, 50.0);
  EXPECT_EQ(refused.status.code(), StatusCode::kDeadlineExceeded) << refused.status.message();
  EXPECT_NEAR(refused.retry_after_seconds, 50, 1);
  EXPECT_TRUE(service->admit({}, {}, 200.0).status.ok());
  ASSERT_TRUE(service->admit({}, seconds(1000)).status.ok());
  EXPECT_EQ(service->admit({}, {}).status.code(), StatusCode::kUnavailable) << "past max_wait_seconds";
  for (const double wait : {100.0, 0.0, 1000.0}) service->abandon({}, seconds(wait));
  service.expect_empty_queue();
}

TEST(EngineService, QueueIsEmptyAgainHoweverRequestsEnd) {
  Service service({}, {.max_running = 1});
  auto heard = std::make_shared<Heard>();
  const auto send = [&](int choice, int64_t max_tokens, std::optional<Clock::time_point> deadline = {}) {
    return service.submit(
        {.request = service.prepare(kPrompt, max_tokens), .sink = heard, .choice = choice, .deadline = deadline});
  };
  RequestId running = 0, waiting = 0, both = 0;
  {
    Hold hold(service);
    running = send(0, 500);
    waiting = send(1, 30);
    send(2, 500, Clock::now());  // its deadline passes before it starts
    send(3, 20);                 // ends by itself
    both = send(4, 20);
    EXPECT_EQ(service->num_queued(), 5);
    service->cancel(both);  // before the engine has seen it
    service->cancel(both);
  }
  ASSERT_TRUE(heard->wait_for_tokens(3, 0));
  EXPECT_LE(service->num_queued(), 2) << "what runs is not queued";
  service->cancel(waiting);
  service->cancel(running);
  service->cancel(12345);  // never was
  ASSERT_TRUE(heard->wait_for_ends(5));
  EXPECT_EQ(heard->choice(0).completion.finish, FinishReason::kCancelled);
  EXPECT_EQ(heard->choice(1).completion.finish, FinishReason::kCancelled);
  EXPECT_EQ(heard->choice(1).timing.started, Clock::time_point());
  EXPECT_EQ(heard->choice(2).completion.error.code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(heard->choice(3).completion.finish, FinishReason::kLength);
  EXPECT_EQ(heard->choice(4).completion.finish, FinishReason::kCancelled);
  for (int choice = 0; choice < 5; ++choice) testing::expect_complete(heard->choice(choice));
  service.expect_empty_queue();
  service.expect_idle_pool();
}

TEST(EngineService, RequestThatCannotFitFailsAndDeadlineEndsARunningOne) {
  Service service({}, {}, 400 << 10);  // a few pages
  auto heard = std::make_shared<Heard>();
  service.submit({.request = service.prepare(kPrompt, 500), .sink = heard, .choice = 0});
  ASSERT_TRUE(heard->wait_for_ends(1));
  EXPECT_EQ(heard->choice(0).completion.error.code(), StatusCode::kFailedPrecondition);
  service.expect_empty_queue();
  Service large;
  auto started = std::make_shared<Heard>();
  // Ends by its length only if the machine makes 490 tokens in 100 ms.
  large.submit({.request = large.prepare(kPrompt, 490),
                .sink = started,
                .deadline = Clock::now() + std::chrono::milliseconds(100)});
  ASSERT_TRUE(started->wait_for_ends(1));
  const Heard::Choice choice = started->choice();
  testing::expect_complete(choice);
  if (choice.completion.finish != FinishReason::kLength) {
    EXPECT_EQ(choice.completion.error.code(), StatusCode::kDeadlineExceeded);
  }
  large.expect_empty_queue();
  large.expect_idle_pool();
}

TEST(EngineService, AbortAllEndsQueuedAndRunning) {
  Service service({}, {.max_running = 2});
  auto heard = std::make_shared<Heard>();
  for (int choice = 0; choice < 5; ++choice)
    service.submit({.request = service.prepare(kPrompt, 450), .sink = heard, .choice = choice});
  ASSERT_TRUE(heard->wait_for_tokens(2, 0));
  service->abort_all(unavailable("maintenance"));
  ASSERT_TRUE(heard->wait_for_ends(5));
  for (int number = 0; number < 5; ++number) {
    const Heard::Choice choice = heard->choice(number);
    testing::expect_complete(choice);
    EXPECT_EQ(choice.completion.error.message(), "maintenance");
  }
  service.expect_empty_queue();
  service.expect_idle_pool();
}

TEST(EngineService, CallRunsOnTheEngineThreadInOrder) {
  Service service;
  std::vector<int> order;
  std::set<std::thread::id> threads;
  for (int i = 0; i < 50; ++i)
    EXPECT_TRUE(service->call([&, i](TextEngine&) {
      order.push_back(i);
      threads.insert(std::this_thread::get_id());
    }));
  service.on_engine([](TextEngine&) {});
  EXPECT_EQ(threads.size(), 1u);
  EXPECT_FALSE(threads.contains(std::this_thread::get_id()));
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(order.size(), 50u);
}

TEST(EngineService, StopEndsWhatIsLeftOnceAndTakesNothingMore) {
  Service service({}, {.max_running = 2});
  const AdapterId adapter = add_demo_adapter(service, "sql");
  const AdapterId unused = add_demo_adapter(service, "math");
  auto heard = std::make_shared<Heard>();
  std::atomic<int> callbacks{0}, removals{0};
  // A lease that removes its adapter when the request lets go of it, as a registry's does.
  std::shared_ptr<const void> lease(
      &service, [&](const void*) { service->remove_adapter(adapter, [&](int64_t) { ++removals; }); });
  for (int choice = 0; choice < 4; ++choice)
    service.submit({.request = service.prepare(kPrompt, 450, choice == 0 ? adapter : kBaseModel),
                    .lease = lease,
                    .sink = heard,
                    .choice = choice});
  lease.reset();
  const auto count = [&](const Completion& done) {
    EXPECT_EQ(done.error.code(), StatusCode::kUnavailable);
    ++callbacks;
  };
  service.probe(kPrompt, 450, count);
  ASSERT_TRUE(heard->wait_for_tokens(1, 1));
  {
    Hold hold(service);
    // Loading, and nobody wants to know when it is gone.
    service->call([unused](TextEngine& text) { ASSERT_TRUE(text.scheduler().set_pinned(unused, true).ok()); });
    service->remove_adapter(unused, nullptr);
  }
  service->stop();
  for (int number = 0; number < 4; ++number) {
    const Heard::Choice choice = heard->choice(number);
    testing::expect_complete(choice);
    EXPECT_EQ(choice.completion.error.code(), StatusCode::kUnavailable);
  }
  EXPECT_EQ(callbacks, 1);
  EXPECT_EQ(removals, 1);
  service.expect_empty_queue();

  service->stop();
  EXPECT_FALSE(service->call([](TextEngine&) {}));
  service.submit(heard, kPrompt, 3);
  service.expect_empty_queue();
  service.probe(kPrompt, 3, count);
  EXPECT_EQ(callbacks, 2);
  EXPECT_EQ(add_demo_adapter(service, "tag"), kBaseModel);
  service->remove_adapter(adapter, [&](int64_t bytes) { removals += bytes == 0 ? 1 : 100; });
  EXPECT_EQ(removals, 2);
}

TEST(EngineService, AdapterRemovedWhileItLoadsIsFreedAfterwards) {
  Service service;
  for (int round = 0; round < 10; ++round) {
    const AdapterId adapter = add_demo_adapter(service, "sql");
    std::promise<int64_t> freed;
    {
      Hold hold(service);
      service->call([adapter](TextEngine& text) { ASSERT_TRUE(text.scheduler().set_pinned(adapter, true).ok()); });
      service->remove_adapter(adapter, [&](int64_t bytes) { freed.set_value(bytes); });
    }
    EXPECT_GT(freed.get_future().get(), 0);
    service.on_engine([&](TextEngine& text) { EXPECT_EQ(text.pool().adapter_state(adapter), AdapterState::kAbsent); });
  }
  service.expect_idle_pool();
}

// A request that arrives within a step finds its adapter loading when the step ends, and loses nothing by it.
TEST(EngineService, AdapterOfAnArrivingRequestBeginsToLoadWithinTheStep) {
  Service service({.publish_interval = {}});
  const AdapterId adapter = add_demo_adapter(service, "sql");
  auto alone = std::make_shared<Heard>();
  service.submit({.request = service.prepare(kPrompt, 8, adapter), .sink = alone});
  ASSERT_TRUE(alone->wait_for_ends());
  // What a task submits arrives when the commands of this round were taken: within the step that follows them.
  auto busy = std::make_shared<Heard>(), heard = std::make_shared<Heard>();
  service.on_engine([&](TextEngine& text) {
    (void)text.scheduler().drop_adapter(adapter);
    service.submit({.request = service.prepare(kPrompt, 40), .sink = busy});
    service->call(
        [&](TextEngine&) { service.submit({.request = service.prepare(kPrompt, 8, adapter), .sink = heard}); });
  });
  ASSERT_TRUE(busy->wait_for_ends() && heard->wait_for_ends());
  EXPECT_EQ(heard->choice().tokens, alone->choice().tokens);
  int64_t prefetches = 0;
  service.on_engine([&](TextEngine& text) { prefetches = text.scheduler().stats().num_prefetches; });
  EXPECT_EQ(prefetches, 1);
  service.expect_idle_pool();
}

// Looks at the snapshot with each event, on the engine thread: what has been published last is of the same step.
class SnapshotWatcher : public Heard {
 public:
  explicit SnapshotWatcher(Service& service) : Heard(kEngineThread), service_(service) {}
  void on_event(StreamEvent& event) override {
    const EngineService::Snapshot snapshot = service_->snapshot();
    const ServerSnapshot& s = snapshot.server;
    EXPECT_EQ(s.pages_free + s.pages_kv + s.pages_cached + s.pages_adapter + s.pages_merged, s.pages);
    EXPECT_GE(s.generation_tokens, last_tokens_);
    last_tokens_ = s.generation_tokens;
    int64_t running = 0, waiting = 0;
    for (const auto& [id, load] : snapshot.adapters) {
      running += load.running;
      waiting += load.waiting;
    }
    EXPECT_EQ(running, s.num_running);
    EXPECT_EQ(waiting, s.num_waiting);
    most_running = std::max(most_running, running);
    Heard::on_event(event);
  }
  int64_t most_running = 0;

 private:
  Service& service_;
  int64_t last_tokens_ = 0;
};

TEST(EngineService, SnapshotAddsUp) {
  Service service({.publish_interval = {}});  // after each step
  const AdapterId adapter = add_demo_adapter(service, "sql");
  auto heard = std::make_shared<SnapshotWatcher>(service);
  constexpr int sent = 8;
  service.on_engine([&](TextEngine&) {
    for (int i = 0; i < sent; ++i)
      service.submit(
          {.request = service.prepare(kPrompt, 60, i % 2 == 0 ? adapter : kBaseModel), .sink = heard, .choice = i});
  });
  ASSERT_TRUE(heard->wait_for_ends(static_cast<size_t>(sent)));
  service.on_engine([&](TextEngine&) { EXPECT_GT(heard->most_running, 1); });
  service.expect_idle_pool();
  // The thread publishes before it goes to sleep.
  const auto end = Clock::now() + testing::kPatience;
  while (service->snapshot().server.generation_tokens != sent * 60 && Clock::now() < end) std::this_thread::yield();
  const ServerSnapshot s = service->snapshot().server;
  EXPECT_EQ(s.generation_tokens, sent * 60);
  EXPECT_EQ(s.prompt_tokens, sent * static_cast<int64_t>(service.prepare(kPrompt, 1)->asked.prompt.size()));
  EXPECT_EQ(s.num_running, 0);
  EXPECT_EQ(s.queued_tokens, 0);
  EXPECT_EQ(service->snapshot().adapters.at(adapter).state, AdapterState::kResident);
  EXPECT_GT(service->snapshot().adapters.at(adapter).bytes, 0);
}

TEST(EngineService, WhoHasTheLastAnswerFindsItCounted) {
  Service service({.publish_interval = std::chrono::hours(1)});
  for (int round = 1; round <= 50; ++round) {
    auto heard = std::make_shared<Heard>();
    service.submit({.request = service.prepare(kPrompt, 3), .sink = heard});
    ASSERT_TRUE(heard->wait_for_ends());
    ASSERT_EQ(service->snapshot().server.generation_tokens, 3 * round);
  }
}

TEST(EngineService, IdleTimeChecksEveryPageOfThePool) {
  Service service({.audit_interval = std::chrono::milliseconds(1)});
  const int64_t pages = service->snapshot().server.pages;
  const auto wait_for_checks = [&](int64_t count) {
    const auto end = Clock::now() + testing::kPatience;
    while (service->snapshot().server.pages_checked < count && Clock::now() < end) std::this_thread::yield();
    return service->snapshot().server.pages_checked;
  };
  EXPECT_EQ(wait_for_checks(pages), pages) << "once: nothing happened meanwhile";
  auto heard = std::make_shared<Heard>();
  service.submit({.request = service.prepare(kPrompt, 3), .sink = heard});
  ASSERT_TRUE(heard->wait_for_ends());
  EXPECT_GE(wait_for_checks(2 * pages), 2 * pages) << "again, after work";
}

// Several threads submit, cancel and set deadlines; stop comes while work is left in every second round.
TEST(EngineService, EachRequestEndsExactlyOnceWhateverHappens) {
  for (uint64_t round = 0; round < 4; ++round) {
    Service service({.max_queue_requests = 10'000}, {.max_step_tokens = 24, .max_running = 5}, 3 << 20);
    const std::vector<AdapterId> adapters{kBaseModel, add_demo_adapter(service, "sql"),
                                          add_demo_adapter(service, "tag")};
    constexpr int kThreads = 4, kRequests = 30;
    std::vector<std::shared_ptr<Heard>> receivers;
    for (int i = 0; i < kThreads; ++i) receivers.push_back(std::make_shared<Heard>(i));
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread)
      threads.emplace_back([&, thread] {
        Rng rng(round * 100 + static_cast<uint64_t>(thread));
        std::vector<RequestId> ids;
        for (int choice = 0; choice < kRequests; ++choice) {
          std::optional<Clock::time_point> deadline;
          if (rng.below(4) == 0) deadline = Clock::now() + std::chrono::milliseconds(rng.below(300));
          ids.push_back(service.submit(
              {.request = service.prepare(kPrompt + std::string(rng.below(30), 'a'),
                                          static_cast<int64_t>(rng.below(40)), adapters[rng.below(adapters.size())]),
               .sink = receivers[static_cast<size_t>(thread)],
               .choice = choice,
               .wants_prompt = rng.below(2) == 0,
               .deadline = deadline}));
          if (rng.below(3) == 0) service->cancel(ids[rng.below(ids.size())]);
          if (rng.below(20) == 0) service->abort_all(unavailable("abort"));
        }
      });
    for (std::thread& thread : threads) thread.join();
    if (round % 2 == 1) {
      service->stop();
    } else {
      for (const auto& heard : receivers) ASSERT_TRUE(heard->wait_for_ends(kRequests));
      service.expect_idle_pool();
    }
    for (const auto& heard : receivers)
      for (int number = 0; number < kRequests; ++number) {
        const Heard::Choice choice = heard->choice(number);
        testing::expect_complete(choice);
        EXPECT_LE(choice.num_prompts, 1);
        EXPECT_TRUE(choice.prompt_was_first);
        EXPECT_NE(choice.completion.finish, FinishReason::kNone);
      }
    service.expect_empty_queue();
    EXPECT_EQ(service.wrong_shards, 0);
  }
}

// Of a request whose grammar, or whatever else makes its mask, is out of order.
struct ThrowingConstraint : TokenConstraint {
  explicit ThrowingConstraint(bool in_accept) : in_accept(in_accept) {}
  Status allowed(std::span<uint64_t> words) override {
    if (!in_accept) throw std::runtime_error("thrown by the test");
    std::ranges::fill(words, ~uint64_t{0});
    return Status();
  }
  Status accept(int32_t) override { throw std::runtime_error("thrown by the test"); }
  const bool in_accept;
};

TEST(EngineService, WhatIsThrownEndsOneRequestAndTheRestGoesOn) {
  std::vector<std::string> faults;
  std::mutex mutex;
  Service service({.on_fault = [&](const Status& reason) {
    std::lock_guard lock(mutex);
    faults.push_back(reason.message());
  }});
  auto good = std::make_shared<Heard>(), bad = std::make_shared<Heard>();
  service.submit(good, kPrompt, 60);
  ASSERT_TRUE(good->wait_for_tokens(1));
  for (const bool in_accept : {false, true}) {
    auto sequence = service.prepare(kPrompt, 5);
    sequence->asked.constraint = std::make_shared<ThrowingConstraint>(in_accept);
    service.submit({.request = std::move(sequence), .sink = bad, .choice = in_accept ? 1 : 0});
  }
  ASSERT_TRUE(service->call([](TextEngine&) { throw std::runtime_error("thrown by a task"); }));
  std::promise<void> ended;
  service.probe(kPrompt, 1, [&](const Completion&) {
    ended.set_value();
    throw std::runtime_error("thrown by a receiver");
  });
  ended.get_future().wait();
  ASSERT_TRUE(bad->wait_for_ends(2));
  for (int number : {0, 1}) {
    EXPECT_EQ(bad->choice(number).completion.finish, FinishReason::kError);
    EXPECT_EQ(bad->choice(number).completion.error.code(), StatusCode::kInternal);
  }
  ASSERT_TRUE(good->wait_for_ends());
  testing::expect_complete(good->choice());
  EXPECT_EQ(good->choice().tokens.size(), 60U);
  service.expect_idle_pool();
  service.expect_empty_queue();
  std::lock_guard lock(mutex);
  EXPECT_EQ(faults.size(), 2U);
}

}  // namespace
}  // namespace lk
