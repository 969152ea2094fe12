// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/scheduler.h"

#include "hash_executor.h"

namespace lk {
namespace {

TEST(Scheduler, RefusesWhatCouldNeverRun) {
  UnifiedPool pool(4);
  HashExecutor executor(0, 4);
  Scheduler scheduler({.max_sequence = 40}, pool, executor);
  EXPECT_EQ(scheduler.submit(make_request(1, kBaseModel, 0, 5, 0)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler.submit(make_request(1, kBaseModel, 30, 11, 0)).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(scheduler.submit(make_request(1, kBaseModel, 30, 10, 0)).ok());
  // 3 KV pages and adapter 2's three pages exceed the four of the pool.
  EXPECT_EQ(scheduler.submit(make_request(2, 2, 30, 10, 0)).code(), StatusCode::kFailedPrecondition);
}

TEST(Scheduler, ReportsEachAcceptedRequestAsDemandOnce) {
  UnifiedPool pool(8);
  HashExecutor executor(0, 8);
  Scheduler scheduler({.max_sequence = 100}, pool, executor);
  EXPECT_FALSE(scheduler.submit(make_request(1, 2, 0, 5, 0)).ok());
  EXPECT_EQ(pool.demand(2), 0) << "it was refused";
  // The second one starts over when memory runs out: that is no new demand.
  for (RequestId id : {1, 2})
    ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 30, 60, static_cast<uint64_t>(id))).ok());
  run_all(scheduler, pool);
  EXPECT_GT(scheduler.stats().num_preemptions, 0);
  ASSERT_TRUE(scheduler.submit(make_request(3, 2, 30, 10, 3)).ok());
  run_all(scheduler, pool);
  EXPECT_NEAR(pool.demand(kBaseModel), 2, 0.01);
  EXPECT_NEAR(pool.demand(2), 1, 0.01);
  EXPECT_TRUE(scheduler.drop_adapter(2).has_value());
  EXPECT_EQ(pool.demand(2), 0);
}

TEST(Scheduler, DecodesWhileALongPromptIsChunked) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  Scheduler scheduler({.max_step_tokens = 8}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, kBaseModel, 4, 30, 1)).ok());
  (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(make_request(2, kBaseModel, 70, 3, 2)).ok());
  for (int step = 0; step < 5; ++step) {
    int num_tokens = 0;
    for (const RequestEvent& event : scheduler.step()) {
      if (!event.has_token) continue;
      EXPECT_EQ(event.id, 1);
      ++num_tokens;
    }
    EXPECT_EQ(num_tokens, 1);
  }
  run_all(scheduler, pool);
  EXPECT_EQ(executor.max_step_tokens_seen, 8);
}

TEST(Scheduler, PinnedAdapterStaysUnderPressureAndDroppedOneLeavesNothing) {
  UnifiedPool pool(24);
  HashExecutor executor(0, 24);
  Scheduler scheduler({}, pool, executor);
  ASSERT_TRUE(scheduler.set_pinned(3, true).ok());
  EXPECT_EQ(scheduler.set_pinned(4, true).code(), StatusCode::kOk);
  for (RequestId id = 0; id < 12; ++id) {
    ASSERT_TRUE(
        scheduler.submit(make_request(id, static_cast<AdapterId>(id % 6), 60, 20, static_cast<uint64_t>(id))).ok());
    run_all(scheduler, pool);
    EXPECT_EQ(pool.adapter_state(3), AdapterState::kResident);
  }
  // A request that only fits without the pinned adapters is refused now, not left waiting for ever.
  EXPECT_EQ(scheduler.submit(make_request(99, kBaseModel, 24 * 16 - 8, 4, 1)).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(scheduler.submit(make_request(100, 3, 60, 20, 1)).ok());
  EXPECT_EQ(scheduler.adapter_load().at(3).waiting, 1);
  run_all(scheduler, pool);
  EXPECT_GT(scheduler.drop_adapter(3).value(), 1);  // its own pages and those of its cached prompts
  EXPECT_EQ(pool.adapter_state(3), AdapterState::kAbsent);
  EXPECT_EQ(scheduler.submit(make_request(101, kBaseModel, 24 * 16 - 8, 4, 1)).code(),
            StatusCode::kFailedPrecondition);  // 4 is still pinned
  ASSERT_TRUE(scheduler.set_pinned(4, false).ok());
  EXPECT_TRUE(scheduler.submit(make_request(102, kBaseModel, 24 * 16 - 8, 4, 1)).ok());
  run_all(scheduler, pool);
}

TEST(Scheduler, StartIsReportedOnceWithTheCachedTokens) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  Scheduler scheduler({.max_step_tokens = 16}, pool, executor);
  for (RequestId id = 0; id < 2; ++id) {
    ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 50, 3, 5)).ok());
    int started = 0;
    while (scheduler.has_work())
      for (const RequestEvent& event : scheduler.step()) {
        started += event.started;
        if (event.started) {
          EXPECT_EQ(event.cached_tokens, id == 0 ? 0 : 48);
        }
      }
    EXPECT_EQ(started, 1);
  }
}

TEST(Scheduler, StepWithoutWaitingReturnsWhileEverythingLoads) {
  class NeverLoads : public HashExecutor {
   public:
    using HashExecutor::HashExecutor;
    std::vector<LoadResult> take_finished_loads(bool wait) override {
      if (!open) return {};
      return HashExecutor::take_finished_loads(wait);
    }
    bool open = false;
  };
  UnifiedPool pool(64);
  NeverLoads executor(0, 64);
  Scheduler scheduler({}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 2, 5, 3, 5)).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(scheduler.step(false).empty());
    EXPECT_TRUE(scheduler.last_step_idle());
  }
  EXPECT_FALSE(scheduler.drop_adapter(2).has_value()) << "an adapter that is loading cannot be dropped yet";
  executor.open = true;
  EXPECT_EQ(run_all(scheduler, pool)[1].finish, FinishReason::kLength);
}

TEST(Scheduler, UrgentRequestsStartFirstInTheirOwnOrder) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  Scheduler scheduler({.max_running = 1}, pool, executor);
  std::vector<RequestId> started;
  const auto run = [&](int steps) {
    for (int step = 0; step < steps && scheduler.has_work(); ++step)
      for (const RequestEvent& event : scheduler.step())
        if (event.started) started.push_back(event.id);
  };
  ASSERT_TRUE(scheduler.submit(make_request(1, kBaseModel, 5, 4, 1)).ok());
  run(1);
  for (RequestId id = 2; id <= 5; ++id) {
    Request request = make_request(id, kBaseModel, 5, 3, static_cast<uint64_t>(id));
    request.urgent = id >= 4;
    ASSERT_TRUE(scheduler.submit(request).ok());
  }
  run(1000);
  EXPECT_EQ(started, (std::vector<RequestId>{1, 4, 5, 2, 3})) << "what runs is not pushed aside, what waits is passed";
}

// A pool that is too small: who came last loses its pages, but never to a request that came later, unless that is
// urgent.
TEST(Scheduler, UrgentRequestKeepsItsPages) {
  UnifiedPool pool(8);
  HashExecutor executor(0, 8);
  Scheduler scheduler({}, pool, executor);
  for (RequestId id = 1; id <= 3; ++id)
    ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 20, 60, static_cast<uint64_t>(id))).ok());
  for (int step = 0; step < 3; ++step) (void)scheduler.step();
  Request urgent = make_request(9, kBaseModel, 16, 30, 9);
  urgent.urgent = true;
  ASSERT_TRUE(scheduler.submit(urgent).ok());
  std::vector<RequestId> ended;
  std::map<RequestId, std::vector<int32_t>> tokens;
  while (scheduler.has_work()) {
    for (const RequestEvent& event : scheduler.step()) {
      if (event.has_token) tokens[event.id].push_back(event.token.token);
      if (event.finish != FinishReason::kNone) ended.push_back(event.id);
    }
    pool.check_integrity();
  }
  EXPECT_GT(scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(ended.front(), 9);
  EXPECT_EQ(tokens[9], HashExecutor::expected(urgent));
}

// Each constraint hears each of its request's tokens once, in order, also when pages were lost in between.
TEST(Scheduler, ConstraintHearsEveryTokenOnceAcrossPreemptions) {
  struct Listener final : TokenConstraint {
    Status allowed(std::span<uint64_t>) override { return Status(); }
    Status accept(int32_t token) override {
      heard.push_back(token);
      return Status();
    }
    std::vector<int32_t> heard;
  };
  UnifiedPool pool(8);
  HashExecutor executor(0, 8);
  Scheduler scheduler({}, pool, executor);
  std::map<RequestId, std::shared_ptr<Listener>> listeners;
  std::map<RequestId, Request> requests;
  for (RequestId id = 0; id < 6; ++id) {
    Request request = make_request(id, kBaseModel, 20, 60, static_cast<uint64_t>(id));
    request.constraint = listeners[id] = std::make_shared<Listener>();
    requests[id] = request;
    ASSERT_TRUE(scheduler.submit(request).ok());
  }
  run_all(scheduler, pool);
  EXPECT_GT(scheduler.stats().num_preemptions, 0);
  for (const auto& [id, listener] : listeners) EXPECT_EQ(listener->heard, HashExecutor::expected(requests[id]));
}

TEST(Scheduler, SecondPromptReusesTheCachedPrefixOfItsOwnAdapterOnly) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  Scheduler scheduler({}, pool, executor);
  const auto cached_after = [&](RequestId id, AdapterId adapter, uint64_t salt) {
    const int64_t before = scheduler.stats().num_cached_prompt_tokens;
    Request request = make_request(id, adapter, 50, 2, 9);
    request.cache_salt = salt;
    EXPECT_TRUE(scheduler.submit(request).ok());
    EXPECT_EQ(run_all(scheduler, pool)[id].tokens, HashExecutor::expected(request));
    return scheduler.stats().num_cached_prompt_tokens - before;
  };
  EXPECT_EQ(cached_after(1, kBaseModel, 0), 0);
  EXPECT_EQ(cached_after(2, kBaseModel, 0), 48);
  EXPECT_EQ(cached_after(3, 1, 0), 0);
  EXPECT_EQ(cached_after(4, kBaseModel, 5), 0);
  EXPECT_EQ(cached_after(5, 1, 0), 48);
}

// Small pools force preemption, eviction and reloads; cancellations come at any step.
TEST(Scheduler, RandomTrafficGivesEachRequestItsOwnTokensAndFreesEverything) {
  int64_t preemptions = 0, fair_preemptions = 0, cached_tokens = 0, evicted = 0, num_drops = 0, num_pins = 0,
          merged_steps = 0;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    Rng rng(seed);
    const auto num_pages = static_cast<int64_t>(8 + rng.below(20));
    UnifiedPool pool(num_pages);
    HashExecutor executor(seed, num_pages);
    // Adapters with replaced matrices take up to two thirds of the pool, and so do merged layers.
    executor.matrix_pages =
        rng.below(3) == 0 ? static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * num_pages / 3))) : 1;
    executor.merge_pages = static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * num_pages / 3)));
    RandomMergeGate merging(pool, executor, seed);
    Scheduler scheduler({.max_step_tokens = static_cast<int64_t>(1 + rng.below(40)),
                         .max_running = static_cast<int64_t>(1 + rng.below(6)),
                         .prefix_cache = rng.below(4) != 0,
                         .admission = static_cast<Admission>(rng.below(3)),
                         .preempt_gap = 0.2 * rng.uniform(),
                         .queue = {.kind = rng.below(2) == 0 ? QueueKind::kVtc : static_cast<QueueKind>(rng.below(3)),
                                   .within = static_cast<WithinTenant>(rng.below(5)),
                                   .prediction = static_cast<Prediction>(rng.below(3)),
                                   .quantum = 1000 + static_cast<int64_t>(rng.below(100'000))},
                         .slots = {.max = static_cast<int64_t>(rng.below(2) * rng.below(4)),
                                   .cluster = static_cast<int64_t>(rng.below(3)),
                                   .drain_gap = 10'000}},
                        pool, executor, rng.below(3) == 0 ? nullptr : &merging);
    int64_t billed = 0, computed_or_made = 0;
    std::map<RequestId, Request> requests;
    std::map<RequestId, Outcome> outcomes;
    std::set<RequestId> cancelled;
    RequestId next_id = 0;
    while (next_id < 40 || scheduler.has_work()) {
      while (next_id < 40 && rng.below(3) == 0) {
        // Few distinct prompts, so that prefixes are shared.
        Request request =
            make_request(next_id++, static_cast<AdapterId>(rng.below(6)) - 1, static_cast<int64_t>(1 + rng.below(60)),
                         static_cast<int64_t>(rng.below(30)), rng.below(3));
        request.tenant = static_cast<TenantId>(rng.below(3));
        request.user = static_cast<int64_t>(rng.below(2));
        if (rng.below(3) == 0) request.stop_token_ids = {static_cast<int32_t>(rng.below(50))};
        if (rng.below(4) == 0) request.sampling.num_prompt_logprobs = 0;
        if (scheduler.submit(request).ok()) requests[request.id] = request;
      }
      if (!scheduler.has_work()) continue;
      if (next_id > 0 && rng.below(10) == 0) {
        const auto id = static_cast<RequestId>(rng.below(static_cast<uint64_t>(next_id)));
        if (scheduler.finish(id)) cancelled.insert(id);
      }
      // Operators pin adapters and drop those that nobody uses.
      const auto adapter = static_cast<AdapterId>(rng.below(6));
      if (rng.below(20) == 0) num_pins += scheduler.set_pinned(adapter, rng.below(2) == 0).ok();
      if (rng.below(10) == 0 && !scheduler.adapter_load().contains(adapter)) {
        const int64_t free = pool.num_free() + pool.num_merged();  // its merged pages go first, and are not counted
        if (const auto freed = scheduler.drop_adapter(adapter)) {
          EXPECT_EQ(pool.num_free() + pool.num_merged(), free + *freed);
          EXPECT_EQ(pool.adapter_state(adapter), AdapterState::kAbsent);
          num_drops += *freed > 0;
        }
        pool.check_integrity();
      }
      if (!scheduler.has_work()) continue;
      for (RequestEvent& event : scheduler.step()) {
        Outcome& outcome = outcomes[event.id];
        if (event.has_token) outcome.tokens.push_back(event.token.token);
        computed_or_made += event.has_token;
        if (!event.prompt_logprobs.empty()) outcome.prompt_logprobs = std::move(event.prompt_logprobs);
        if (event.finish != FinishReason::kNone) outcome.finish = event.finish;
      }
      pool.check_integrity();
    }
    for (const auto& [tenant, service] : scheduler.tenants()) {
      EXPECT_EQ(service.waiting + service.running, 0);
      EXPECT_EQ(service.service, 1000 * service.prompt_tokens + 2000 * service.output_tokens);
      billed += service.output_tokens;
    }
    EXPECT_EQ(billed, computed_or_made) << "each token is billed once, whatever was preempted";
    for (const auto& [id, request] : requests) {
      std::vector<int32_t> expected = HashExecutor::expected(request);
      const Outcome& outcome = outcomes[id];
      if (cancelled.contains(id)) {
        ASSERT_LE(outcome.tokens.size(), expected.size());
        expected.resize(outcome.tokens.size());
      } else {
        EXPECT_NE(outcome.finish, FinishReason::kNone);
        EXPECT_NE(outcome.finish, FinishReason::kError) << "seed " << seed << " request " << id;
        if (request.sampling.num_prompt_logprobs >= 0) {
          EXPECT_EQ(outcome.prompt_logprobs.size(), request.prompt.size() - 1);
          for (size_t i = 0; i < outcome.prompt_logprobs.size(); ++i)
            EXPECT_EQ(outcome.prompt_logprobs[i].token, request.prompt[i + 1]);
        }
      }
      EXPECT_EQ(outcome.tokens, expected) << "seed " << seed << " request " << id;
    }
    for (AdapterId adapter = 0; adapter < 6; ++adapter) EXPECT_TRUE(scheduler.set_pinned(adapter, false).ok());
    merging.give_back(0);
    EXPECT_EQ(pool.num_available(), num_pages);
    pool.evict_all();
    EXPECT_EQ(pool.num_free(), num_pages);
    preemptions += scheduler.stats().num_preemptions;
    fair_preemptions += scheduler.stats().num_fair_preemptions;
    cached_tokens += scheduler.stats().num_cached_prompt_tokens;
    evicted += pool.num_evicted_adapters();
    merged_steps += executor.num_merged_steps;
  }
  // The traffic must have exercised what it claims to.
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(fair_preemptions, 10);
  EXPECT_GT(cached_tokens, 1000);
  EXPECT_GT(evicted, 20);
  EXPECT_GT(num_drops, 20);
  EXPECT_GT(num_pins, 20);
  EXPECT_GT(merged_steps, 20);
}

// A request that goes on elsewhere, cut anywhere, beside others and with little memory.
TEST(Scheduler, ResumedRequestsMakeTheTokensThatWereLeft) {
  UnifiedPool pool(24);
  HashExecutor executor(3, 24);
  Scheduler scheduler({.max_step_tokens = 32, .max_running = 8}, pool, executor);
  std::map<RequestId, std::vector<int32_t>> expected;
  for (RequestId id = 0; id < 40; ++id) {
    Request request = make_request(id, static_cast<AdapterId>(id % 3), 10 + id, 41, static_cast<uint64_t>(id));
    if (id % 4 == 0) request.sampling.num_prompt_logprobs = 0;
    const std::vector<int32_t> all = HashExecutor::expected(request);
    request.output_so_far.assign(all.begin(), all.begin() + id);
    expected[id].assign(all.begin() + id, all.end());
    ASSERT_TRUE(scheduler.submit(request).ok());
  }
  const auto outcomes = run_all(scheduler, pool);
  EXPECT_GT(scheduler.stats().num_preemptions, 0);
  for (const auto& [id, outcome] : outcomes) {
    EXPECT_EQ(outcome.tokens, expected[id]) << id;
    EXPECT_EQ(outcome.finish, FinishReason::kLength);
    EXPECT_EQ(outcome.prompt_logprobs.empty(), id != 0) << "those of a resumed request came with its first part";
  }
  Request full = make_request(99, kBaseModel, 5, 3, 1);
  full.output_so_far = {1, 2, 3};
  EXPECT_EQ(scheduler.submit(full).code(), StatusCode::kInvalidArgument);
}

TEST(Scheduler, ResumedRequestIsChargedAsAfterAPreemption) {
  for (const ServiceCost& cost : {ServiceCost(), ServiceCost{.product = 0.04, .output_square = 0.03, .constant = 11}}) {
    UnifiedPool pool(64);
    HashExecutor executor(1, 64);
    const QueueOptions queue{.cost = cost};
    Scheduler whole({.queue = queue}, pool, executor);
    Request request = make_request(1, kBaseModel, 37, 20, 1);
    request.tenant = 5;
    const std::vector<int32_t> all = HashExecutor::expected(request);
    ASSERT_TRUE(whole.submit(request).ok());
    run_all(whole, pool);
    UnifiedPool other_pool(64);
    Scheduler rest({.queue = queue}, other_pool, executor);
    request.output_so_far.assign(all.begin(), all.begin() + 8);
    ASSERT_TRUE(rest.submit(request).ok());
    run_all(rest, other_pool);
    const TenantService &one = whole.tenants().at(5), &two = rest.tenants().at(5);
    EXPECT_EQ(two.prompt_tokens, 0);
    EXPECT_EQ(two.output_tokens, 12);
    EXPECT_EQ(two.service, queue.cost.of(37, 20) - queue.cost.of(37, 8));
    EXPECT_EQ(one.service, queue.cost.of(37, 20) - queue.cost.of(0, 0));
  }
}

// An item that cannot be computed ends its request and nobody else's.
TEST(Scheduler, FailedItemEndsItsRequestAlone) {
  struct Failing final : HashExecutor {
    using HashExecutor::HashExecutor;
    std::span<ItemResult> execute(const StepPlan& plan) override {
      const std::span<ItemResult> results = HashExecutor::execute(plan);
      for (size_t i = 0; i < results.size(); ++i)
        if (plan.items[i].request->id == 2 && plan.items[i].tokens.size() == 8)
          results[i] = {.error = internal_error("not finite")};
      return results;
    }
  };
  UnifiedPool pool(32);
  Failing executor(1, 32);
  Scheduler scheduler({}, pool, executor);
  std::map<RequestId, Request> requests;
  for (RequestId id = 1; id <= 3; ++id) {
    requests[id] = make_request(id, kBaseModel, 5, 9, static_cast<uint64_t>(id));
    ASSERT_TRUE(scheduler.submit(requests[id]).ok());
  }
  auto outcomes = run_all(scheduler, pool);
  EXPECT_EQ(outcomes[2].finish, FinishReason::kError);
  EXPECT_EQ(outcomes[2].tokens.size(), 3u);
  for (const RequestId id : {1, 3}) EXPECT_EQ(outcomes[id].tokens, HashExecutor::expected(requests[id]));
  EXPECT_EQ(pool.num_available(), pool.num_pages());
}

TEST(Scheduler, AStepThatThrowsEndsWhatWasInItAndNothingElse) {
  struct Throwing : HashExecutor {
    using HashExecutor::HashExecutor;
    std::span<ItemResult> execute(const StepPlan& plan) override {
      if (std::exchange(throw_next, false)) throw std::bad_alloc();
      return HashExecutor::execute(plan);
    }
    bool throw_next = false;
  };
  UnifiedPool pool(64);
  Throwing executor(0, 64);
  Scheduler scheduler({.max_running = 2}, pool, executor);
  for (RequestId id : {1, 2, 3})
    ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 20, 10, static_cast<uint64_t>(id))).ok());
  (void)scheduler.step();
  executor.throw_next = true;
  std::map<RequestId, FinishReason> ended;
  while (scheduler.has_work())
    for (const RequestEvent& event : scheduler.step())
      if (event.finish != FinishReason::kNone) {
        ended[event.id] = event.finish;
        EXPECT_EQ(event.error.code(), event.id == 3 ? StatusCode::kOk : StatusCode::kInternal);
      }
  EXPECT_EQ(ended, (std::map<RequestId, FinishReason>{
                       {1, FinishReason::kError}, {2, FinishReason::kError}, {3, FinishReason::kLength}}));
  pool.check_integrity();
  EXPECT_EQ(pool.num_available(), pool.num_pages());
}

TEST(Scheduler, TokenThatItsConstraintRefusesEndsTheRequest) {
  struct Refusing final : TokenConstraint {
    Status allowed(std::span<uint64_t>) override { return Status(); }
    Status accept(int32_t) override { return ++accepted <= 3 ? Status() : internal_error("not that"); }
    int accepted = 0;
  };
  UnifiedPool pool(32);
  HashExecutor executor(1, 32);
  Scheduler scheduler({}, pool, executor);
  Request request = make_request(1, kBaseModel, 5, 9, 1);
  request.constraint = std::make_shared<Refusing>();
  ASSERT_TRUE(scheduler.submit(request).ok());
  const Request free = make_request(2, kBaseModel, 5, 9, 2);
  ASSERT_TRUE(scheduler.submit(free).ok());
  auto outcomes = run_all(scheduler, pool);
  EXPECT_EQ(outcomes[1].finish, FinishReason::kError);
  EXPECT_EQ(outcomes[1].tokens.size(), 3u);
  EXPECT_EQ(outcomes[2].tokens, HashExecutor::expected(free));
}

// One set of deadlines: of the first token while a request waits, of the whole answer always.
TEST(Scheduler, RequestExpiresWhereverItIs) {
  UnifiedPool pool(32);
  HashExecutor executor(1, 32);
  Scheduler scheduler({.max_running = 1}, pool, executor);
  std::map<RequestId, Status> errors;
  std::map<RequestId, int> tokens;
  const auto step = [&] {
    for (const RequestEvent& event : scheduler.step()) {
      tokens[event.id] += event.has_token;
      if (event.finish == FinishReason::kError) errors[event.id] = event.error;
    }
  };
  for (RequestId id = 1; id <= 3; ++id) {
    Request request = make_request(id, kBaseModel, 5, 40, static_cast<uint64_t>(id));
    request.expires = id == 1 ? 1000 : id == 2 ? 500 : kNoDeadline;
    ASSERT_TRUE(scheduler.submit(request).ok());
  }
  step();
  executor.time = 499;
  step();
  EXPECT_TRUE(errors.empty());
  executor.time = 500;  // while it waits
  step();
  EXPECT_EQ(errors[2].code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(errors.size(), 1u);
  executor.time = 1000;  // while it runs
  step();
  EXPECT_EQ(errors[1].code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(tokens[1], 3);
  EXPECT_EQ(scheduler.stats().num_missed_deadlines, 0) << "both had the time for a first token";
  while (scheduler.has_work()) step();
  EXPECT_EQ(tokens[3], 40);
  EXPECT_EQ(pool.num_available(), pool.num_pages());
}

}  // namespace
}  // namespace lk
