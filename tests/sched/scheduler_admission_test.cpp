// SPDX-License-Identifier: Apache-2.0
// Who may start: loads of adapters, adapter slots, memory, deadlines.
#include "hash_executor.h"

namespace lk {
namespace {

TEST(Admission, AdapterThatFailsToLoadFailsItsOwnRequestsOnly) {
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

TEST(Admission, AdapterThatFailsToLoadIsNotTriedAgainAtOnce) {
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

// What an operator pinned stays pinned, whatever becomes of a load; and it comes back by itself, at the breaker's pace.
TEST(Admission, APinnedAdapterWhoseLoadFailsIsLoadedAgain) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  executor.broken_adapter = 3;
  Scheduler scheduler({}, pool, executor);
  ASSERT_TRUE(scheduler.set_pinned(3, true).ok());
  for (; executor.time < 2'000'000; executor.time += 1000) {
    while (scheduler.has_work()) (void)scheduler.step();
    ASSERT_TRUE(scheduler.is_pinned(3));
    ASSERT_EQ(pool.adapter_state(3), AdapterState::kAbsent) << "nothing is claimed that is not so";
    ASSERT_NE(scheduler.next_reload(), kNoDeadline);
  }
  EXPECT_EQ(scheduler.stats().num_adapter_loads, 5) << "at 0, 0.1, 0.3, 0.7 and 1.5 s";
  // Its pages stay set aside meanwhile, and a request says why it is refused.
  EXPECT_EQ(scheduler.submit(make_request(1, kBaseModel, 64 * 16 - 8, 4, 1)).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(scheduler.submit(make_request(1, 3, 5, 2, 1)).code(), StatusCode::kUnavailable);
  executor.broken_adapter = -2;
  executor.time += 30'000'000;
  ASSERT_TRUE(scheduler.has_work());
  while (scheduler.has_work()) (void)scheduler.step();
  EXPECT_EQ(pool.adapter_state(3), AdapterState::kResident);
  EXPECT_EQ(pool.num_pins(3), 1);
  EXPECT_EQ(scheduler.next_reload(), kNoDeadline);
  // Let go while its load fails, it is nobody's any more.
  executor.broken_adapter = 5;
  ASSERT_TRUE(scheduler.set_pinned(5, true).ok());
  while (scheduler.has_work()) (void)scheduler.step();
  ASSERT_TRUE(scheduler.set_pinned(5, false).ok());
  EXPECT_EQ(scheduler.next_reload(), kNoDeadline);
  ASSERT_TRUE(scheduler.set_pinned(3, false).ok());
  EXPECT_TRUE(scheduler.submit(make_request(1, kBaseModel, 64 * 16 - 8, 4, 1)).ok());
}

// Want of room is nobody's failure: the breaker used to refuse its clients for it.
TEST(Admission, APinnedAdapterThatFindsNoRoomRefusesNoClient) {
  UnifiedPool pool(12);
  HashExecutor executor(0, 12);
  executor.broken_adapter = 2;  // 3 pages
  Scheduler scheduler({.prefix_cache = false}, pool, executor);
  ASSERT_TRUE(scheduler.set_pinned(2, true).ok());
  while (scheduler.has_work()) (void)scheduler.step();
  executor.broken_adapter = -2;
  for (RequestId id : {1, 2}) ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 70, 40, 1)).ok());
  while (pool.num_available() >= 3) (void)scheduler.step();
  executor.time = 200'000;  // past the pause after the failure
  (void)scheduler.step();
  ASSERT_EQ(pool.adapter_state(2), AdapterState::kAbsent) << "no room";
  EXPECT_TRUE(scheduler.submit(make_request(3, 2, 5, 2, 1)).ok());
  EXPECT_EQ(run_all(scheduler, pool).at(3).tokens.size(), 2u);
  EXPECT_EQ(pool.num_pins(2), 1);
  ASSERT_TRUE(scheduler.set_pinned(2, false).ok());
}

TEST(Admission, PinningLeavesRoomForEveryOtherAdapter) {
  // Adapter 3 takes 2 pages, 2 takes 3, 5 takes 4.
  UnifiedPool pool(8);
  HashExecutor executor(0, 8);
  executor.known = {2, 3, 5};
  Scheduler scheduler({}, pool, executor);
  ASSERT_TRUE(scheduler.set_pinned(3, true).ok());
  EXPECT_EQ(scheduler.set_pinned(2, true).code(), StatusCode::kResourceExhausted) << "5 would be too large for ever";
  ASSERT_TRUE(scheduler.submit(make_request(1, 5, 5, 2, 1)).ok());
  run_all(scheduler, pool);
  ASSERT_TRUE(scheduler.set_pinned(3, false).ok());
  EXPECT_TRUE(scheduler.set_pinned(2, true).ok());
  ASSERT_TRUE(scheduler.submit(make_request(1, 5, 5, 2, 1)).ok());
  run_all(scheduler, pool);
  // The request of an adapter that is pinned needs its pages once, not twice.
  ASSERT_TRUE(scheduler.set_pinned(2, false).ok());
  executor.known = {2};
  ASSERT_TRUE(scheduler.submit(make_request(2, 2, 4 * 16, 16, 1)).ok());
  EXPECT_TRUE(scheduler.set_pinned(2, true).ok());
  run_all(scheduler, pool);
  ASSERT_TRUE(scheduler.set_pinned(2, false).ok());
}

// What is staged takes a share of host memory, and whoever it was staged for may be gone.
TEST(Admission, WhatNobodyWaitsForIsStagedNoLonger) {
  // Adapter 0 takes 1 page, 2 takes 3.
  UnifiedPool pool(6);
  HashExecutor executor(0, 6);
  Scheduler scheduler({.prefix_cache = false}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 0, 40, 10, 1)).ok());
  while (scheduler.num_running() == 0) (void)scheduler.step();
  const std::set<AdapterId> nobody, two{2};
  ASSERT_TRUE(scheduler.submit(make_request(2, 2, 4, 2, 1)).ok());
  (void)scheduler.step();
  EXPECT_EQ(executor.staged, two);
  ASSERT_TRUE(scheduler.finish(2));
  EXPECT_EQ(executor.staged, nobody) << "cancelled";
  scheduler.prefetch(2);
  EXPECT_EQ(executor.staged, two);
  Request late = make_request(2, 2, 4, 2, 1);
  late.deadline = -1;
  EXPECT_EQ(scheduler.submit(std::move(late)).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(executor.staged, nobody) << "refused";
  EXPECT_EQ(scheduler.set_pinned(2, true).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(executor.staged, nobody) << "not pinned";
  run_all(scheduler, pool);
}

TEST(Admission, ARefusedSequenceIsAsItWas) {
  UnifiedPool pool(16);
  HashExecutor executor(0, 16);
  Scheduler scheduler({}, pool, executor);
  auto sequence = std::make_unique<Sequence>(make_request(1, kBaseModel, 20, 4, 1));
  sequence->asked.sampling.presence_penalty = 1;
  sequence->asked.deadline = -1;
  EXPECT_EQ(scheduler.submit(sequence).code(), StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(sequence->tokens.empty());
  EXPECT_TRUE(sequence->seen.all().empty());
  EXPECT_EQ(sequence->deadline, kNoDeadline);
  sequence->asked.deadline = kNoDeadline;
  ASSERT_TRUE(scheduler.submit(sequence).ok());
  EXPECT_EQ(run_all(scheduler, pool).at(1).tokens.size(), 4u);
}

// Shutting down waits for no load that has not begun.
TEST(Admission, TheEndOfASchedulerAbandonsItsLoads) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  {
    Scheduler scheduler({}, pool, executor);
    for (AdapterId adapter : {1, 2, 3}) ASSERT_TRUE(scheduler.submit(make_request(adapter, adapter, 4, 2, 1)).ok());
    scheduler.prefetch(4);
    ASSERT_EQ(pool.adapter_state(4), AdapterState::kLoading);
  }
  EXPECT_TRUE(executor.resident.empty());
  EXPECT_EQ(pool.num_adapter(), 0);
  pool.check_integrity();
}

// An idle server sleeps until then.
TEST(Admission, NextChangeIsTheFirstThingThatTimeBrings) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  executor.broken_adapter = 3;
  Scheduler scheduler({}, pool, executor);
  EXPECT_EQ(scheduler.next_change(), kNoDeadline);
  Request request = make_request(1, 1, 4, 2, 1);
  request.expires = 5'000'000;
  ASSERT_TRUE(scheduler.submit(request).ok());
  EXPECT_EQ(scheduler.next_change(), 5'000'000);
  request.id = 2, request.deadline = 3'000'000;
  ASSERT_TRUE(scheduler.submit(request).ok());
  EXPECT_EQ(scheduler.next_change(), 3'000'001) << "then it is late";
  ASSERT_TRUE(scheduler.set_pinned(3, true).ok());
  run_all(scheduler, pool);
  EXPECT_EQ(scheduler.next_change(), 100'000) << "then the pinned one is loaded again";
}

// The length at which a client gave up says nothing about the lengths of answers.
TEST(Admission, ARequestThatIsCutShortTeachesNoLength) {
  UnifiedPool pool(64);
  HashExecutor executor(0, 64);
  QueuePolicy* policy = nullptr;
  SchedulerOptions options;
  options.make_queue = [&](const QueueOptions& queue, Locality locality) {
    auto made = QueuePolicy::create(queue, std::move(locality));
    policy = made.get();
    return made;
  };
  Scheduler scheduler(options, pool, executor);
  const Request request = make_request(1, kBaseModel, 4, 50, 1);
  const auto run = [&](int tokens) {
    ASSERT_TRUE(scheduler.submit(request).ok());
    for (int token = 0; token < tokens; ++token) (void)scheduler.step();
  };
  run(50);
  ASSERT_EQ(policy->expected_output(request), 50);
  run(3);
  ASSERT_TRUE(scheduler.finish(1));
  EXPECT_EQ(policy->expected_output(request), 50);
  run(25);
  ASSERT_TRUE(scheduler.finish(1, true));  // by a stop string
  EXPECT_EQ(policy->expected_output(request), 45);
}

TEST(Admission, PrefetchLoadsWhatTheNextStepWants) {
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

TEST(Admission, PrefetchTakesNothingFromThoseThatRunOrWait) {
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

TEST(Admission, PrefetchLeavesABrokenAdapterAlone) {
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

// A load ahead of its turn spares the adapters of the requests before it, even of those that only wait; what finds no
// room is staged instead.
TEST(Admission, LoadsAheadSpareWhatEarlierRequestsWaitFor) {
  // Adapter 0 takes 1 page, 2 takes 3, 5 takes 4 (one of them of a matrix), 8 takes 3.
  UnifiedPool pool(12);
  HashExecutor executor(0, 12);
  Scheduler scheduler({.max_running = 1, .prefix_cache = false, .queue = {.kind = QueueKind::kFcfs}}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 0, 4, 60, 1)).ok());
  while (scheduler.num_running() == 0) (void)scheduler.step();
  for (RequestId id : {2, 3, 4})
    ASSERT_TRUE(scheduler.submit(make_request(id,
                                              id == 2   ? 2
                                              : id == 3 ? 5
                                                        : 8,
                                              4, 2, static_cast<uint64_t>(id)))
                    .ok());
  while (pool.adapter_state(2) != AdapterState::kResident || pool.adapter_state(5) != AdapterState::kResident)
    (void)scheduler.step();
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

// Whole matrices take thousands of pages of a pool that is full of cached prompts: so many are evicted and no more, and
// who comes later starts meanwhile.
TEST(Admission, ThousandsOfPagesForAnAdapterStopNobodyAndEvictNoMoreThanItTakes) {
  constexpr int64_t kPages = 93'000;
  UnifiedPool pool(kPages);
  HashExecutor executor(0, kPages);
  executor.matrix_pages = 11'000;
  std::vector<PageId> pages;
  for (int32_t n = 0; n < kPages; ++n) {
    pages.push_back(*pool.alloc_kv());
    pool.publish_kv(pages.back(), child_block_key(root_block_key(kBaseModel, 7), std::span(&n, 1)), kBaseModel);
  }
  for (const PageId page : pages) pool.release_kv(page);
  Scheduler scheduler({.queue = {.kind = QueueKind::kFcfs}}, pool, executor);
  ASSERT_TRUE(scheduler.submit(make_request(1, 1, 20, 8, 1)).ok());
  ASSERT_TRUE(scheduler.submit(make_request(2, kBaseModel, 20, 8, 2)).ok());
  std::vector<RequestId> started;
  while (scheduler.has_work())
    for (const RequestEvent& event : scheduler.step())
      if (event.started) started.push_back(event.id);
  EXPECT_EQ(started, (std::vector<RequestId>{2, 1}));
  EXPECT_EQ(pool.num_free() + pool.num_cached_kv() + executor.footprint(1), kPages);
  EXPECT_GE(pool.num_cached_kv(), kPages - executor.footprint(1) - 4);

  // Two such adapters do not fit. Who needs the second waits until the first is let go, and nothing is evicted for it.
  executor.matrix_pages = 80'000;
  ASSERT_TRUE(scheduler.submit(make_request(3, 3, 20, 400, 3)).ok());
  while (scheduler.num_running() == 0) (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(make_request(4, 5, 20, 8, 4)).ok());
  const int64_t cached = pool.num_cached_kv(), evicted = pool.num_evicted_adapters();
  for (int i = 0; i < 320; ++i) (void)scheduler.step();
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(pool.num_evicted_adapters(), evicted);
  EXPECT_GE(pool.num_cached_kv(), cached - 20) << "the pages of 320 tokens";
  EXPECT_EQ(run_all(scheduler, pool).at(4).finish, FinishReason::kLength);
}

// A request that finds no room, step after step, against a world without it: nothing was counted, and who is evicted
// next is the same.
TEST(Admission, WhatFailsIsNoUseOfThePrefixCache) {
  const auto world = [](bool waits) {
    UnifiedPool pool(34);
    HashExecutor executor(0, 34);
    Scheduler scheduler({.admission = Admission::kReserved, .queue = {.kind = QueueKind::kFcfs}}, pool, executor);
    for (RequestId id : {1, 2, 3}) {
      EXPECT_TRUE(scheduler.submit(make_request(id, kBaseModel, 33, 1, static_cast<uint64_t>(id))).ok());
      run_all(scheduler, pool);
    }
    EXPECT_TRUE(scheduler.submit(make_request(10, kBaseModel, 16, 380, 10)).ok());  // up to 25 pages
    (void)scheduler.step();
    // It begins like the first, whose two pages are cached, and needs 28.
    EXPECT_TRUE(scheduler.submit(make_request(11, kBaseModel, 65, 380, 1)).ok());
    if (!waits) {
      EXPECT_TRUE(scheduler.finish(11));
    }
    const SchedulerStats before = scheduler.stats();
    for (int step = 0; step < 300; ++step) (void)scheduler.step();
    EXPECT_EQ(scheduler.num_waiting(), waits ? 1 : 0);
    EXPECT_EQ(scheduler.stats().num_looked_up_tokens, before.num_looked_up_tokens);
    EXPECT_EQ(scheduler.stats().num_cached_prompt_tokens, before.num_cached_prompt_tokens);
    scheduler.finish(10);
    if (waits) {
      // Counted once it is admitted, once.
      (void)scheduler.step();
      EXPECT_EQ(scheduler.stats().num_looked_up_tokens, before.num_looked_up_tokens + 65);
      EXPECT_EQ(scheduler.stats().num_cached_prompt_tokens, before.num_cached_prompt_tokens + 32);
    }
    return before.num_looked_up_tokens;
  };
  EXPECT_EQ(world(true), world(false));

  const auto who_goes = [](bool waits) {
    UnifiedPool pool(34);
    HashExecutor executor(0, 34);
    Scheduler scheduler({.admission = Admission::kReserved, .queue = {.kind = QueueKind::kFcfs}}, pool, executor);
    for (RequestId id : {1, 2, 3}) {
      EXPECT_TRUE(scheduler.submit(make_request(id, kBaseModel, 33, 1, static_cast<uint64_t>(id))).ok());
      run_all(scheduler, pool);
    }
    EXPECT_TRUE(scheduler.submit(make_request(10, kBaseModel, 16, 380, 10)).ok());
    (void)scheduler.step();
    EXPECT_TRUE(scheduler.submit(make_request(11, kBaseModel, 65, 380, 1)).ok());
    if (!waits) {
      EXPECT_TRUE(scheduler.finish(11));
    }
    for (int step = 0; step < 300; ++step) (void)scheduler.step();
    for (RequestId id : {10, 11}) scheduler.finish(id);
    std::vector<PageId> order;
    while (const std::optional<PageId> page = pool.alloc_kv()) order.push_back(*page);
    for (const PageId page : order) pool.release_kv(page);
    return order;
  };
  EXPECT_EQ(who_goes(true), who_goes(false));
}

// Merged pages are not given back for a load that would not fit even then.
TEST(Admission, MergedPagesAreNotGivenBackForNothing) {
  UnifiedPool pool(40);
  HashExecutor executor(0, 40);
  executor.merge_pages = 10;
  RandomMergeGate merging(pool, executor, 1);
  Scheduler scheduler({.prefix_cache = false, .queue = {.kind = QueueKind::kFcfs}}, pool, executor, &merging);
  // Adapter 2 (3 pages) runs, with 2 pages of KV, and is merged (12 pages): at most 35 pages can be had.
  ASSERT_TRUE(scheduler.submit(make_request(1, 2, 4, 100, 1)).ok());
  while (pool.num_merged() == 0 || pool.num_kv() < 2) (void)scheduler.step();
  merging.keep();
  executor.matrix_pages = 35;  // 36 of adapter 3
  ASSERT_TRUE(scheduler.submit(make_request(2, 3, 4, 4, 2)).ok());
  for (int i = 0; i < 10; ++i) (void)scheduler.step();
  EXPECT_EQ(pool.num_merged(), 12);
  ASSERT_TRUE(scheduler.finish(2));
  executor.matrix_pages = 28;  // 31 of adapter 5
  ASSERT_TRUE(scheduler.submit(make_request(3, 5, 4, 4, 3)).ok());
  (void)scheduler.step();
  EXPECT_EQ(pool.num_merged(), 0) << "with them it fits";
  run_all(scheduler, pool);
}

// Each tenant its own adapter, all of them always waiting, fewer slots than tenants.
TEST(Admission, AdapterSlotsAreSharedFairlyAndNeverExceeded) {
  for (const auto& [num_tenants, num_slots] : {std::pair{3, 2}, std::pair{8, 4}, std::pair{16, 4}}) {
    UnifiedPool pool(4096);
    HashExecutor executor(0, 4096);
    Scheduler scheduler({.max_step_tokens = 256,
                         .max_running = 32,
                         .prefix_cache = false,
                         .slots = {.max = num_slots, .drain_gap = 400'000}},
                        pool, executor);
    Rng rng(1);
    RequestId next_id = 0;
    std::map<RequestId, AdapterId> running;
    int64_t computed_with_room = 0, steps = 0;
    for (; steps < 6000; ++steps) {
      executor.time += 1000;
      for (int tenant = 0; tenant < num_tenants; ++tenant) {
        const auto it = scheduler.tenants().find(tenant);
        for (int64_t waiting = it == scheduler.tenants().end() ? 0 : it->second.waiting; waiting < 20; ++waiting) {
          Request request = make_request(next_id++, tenant, 1 + static_cast<int64_t>(rng.below(40)),
                                         1 + static_cast<int64_t>(rng.below(40)), rng.below(1000));
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

TEST(Admission, ReservedAdmissionNeverPreempts) {
  for (const Admission admission : {Admission::kOptimistic, Admission::kExpected, Admission::kReserved}) {
    UnifiedPool pool(40);
    HashExecutor executor(0, 40);
    Scheduler scheduler({.prefix_cache = false, .admission = admission}, pool, executor);
    for (RequestId id = 0; id < 60; ++id)
      ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 20, 60, static_cast<uint64_t>(id))).ok());
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

TEST(Admission, MissedDeadlinesEndAndHopelessRequestsAreRefusedAtOnce) {
  for (const bool refuse_early : {false, true}) {
    UnifiedPool pool(4096);
    HashExecutor executor(0, 4096);
    // A step of 10 ms; a prompt is a step's worth of tokens: 100 requests a second at most.
    Scheduler scheduler(
        {.max_step_tokens = 50, .prefix_cache = false, .slo = {.first_token = 1'000'000, .refuse_early = refuse_early}},
        pool, executor);
    std::map<RequestId, Micros> arrivals;
    int64_t in_time = 0, late = 0, ended = 0, refused = 0, waited_in_vain = 0;
    RequestId next_id = 0;
    for (int step = 0; step < 3000; ++step) {
      for (int i = 0; i < 2; ++i) {  // twice what it can do
        arrivals[next_id] = executor.time;
        const Status status =
            scheduler.submit(make_request(next_id, kBaseModel, 45, 1, static_cast<uint64_t>(next_id)));
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

// What a light tenant waits for beside a heavy one whose answers hold all memory.
struct Starved {
  int64_t steps_to_first_token = 0;
  SchedulerStats stats;
};
// 40 pages of 16 tokens at 2 units: full of output they are worth 1,280.
Starved starve(double preempt_gap, QueueKind kind = QueueKind::kVtc, int64_t max_running = 64) {
  UnifiedPool pool(40);
  HashExecutor executor(0, 40);
  Scheduler scheduler({.max_running = max_running,
                       .prefix_cache = false,
                       .preempt_gap = preempt_gap,
                       .queue = {.kind = kind, .prediction = Prediction::kNone}},
                      pool, executor);
  std::map<RequestId, Request> requests;
  const auto submit = [&](TenantId tenant, int64_t prompt, int64_t output) {
    const auto id = static_cast<RequestId>(requests.size());
    Request request = make_request(id, kBaseModel, prompt, output, static_cast<uint64_t>(id));
    request.tenant = tenant;
    EXPECT_TRUE(scheduler.submit(request).ok());
    requests.emplace(id, std::move(request));
  };
  for (int i = 0; i < 12; ++i) submit(0, 16, 112);
  while (pool.num_available() > 0 && scheduler.num_running() < max_running) (void)scheduler.step();
  const auto light = static_cast<RequestId>(requests.size());
  submit(1, 60, 20);
  Starved result;
  std::map<RequestId, std::vector<int32_t>> tokens;
  for (int64_t step = 1; scheduler.has_work(); ++step) {
    EXPECT_LT(step, 10'000);
    for (const RequestEvent& event : scheduler.step()) {
      if (event.has_token) tokens[event.id].push_back(event.token.token);
      if (event.id == light && result.steps_to_first_token == 0) result.steps_to_first_token = step;
    }
    pool.check_integrity();
  }
  for (const auto& [id, made] : tokens) {
    const std::vector<int32_t> expected = HashExecutor::expected(requests.at(id));
    EXPECT_EQ(made, std::vector<int32_t>(expected.end() - static_cast<int64_t>(made.size()), expected.end())) << id;
  }
  EXPECT_EQ(pool.num_available(), 40);
  result.stats = scheduler.stats();
  return result;
}

TEST(FairPreemption, ATenantThatFallsTooFarBehindTakesMemoryFromTheOneAhead) {
  const Starved waits = starve(0), takes = starve(0.25);
  EXPECT_EQ(waits.stats.num_fair_preemptions, 0);
  EXPECT_GT(waits.steps_to_first_token, 60) << "an answer has to end first";
  EXPECT_GT(takes.stats.num_fair_preemptions, 0);
  EXPECT_LE(takes.stats.num_fair_preemptions, takes.stats.num_preemptions);
  // 320 units, and the price of the prompt itself, at 2 units for each of the tokens that the heavy tenant makes in a
  // step.
  EXPECT_LT(takes.steps_to_first_token, waits.steps_to_first_token / 2);
  EXPECT_EQ(starve(100).stats.num_fair_preemptions, 0) << "nobody is that far behind";
}

TEST(FairPreemption, TakesAPlaceInTheBatchToo) {
  const Starved waits = starve(0, QueueKind::kVtc, 3), takes = starve(0.04, QueueKind::kVtc, 3);
  EXPECT_EQ(waits.stats.num_preemptions, 0) << "memory is not what is short";
  EXPECT_GT(waits.steps_to_first_token, 60);
  EXPECT_EQ(takes.stats.num_fair_preemptions, takes.stats.num_preemptions);
  EXPECT_GT(takes.stats.num_fair_preemptions, 0);
  EXPECT_LT(takes.steps_to_first_token, waits.steps_to_first_token);
}

// The gap for memory grows with it; a tenant with long streams used to keep all places for as long as that took.
TEST(FairPreemption, APlaceDoesNotWaitForTheWorthOfALargeMemory) {
  UnifiedPool pool(4000);
  HashExecutor executor(0, 4000);
  Scheduler scheduler({.max_running = 8, .prefix_cache = false, .queue = {.prediction = Prediction::kNone}}, pool,
                      executor);
  for (RequestId id = 0; id < 12; ++id)
    ASSERT_TRUE(scheduler.submit(make_request(id, kBaseModel, 16, 3000, static_cast<uint64_t>(id))).ok());
  for (int step = 0; step < 10; ++step) (void)scheduler.step();
  ASSERT_EQ(scheduler.num_running(), 8);
  Request light = make_request(100, kBaseModel, 20, 4, 100);
  light.tenant = 1;
  ASSERT_TRUE(scheduler.submit(light).ok());
  std::vector<int32_t> tokens;
  // 8 tokens a step at 2 units each: what an answer of a usual length costs, 512, and what is computed again.
  for (int step = 0; step < 60; ++step)
    for (const RequestEvent& event : scheduler.step())
      if (event.id == 100 && event.has_token) tokens.push_back(event.token.token);
  EXPECT_EQ(tokens, HashExecutor::expected(light));
  EXPECT_EQ(scheduler.stats().num_fair_preemptions, 1);
}

TEST(FairPreemption, IsForVtcOnly) {
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kDlpm})
    EXPECT_EQ(starve(0.01, kind).stats.num_fair_preemptions, 0);
}

// The adapter of whoever waits can no longer be evicted for it: that used to be counted as room.
TEST(FairPreemption, NobodyStartsOverForWhatWouldNotBeEnough) {
  UnifiedPool pool(20);
  HashExecutor executor(0, 20);
  Scheduler scheduler({.prefix_cache = false, .preempt_gap = 1e-6}, pool, executor);
  scheduler.set_tenant_weight(1, 100);
  scheduler.prefetch(2);  // 3 pages
  while (pool.adapter_state(2) != AdapterState::kResident) (void)scheduler.step();
  Request ahead = make_request(1, kBaseModel, 10, 60, 1), own = make_request(2, kBaseModel, 80, 40, 2);
  own.tenant = 1;
  ASSERT_TRUE(scheduler.submit(std::move(ahead)).ok());
  for (int step = 0; step < 30; ++step) (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(std::move(own)).ok());
  (void)scheduler.step();
  ASSERT_EQ(scheduler.num_running(), 2);
  // 11 pages, two that stay and 3 of its adapter, where 15 would be there at most.
  Request large = make_request(3, 2, 170, 4, 3);
  large.tenant = 1;
  ASSERT_TRUE(scheduler.submit(std::move(large)).ok());
  (void)scheduler.step();
  EXPECT_EQ(scheduler.stats().num_preemptions, 0);
  EXPECT_EQ(scheduler.num_running(), 2);
  EXPECT_EQ(run_all(scheduler, pool).at(3).tokens.size(), 4u);
}

// The smallest gaps, and tenants whose requests do not fit together: what is computed again costs less than what is
// served.
TEST(FairPreemption, NobodyTakesTurnsAtStartingOver) {
  for (const Prediction prediction : {Prediction::kNone, Prediction::kMean, Prediction::kMaxTokens}) {
    int64_t computed_without = 0, served = 0;
    for (const double gap : {0.0, 1e-9, 0.003, 0.06}) {
      UnifiedPool pool(10);
      HashExecutor executor(0, 10);
      Scheduler scheduler({.prefix_cache = false, .preempt_gap = gap, .queue = {.prediction = prediction}}, pool,
                          executor);
      std::map<RequestId, Request> requests;
      for (RequestId id = 0; id < 30; ++id) {
        Request request =
            make_request(id, kBaseModel, id % 3 == 0 ? 90 : 10, id % 3 == 0 ? 20 : 120, static_cast<uint64_t>(id));
        request.tenant = id % 3;
        requests[id] = request;
        ASSERT_TRUE(scheduler.submit(std::move(request)).ok());
      }
      const auto outcomes = run_all(scheduler, pool);
      for (const auto& [id, request] : requests) EXPECT_EQ(outcomes.at(id).tokens, HashExecutor::expected(request));
      const SchedulerStats& stats = scheduler.stats();
      if (gap == 0) {
        computed_without = stats.num_computed_tokens;
        for (const auto& [tenant, service] : scheduler.tenants()) served += service.service;
        EXPECT_EQ(stats.num_fair_preemptions, 0);
      } else {
        EXPECT_GT(stats.num_fair_preemptions, 0);
        EXPECT_LT(stats.num_computed_tokens, computed_without + served / 1000);
      }
    }
  }
}

// What a step computes of each request, by its id.
std::map<RequestId, int64_t> computed_in_step(Scheduler& scheduler, const HashExecutor& executor) {
  (void)scheduler.step();
  return {executor.last_step.begin(), executor.last_step.end()};
}

Request prompt_of(RequestId id, TenantId tenant, int64_t length) {
  Request request = make_request(id, kBaseModel, length, 4, static_cast<uint64_t>(id));
  request.tenant = tenant;
  return request;
}

// A tenant's long prompt used to take every step whole until it was done, and behind it the tenant's next.
TEST(ShortPrompts, DoNotWaitForTheRestOfAnotherTenantsLongOne) {
  UnifiedPool pool(400);
  HashExecutor executor(0, 400);
  Scheduler scheduler({.max_step_tokens = 64}, pool, executor);
  for (RequestId id : {1, 2}) ASSERT_TRUE(scheduler.submit(prompt_of(id, 1, 1000)).ok());
  EXPECT_EQ(computed_in_step(scheduler, executor), (std::map<RequestId, int64_t>{{1, 64}}));
  ASSERT_TRUE(scheduler.submit(prompt_of(3, 2, 20)).ok());
  ASSERT_TRUE(scheduler.submit(prompt_of(4, 3, 33)).ok()) << "more than half a step: waits in line";
  EXPECT_EQ(computed_in_step(scheduler, executor), (std::map<RequestId, int64_t>{{1, 44}, {3, 20}}));
  EXPECT_EQ(computed_in_step(scheduler, executor), (std::map<RequestId, int64_t>{{1, 63}, {3, 1}}));
  // Its own requests wait as before.
  ASSERT_TRUE(scheduler.submit(prompt_of(5, 1, 20)).ok());
  EXPECT_EQ(computed_in_step(scheduler, executor), (std::map<RequestId, int64_t>{{1, 63}, {3, 1}}));
  const auto outcomes = run_all(scheduler, pool);
  for (RequestId id : {1, 2, 4, 5})
    EXPECT_EQ(outcomes.at(id).tokens, HashExecutor::expected(prompt_of(id, 0,
                                                                       id < 3    ? 1000
                                                                       : id == 4 ? 33
                                                                                 : 20)))
        << id;
}

// However many short ones come, half of what a step has for prompts stays with the long one.
TEST(ShortPrompts, LeaveHalfOfEachStepToTheLongOne) {
  UnifiedPool pool(400);
  HashExecutor executor(0, 400);
  Scheduler scheduler({.max_step_tokens = 64}, pool, executor);
  ASSERT_TRUE(scheduler.submit(prompt_of(0, 1, 1000)).ok());
  (void)scheduler.step();
  for (RequestId id = 1; id < 200; ++id) ASSERT_TRUE(scheduler.submit(prompt_of(id, 1 + id, 30)).ok());
  for (int64_t computed = 64, steps = 0; computed < 1000; ++steps) {
    ASSERT_LT(steps, 100);
    std::map<RequestId, int64_t> step = computed_in_step(scheduler, executor);
    const int64_t decoded = std::ranges::count_if(step, [](const auto& entry) { return entry.second == 1; });
    EXPECT_GE(step[0], std::min((64 - decoded) / 2, 1000 - computed));
    computed += step[0];
  }
}

// In order of arrival is in order of arrival; and with one tenant nothing changes.
TEST(ShortPrompts, OvertakeNobodyUnderFcfs) {
  UnifiedPool pool(400);
  HashExecutor executor(0, 400);
  Scheduler scheduler({.max_step_tokens = 64, .queue = {.kind = QueueKind::kFcfs}}, pool, executor);
  ASSERT_TRUE(scheduler.submit(prompt_of(1, 1, 1000)).ok());
  (void)scheduler.step();
  ASSERT_TRUE(scheduler.submit(prompt_of(2, 2, 20)).ok());
  EXPECT_EQ(computed_in_step(scheduler, executor), (std::map<RequestId, int64_t>{{1, 64}}));
}

// A tenant that is far ahead does not overtake: it had more than its share.
TEST(ShortPrompts, OfATenantThatIsAheadWaitInLine) {
  UnifiedPool pool(400);
  HashExecutor executor(0, 400);
  Scheduler scheduler({.max_step_tokens = 64, .prefix_cache = false}, pool, executor);
  ASSERT_TRUE(scheduler.submit(prompt_of(1, 2, 3000)).ok());
  ASSERT_TRUE(scheduler.submit(prompt_of(2, 1, 1000)).ok());
  while (!computed_in_step(scheduler, executor).contains(2)) {
  }
  ASSERT_TRUE(scheduler.submit(prompt_of(3, 2, 20)).ok());
  for (int step = 0; step < 10; ++step) {
    const std::map<RequestId, int64_t> computed = computed_in_step(scheduler, executor);
    EXPECT_GT(computed.at(2), 1);
    EXPECT_FALSE(computed.contains(3));
  }
  run_all(scheduler, pool);
}

}  // namespace
}  // namespace lk
