// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>

#include "lk/base/rng.h"

namespace lk {
namespace {

// A model without tensors: the state of position p is a hash of the state of p - 1, read from the page table, and the
// token. A wrong, stale or foreign page changes every later token, so tokens prove the paging.
class HashExecutor : public Executor {
 public:
  explicit HashExecutor(uint64_t seed, int64_t num_pages) : rng_(seed), slots_(static_cast<size_t>(num_pages * 16)) {}

  Micros now() const override { return time; }
  static uint64_t next_state(uint64_t state, int32_t token) { return mix64(state * 31 + static_cast<uint64_t>(token) + 1); }
  static uint64_t first_state(AdapterId adapter) { return mix64(static_cast<uint64_t>(adapter) + 77); }
  static int32_t token_of(uint64_t state) { return static_cast<int32_t>(mix64(state) % 50); }
  // What a request alone would produce.
  static std::vector<int32_t> expected(const Request& request) {
    uint64_t state = first_state(request.adapter);
    for (int32_t token : request.prompt) state = next_state(state, token);
    std::vector<int32_t> output;
    while (static_cast<int64_t>(output.size()) < request.max_tokens) {
      output.push_back(token_of(state));
      if (std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), output.back()) != request.stop_token_ids.end())
        break;
      state = next_state(state, output.back());
    }
    return output;
  }

  AdapterFootprint footprint(AdapterId adapter) const override { return {.num_pages = 1 + adapter % 3, .run_length = adapter % 2}; }
  void start_load(AdapterId adapter, const AdapterPages&) override { loading_.push_back(adapter); }
  void stage(AdapterId adapter) override { staged.insert(adapter); }
  std::vector<LoadResult> take_finished_loads(bool wait) override {
    std::vector<LoadResult> done;
    while (!loading_.empty() && ((wait && done.empty()) || rng_.below(3) == 0)) {
      const AdapterId adapter = loading_.front();
      loading_.pop_front();
      done.push_back({adapter, adapter == broken_adapter ? data_loss("adapter {} is broken", adapter) : Status()});
    }
    return done;
  }
  std::vector<ItemResult> execute(const StepPlan& plan) override {
    std::vector<ItemResult> results;
    int64_t num_tokens = 0;
    for (const StepItem& item : plan.items) {
      EXPECT_LT(item.begin, item.end);
      num_tokens += item.end - item.begin;
      ItemResult result;
      for (int64_t pos = item.begin; pos < item.end; ++pos) {
        const uint64_t before = pos == 0 ? first_state(item.request->adapter) : slot(item, pos - 1);
        slot(item, pos) = next_state(before, item.tokens[static_cast<size_t>(pos)]);
        if (item.prompt_logprobs && pos + 1 < static_cast<int64_t>(item.request->prompt.size()))
          result.prompt_logprobs.push_back({.token = item.request->prompt[static_cast<size_t>(pos + 1)],
                                            .logprob = static_cast<float>(token_of(slot(item, pos)))});
      }
      if (item.sample) result.token.token = token_of(slot(item, item.end - 1));
      results.push_back(std::move(result));
    }
    EXPECT_EQ(num_tokens, plan.num_tokens);
    max_step_tokens_seen = std::max(max_step_tokens_seen, num_tokens);
    return results;
  }

  AdapterId broken_adapter = -2;
  std::set<AdapterId> staged;
  Micros time = 0;
  int64_t max_step_tokens_seen = 0;

 private:
  uint64_t& slot(const StepItem& item, int64_t pos) {
    return slots_[static_cast<size_t>(item.block_table[static_cast<size_t>(pos / 16)] * 16 + pos % 16)];
  }
  Rng rng_;
  std::vector<uint64_t> slots_;
  std::deque<AdapterId> loading_;
};

struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> prompt_logprobs;
  FinishReason finish = FinishReason::kNone;
};

std::map<RequestId, Outcome> run_all(Scheduler& scheduler, UnifiedPool& pool) {
  std::map<RequestId, Outcome> outcomes;
  for (int guard = 0; scheduler.has_work(); ++guard) {
    EXPECT_LT(guard, 100000) << "no progress";
    for (RequestEvent& event : scheduler.step()) {
      Outcome& outcome = outcomes[event.id];
      if (event.has_token) outcome.tokens.push_back(event.token.token);
      if (!event.prompt_logprobs.empty()) outcome.prompt_logprobs = std::move(event.prompt_logprobs);
      if (event.finish != FinishReason::kNone) outcome.finish = event.finish;
    }
    pool.check_integrity();
  }
  return outcomes;
}

Request make_request(RequestId id, AdapterId adapter, int64_t prompt_length, int64_t max_tokens, uint64_t seed) {
  Request request{.id = id, .adapter = adapter, .max_tokens = max_tokens};
  Rng rng(seed);
  for (int64_t i = 0; i < prompt_length; ++i) request.prompt.push_back(static_cast<int32_t>(rng.below(50)));
  return request;
}

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
  for (RequestId id : {1, 2}) ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 30, 60, static_cast<uint64_t>(id))).ok());
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
    std::vector<RequestEvent> events = scheduler.step();
    std::erase_if(events, [](const RequestEvent& event) { return !event.has_token; });
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].id, 1);
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
    ASSERT_TRUE(scheduler.submit(make_request(id, static_cast<AdapterId>(id % 6), 60, 20, static_cast<uint64_t>(id))).ok());
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
  EXPECT_EQ(scheduler.submit(make_request(101, kBaseModel, 24 * 16 - 8, 4, 1)).code(), StatusCode::kFailedPrecondition);  // 4 is still pinned
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
        if (event.started) { EXPECT_EQ(event.cached_tokens, id == 0 ? 0 : 48); }
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

// A pool that is too small: who came last loses its pages, but never to a request that came later, unless that is urgent.
TEST(Scheduler, UrgentRequestKeepsItsPages) {
  UnifiedPool pool(8);
  HashExecutor executor(0, 8);
  Scheduler scheduler({}, pool, executor);
  for (RequestId id = 1; id <= 3; ++id) ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 20, 60, static_cast<uint64_t>(id))).ok());
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
    void mask(std::span<float>) override {}
    void accept(int32_t token) override { heard.push_back(token); }
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

TEST(Scheduler, AdapterThatFailsToLoadFailsItsOwnRequestsOnly) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  executor.broken_adapter = 3;
  Scheduler scheduler({}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 3, 10, 4, 1)).ok());
  ASSERT_TRUE(scheduler.submit(make_request(2, 4, 10, 4, 1)).ok());
  const auto outcomes = run_all(scheduler, pool);
  EXPECT_EQ(outcomes.at(1).finish, FinishReason::kError);
  EXPECT_EQ(outcomes.at(2).tokens.size(), 4u);
}

TEST(Scheduler, AdapterThatFailsToLoadIsNotTriedAgainAtOnce) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  executor.broken_adapter = 3;
  Scheduler scheduler({}, pool, executor);
  RequestId next_id = 0;
  // The loads that were tried in 100 s of a request every 10 ms.
  int64_t failed = 0, refused = 0;
  for (; executor.time < 100'000'000; executor.time += 10'000) {
    const Status status = scheduler.submit(make_request(next_id++, 3, 5, 2, 1));
    EXPECT_TRUE(status.ok() || status.code() == StatusCode::kUnavailable);
    refused += !status.ok();
    while (scheduler.has_work())
      for (const RequestEvent& event : scheduler.step()) failed += event.finish == FinishReason::kError;
  }
  EXPECT_EQ(failed, scheduler.stats().num_adapter_loads);
  EXPECT_EQ(failed + refused, next_id);
  EXPECT_GE(failed, 9) << "0.1 + 0.2 + ... s";
  EXPECT_LE(failed, 14);
  // Another adapter, and this one once it is repaired, go on as ever.
  ASSERT_TRUE(scheduler.submit(make_request(next_id++, 4, 5, 2, 1)).ok());
  executor.broken_adapter = -2;
  executor.time += 30'000'000;
  ASSERT_TRUE(scheduler.submit(make_request(next_id, 3, 5, 2, 1)).ok());
  EXPECT_EQ(run_all(scheduler, pool)[next_id].tokens.size(), 2u);
  ASSERT_TRUE(scheduler.submit(make_request(next_id, 3, 5, 2, 1)).ok());
  run_all(scheduler, pool);
}

TEST(Scheduler, PrefetchLoadsWhatTheNextStepWants) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  Scheduler scheduler({.load_ahead = 2}, pool, executor);
  scheduler.prefetch(kBaseModel);
  EXPECT_FALSE(scheduler.has_work());
  scheduler.prefetch(1);
  scheduler.prefetch(1);  // it loads already
  scheduler.prefetch(2);
  scheduler.prefetch(3);  // a third before the next step
  EXPECT_EQ(scheduler.stats().num_prefetches, 2);
  EXPECT_EQ(pool.adapter_state(3), AdapterState::kAbsent);
  while (scheduler.has_work()) (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(make_request(1, 1, 4, 1, 1)).ok());
  EXPECT_EQ(scheduler.step().size(), 1u) << "no step is lost";
  EXPECT_EQ(scheduler.stats().num_adapter_loads, 2);
  scheduler.prefetch(3);
  EXPECT_EQ(pool.adapter_state(3), AdapterState::kLoading) << "the bound counts from step to step";
}

TEST(Scheduler, PrefetchTakesNothingFromThoseThatRunOrWait) {
  // Adapter 0 takes 1 page, 2 takes 3, 5 takes 4.
  UnifiedPool pool(9);
  HashExecutor executor(0, 9);
  Scheduler scheduler({.max_running = 1, .prefix_cache = false}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 0, 4, 40, 1)).ok());
  while (scheduler.num_running() == 0) (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(make_request(2, 2, 4, 2, 2)).ok());  // waits for its turn
  while (pool.adapter_state(2) != AdapterState::kResident) (void)scheduler.step();
  scheduler.prefetch(5);  // fits, but would leave too little beside adapter 2
  EXPECT_EQ(scheduler.stats().num_prefetches, 0);
  EXPECT_EQ(pool.adapter_state(0), AdapterState::kResident);
  EXPECT_EQ(pool.adapter_state(2), AdapterState::kResident);
  ASSERT_TRUE(scheduler.finish(2));
  scheduler.prefetch(5);  // nobody wants adapter 2 any more: it counts as room
  EXPECT_EQ(pool.adapter_state(5), AdapterState::kLoading);
  pool.check_integrity();
  run_all(scheduler, pool);
}

TEST(Scheduler, PrefetchLeavesABrokenAdapterAlone) {
  UnifiedPool pool(16);
  HashExecutor executor(0, 16);
  executor.broken_adapter = 1;
  Scheduler scheduler({}, pool, executor);
  scheduler.prefetch(1);
  while (scheduler.has_work()) EXPECT_TRUE(scheduler.step().empty());
  scheduler.prefetch(1);
  EXPECT_EQ(scheduler.stats().num_prefetches, 1);
  executor.time = 200'000;  // past the first pause
  scheduler.prefetch(1);
  EXPECT_EQ(scheduler.stats().num_prefetches, 2);
}

// A load ahead of its turn spares the adapters of the requests before it, even of those that only wait; what finds no room is staged instead.
TEST(Scheduler, LoadsAheadSpareWhatEarlierRequestsWaitFor) {
  // Adapter 0 takes 1 page, 2 takes 3, 5 and 8 take 3 and 4 (with its run).
  UnifiedPool pool(12);
  HashExecutor executor(0, 12);
  Scheduler scheduler({.max_running = 1, .prefix_cache = false, .queue = {.kind = QueueKind::kFcfs}}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 0, 4, 60, 1)).ok());
  while (scheduler.num_running() == 0) (void)scheduler.step();
  for (RequestId id : {2, 3, 4}) ASSERT_TRUE(scheduler.submit(make_request(id, id == 2 ? 2 : id == 3 ? 5 : 8, 4, 2, static_cast<uint64_t>(id))).ok());
  while (pool.adapter_state(2) != AdapterState::kResident || pool.adapter_state(5) != AdapterState::kResident) (void)scheduler.step();
  for (int i = 0; i < 20; ++i) (void)scheduler.step();
  EXPECT_EQ(scheduler.num_running(), 1) << "the first still runs";
  EXPECT_EQ(scheduler.stats().num_adapter_loads, 3) << "8 took nobody's place, and nobody was loaded twice";
  EXPECT_EQ(pool.adapter_state(2), AdapterState::kResident);
  EXPECT_EQ(pool.adapter_state(5), AdapterState::kResident);
  EXPECT_EQ(pool.adapter_state(8), AdapterState::kAbsent);
  EXPECT_EQ(executor.staged, std::set<AdapterId>{8});
  const auto outcomes = run_all(scheduler, pool);
  for (RequestId id : {2, 3, 4}) EXPECT_EQ(outcomes.at(id).tokens.size(), 2u);
  EXPECT_EQ(scheduler.stats().num_adapter_loads, 4);
}

// Each tenant its own adapter, all of them always waiting, fewer slots than tenants.
TEST(Scheduler, AdapterSlotsAreSharedFairlyAndNeverExceeded) {
  for (const auto& [num_tenants, num_slots] : {std::pair{3, 2}, std::pair{8, 4}, std::pair{16, 4}}) {
    UnifiedPool pool(4096);
    HashExecutor executor(0, 4096);
    Scheduler scheduler({.max_step_tokens = 256, .max_running = 32, .prefix_cache = false, .slots = {.max = num_slots, .drain_gap = 400'000}}, pool, executor);
    Rng rng(1);
    RequestId next_id = 0;
    std::map<RequestId, AdapterId> running;
    int64_t computed_with_room = 0, steps = 0;
    for (; steps < 6000; ++steps) {
      executor.time += 1000;
      for (int tenant = 0; tenant < num_tenants; ++tenant) {
        const auto it = scheduler.tenants().find(tenant);
        for (int64_t waiting = it == scheduler.tenants().end() ? 0 : it->second.waiting; waiting < 20; ++waiting) {
          Request request = make_request(next_id++, tenant, 1 + static_cast<int64_t>(rng.below(40)), 1 + static_cast<int64_t>(rng.below(40)), rng.below(1000));
          request.tenant = tenant;
          ASSERT_TRUE(scheduler.submit(std::move(request)).ok());
        }
      }
      (void)scheduler.step();
      int64_t distinct = 0;
      for (const auto& [adapter, load] : scheduler.adapter_load()) distinct += load.running > 0;
      ASSERT_LE(distinct, num_slots);
      if (steps > 100) computed_with_room += scheduler.num_running() >= 28;
    }
    double all = 0;
    for (const auto& [tenant, service] : scheduler.tenants()) all += static_cast<double>(service.service);
    for (const auto& [tenant, service] : scheduler.tenants())
      EXPECT_GT(static_cast<double>(service.service) / all, 0.7 / num_tenants) << tenant << " of " << num_tenants;
    EXPECT_GT(scheduler.stats().num_adapter_drains, 0);
    EXPECT_GT(computed_with_room, 0.95 * static_cast<double>(steps - 100)) << "the batch stays full";
  }
}

TEST(Scheduler, ReservedAdmissionNeverPreempts) {
  for (const Admission admission : {Admission::kOptimistic, Admission::kExpected, Admission::kReserved}) {
    UnifiedPool pool(40);
    HashExecutor executor(0, 40);
    Scheduler scheduler({.prefix_cache = false, .admission = admission}, pool, executor);
    for (RequestId id = 0; id < 60; ++id) ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 20, 60, static_cast<uint64_t>(id))).ok());
    int64_t most_running = 0;
    while (scheduler.has_work()) {
      (void)scheduler.step();
      most_running = std::max(most_running, scheduler.num_running());
    }
    if (admission != Admission::kExpected) {
      EXPECT_EQ(scheduler.stats().num_preemptions > 0, admission == Admission::kOptimistic);
    }
    EXPECT_GE(most_running, 7);  // of 8 that fit
  }
}

TEST(Scheduler, MissedDeadlinesEndAndHopelessRequestsAreRefusedAtOnce) {
  for (const bool refuse_early : {false, true}) {
    UnifiedPool pool(4096);
    HashExecutor executor(0, 4096);
    // A step of 10 ms; a prompt is a step's worth of tokens: 100 requests a second at most.
    Scheduler scheduler({.max_step_tokens = 50, .prefix_cache = false, .slo = {.first_token = 1'000'000, .refuse_early = refuse_early}}, pool, executor);
    std::map<RequestId, Micros> arrivals;
    int64_t in_time = 0, late = 0, ended = 0, refused = 0, waited_in_vain = 0;
    RequestId next_id = 0;
    for (int step = 0; step < 3000; ++step) {
      for (int i = 0; i < 2; ++i) {  // twice what it can do
        arrivals[next_id] = executor.time;
        const Status status = scheduler.submit(make_request(next_id, kBaseModel, 45, 1, static_cast<uint64_t>(next_id)));
        EXPECT_TRUE(status.ok() || status.code() == StatusCode::kDeadlineExceeded);
        refused += !status.ok();
        ++next_id;
      }
      executor.time += 10'000;
      for (const RequestEvent& event : scheduler.step()) {
        if (event.has_token) ++(executor.time - arrivals[event.id] <= 1'000'000 ? in_time : late);
        if (event.finish != FinishReason::kError) continue;
        EXPECT_EQ(event.error.code(), StatusCode::kDeadlineExceeded);
        ++ended;
        waited_in_vain += executor.time - arrivals[event.id];
      }
    }
    EXPECT_GT(in_time, 2900);
    EXPECT_LT(late, 30);
    EXPECT_GE(refused, refuse_early ? 2000 : 0);
    EXPECT_TRUE(refuse_early || refused == 0);
    EXPECT_EQ(scheduler.stats().num_missed_deadlines, ended);
  }
}

// Small pools force preemption, eviction and reloads; cancellations come at any step.
TEST(Scheduler, RandomTrafficGivesEachRequestItsOwnTokensAndFreesEverything) {
  int64_t preemptions = 0, cached_tokens = 0, evicted = 0, num_drops = 0, num_pins = 0, num_refused = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    const auto num_pages = static_cast<int64_t>(8 + rng.below(20));
    UnifiedPool pool(num_pages);
    HashExecutor executor(seed, num_pages);
    Scheduler scheduler({.max_step_tokens = static_cast<int64_t>(1 + rng.below(40)),
                         .max_running = static_cast<int64_t>(1 + rng.below(6)),
                         .prefix_cache = rng.below(4) != 0,
                         .admission = static_cast<Admission>(rng.below(3)),
                         .queue = {.kind = static_cast<QueueKind>(rng.below(5)),
                                   .within = static_cast<WithinTenant>(rng.below(5)),
                                   .prediction = static_cast<Prediction>(rng.below(3)),
                                   .quantum = 1000 + static_cast<int64_t>(rng.below(100'000))},
                         .slots = {.max = static_cast<int64_t>(rng.below(4)), .cluster = static_cast<int64_t>(rng.below(3)), .drain_gap = 10'000}},
                        pool, executor);
    int64_t billed = 0, computed_or_made = 0;
    std::map<RequestId, Request> requests;
    std::map<RequestId, Outcome> outcomes;
    std::set<RequestId> cancelled;
    RequestId next_id = 0;
    while (next_id < 40 || scheduler.has_work()) {
      while (next_id < 40 && rng.below(3) == 0) {
        // Few distinct prompts, so that prefixes are shared.
        Request request = make_request(next_id++, static_cast<AdapterId>(rng.below(6)) - 1, static_cast<int64_t>(1 + rng.below(60)),
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
        const int64_t free = pool.num_free();
        if (const auto freed = scheduler.drop_adapter(adapter)) {
          EXPECT_EQ(pool.num_free(), free + *freed);
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
        if (outcome.finish == FinishReason::kError) {  // pinned adapters left no contiguous pages
          ++num_refused;
          continue;
        }
        if (request.sampling.num_prompt_logprobs >= 0) {
          EXPECT_EQ(outcome.prompt_logprobs.size(), request.prompt.size() - 1);
          for (size_t i = 0; i < outcome.prompt_logprobs.size(); ++i)
            EXPECT_EQ(outcome.prompt_logprobs[i].token, request.prompt[i + 1]);
        }
      }
      EXPECT_EQ(outcome.tokens, expected) << "seed " << seed << " request " << id;
    }
    for (AdapterId adapter = 0; adapter < 6; ++adapter) EXPECT_TRUE(scheduler.set_pinned(adapter, false).ok());
    EXPECT_EQ(pool.num_available(), num_pages);
    pool.evict_all();
    EXPECT_EQ(pool.num_free(), num_pages);
    preemptions += scheduler.stats().num_preemptions;
    cached_tokens += scheduler.stats().num_cached_prompt_tokens;
    evicted += pool.num_evicted_adapters();
  }
  // The traffic must have exercised what it claims to.
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(cached_tokens, 1000);
  EXPECT_GT(evicted, 20);
  EXPECT_GT(num_drops, 20);
  EXPECT_GT(num_pins, 20);
  EXPECT_LT(num_refused, 10);
}

}  // namespace
}  // namespace lk
