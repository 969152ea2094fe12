// SPDX-License-Identifier: Apache-2.0
// The server's queue policies on a TokenServer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <vector>

#include "sched/token_server.h"

namespace lk {
namespace {

TEST(Vtc, WaitingCountersStayWithinU) {  // Lemma 4.3
  constexpr int64_t kCapacity = 2000, kLongest = 300;
  const int64_t bound = std::max(kPromptPrice * kLongest, kOutputPrice * kCapacity);
  int64_t widest = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Rng rng(seed);
    TokenServer server(kPlain, kCapacity);
    for (int step = 0; step < 3000; ++step) {
      // Tenants of very different appetite, that come and go.
      for (TenantId tenant = 0; tenant < 6; ++tenant)
        if ((step / 300 + tenant) % 3 != 0 && rng.below(40) < static_cast<uint64_t>(1 + tenant))
          server.arrive(tenant, 1 + static_cast<int64_t>(rng.below(kLongest)),
                        1 + static_cast<int64_t>(rng.below(kLongest)));
      if (!server.waiting().empty() && rng.below(20) == 0) server.cancel(*server.waiting().begin());
      server.step();
      int64_t least = INT64_MAX, most = INT64_MIN;
      for (const Job* job : server.waiting()) {
        least = std::min(least, server.policy->virtual_time(*job));
        most = std::max(most, server.policy->virtual_time(*job));
      }
      if (server.waiting().empty()) continue;
      ASSERT_LE(most - least, bound) << "seed " << seed << " step " << step;
      widest = std::max(widest, most - least);
    }
  }
  EXPECT_GT(widest, bound / 20) << "the traffic tested nothing";
}

TEST(Vtc, BackloggedTenantsDifferByAtMost2U) {  // Theorem 4.4
  constexpr int64_t kCapacity = 2000, kLongest = 256;
  const double bound = 2.0 * static_cast<double>(std::max(kPromptPrice * kLongest, kOutputPrice * kCapacity));
  for (uint64_t seed = 0; seed < 10; ++seed)
    for (const Prediction prediction : {Prediction::kNone, Prediction::kMean, Prediction::kMaxTokens}) {
      QueueOptions options = kPlain;
      options.prediction = prediction;
      EXPECT_LE(drift_of(options, kCapacity, {0, random_lengths(seed, kLongest)}, {1, random_lengths(seed + 100, 32)})
                    .range(),
                bound);
      EXPECT_LE(drift_of(options, kCapacity, {0, fixed(256, 16)}, {1, fixed(16, 256)}).range(), bound);
    }
  // Like the overload suite of the paper (256 / 256): a good deal less than the bound; and fcfs, which has none, grows
  // for ever.
  const double limit = 2.0 * kOutputPrice * 10'000;
  EXPECT_LE(drift_of(kPlain, 10'000, {0, around_256(1)}, {1, around_256(2), kBaseModel, 400}).range(), 0.35 * limit);
  EXPECT_GT(
      drift_of({.kind = QueueKind::kFcfs}, 10'000, {0, fixed(256, 256)}, {1, fixed(256, 256), kBaseModel, 400}, 60'000)
          .range(),
      2 * limit);
}

TEST(Vtc, PredictionNarrowsTheDrift) {
  const auto range = [](Prediction prediction) {
    QueueOptions options = kPlain;
    options.prediction = prediction;
    return drift_of(options, 10'000, {0, fixed(256, 256)}, {1, fixed(256, 256)}).range();
  };
  // All requests end together here: whoever only counts what was made so far hands out the next batch by old news.
  const double plain = range(Prediction::kNone), oracle = range(Prediction::kMaxTokens);
  EXPECT_LT(oracle, plain / 2);
}

TEST(Vtc, ChargesAPartInAdvanceAndTheWholeInTheEnd) {
  for (const double share : {0.0, 0.25, 1.0}) {
    TokenServer server({.kind = QueueKind::kVtc,
                        .within = WithinTenant::kArrival,
                        .prediction = Prediction::kMaxTokens,
                        .advance_share = share},
                       100);
    server.arrive(0, 10, 20);
    const Job* early = server.arrive(0, 10, 20, kBaseModel, 90);  // ends long before its max_tokens
    server.arrive(0, 80, 10);                                     // waits, so that the tenant has a place in the queue
    server.step();                                                // both of the first run, and made a token each
    ASSERT_EQ(server.waiting().size(), 1u);
    const auto advance = static_cast<int64_t>(share * 2000 * (19 + 89));
    EXPECT_EQ(server.policy->virtual_time(**server.waiting().begin()), 2 * 10'000 + 2 * 2000 + advance) << share;
    for (int i = 0; i < 10; ++i) server.step();
    EXPECT_EQ(server.policy->virtual_time(*early),
              2 * 10'000 + 2 * 11 * 2000 + static_cast<int64_t>(share * 2000 * (9 + 79)))
        << share;
    for (int i = 0; i < 9; ++i) server.step();
    EXPECT_EQ(server.service(0), 2 * (10'000 + 20 * 2000));
    while (server.busy()) server.step();
    const Job* later = server.arrive(0, 1, 1);
    EXPECT_EQ(server.policy->virtual_time(*later), 2 * (10'000 + 20 * 2000) + 80'000 + 10 * 2000)
        << "nothing in advance is left over";
  }
}

// Within a tenant lower priorities are next, whatever their adapters; no tenant gains by them.
TEST(Vtc, PriorityOrdersATenantsOwn) {
  for (const WithinTenant within : {WithinTenant::kAdapter, WithinTenant::kUser, WithinTenant::kArrival,
                                    WithinTenant::kSlack, WithinTenant::kNewest}) {
    QueueOptions options = kPlain;
    options.within = within;
    TokenServer server(options, 11);  // one at a time
    server.arrive(0, 10, 1, 9);
    server.step();
    std::vector<std::pair<TenantId, int64_t>> order;
    server.on_dispatch = [&](const Job& job, int64_t) { order.emplace_back(job.owned.tenant, job.owned.priority); };
    int64_t adapter = 1;
    for (const int64_t priority : {5, 0, -7, 3, -2, 0})
      server.arrive(0, 10, 1, static_cast<AdapterId>(adapter++ % 3), 0, priority);
    for (const int64_t priority : {-100, -100, -100}) server.arrive(1, 10, 1, 5, 0, priority);
    while (server.busy()) server.step();
    std::vector<int64_t> own;
    for (const auto& [tenant, priority] : order)
      if (tenant == 0) own.push_back(priority);
    EXPECT_EQ(own, (std::vector<int64_t>{-7, -2, 0, 0, 3, 5})) << static_cast<int>(within);
    // The other tenant has its turns, and no more.
    EXPECT_EQ(std::count_if(order.begin(), order.begin() + 4, [](const auto& entry) { return entry.first == 1; }), 2);
  }
}

// With every policy: who of a tenant's is next is for the tenant to say, and moves nobody else's turn (with dlpm turns
// are bounded by credit, and go by locality).
TEST(QueuePolicy, PriorityOrdersATenantsOwn) {
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kVtc, QueueKind::kDlpm}) {
    const auto order_of = [&](const std::vector<std::pair<TenantId, int64_t>>& arrivals) {
      TokenServer server({.kind = kind, .prediction = Prediction::kNone}, 11, [](Ticket&) { return 0; });
      server.arrive(0, 10, 1);
      server.step();  // one at a time: the others wait for it
      std::vector<std::pair<TenantId, int64_t>> order;
      server.on_dispatch = [&](const Job& job, int64_t) { order.emplace_back(job.owned.tenant, job.owned.priority); };
      for (const auto& [tenant, priority] : arrivals) server.arrive(tenant, 10, 1, kBaseModel, 0, priority);
      while (server.busy()) server.step();
      return order;
    };
    const auto mixed = order_of({{0, 5}, {1, 3}, {0, 0}, {0, -7}, {1, -100}, {0, 3}, {2, 0}});
    const auto plain = order_of({{0, 0}, {1, 0}, {0, 0}, {0, 0}, {1, 0}, {0, 0}, {2, 0}});
    ASSERT_EQ(mixed.size(), plain.size());
    std::vector<int64_t> first, second;
    for (size_t i = 0; i < mixed.size(); ++i) {
      if (kind != QueueKind::kDlpm) {
        EXPECT_EQ(mixed[i].first, plain[i].first) << to_string(kind) << " " << i;
      }
      if (mixed[i].first == 0) first.push_back(mixed[i].second);
      if (mixed[i].first == 1) second.push_back(mixed[i].second);
    }
    EXPECT_EQ(first, (std::vector<int64_t>{-7, 0, 3, 5})) << to_string(kind);
    EXPECT_EQ(second, (std::vector<int64_t>{-100, 3})) << to_string(kind);
  }
}

// First come, first served: who leaves or is preempted leaves the others where they are.
TEST(Fcfs, PlacesOfATenantAreItsOwn) {
  TokenServer server({.kind = QueueKind::kFcfs}, 11);
  Job* running = server.arrive(0, 10, 1);
  server.step();
  (void)running;
  Job* late = server.arrive(0, 10, 1, kBaseModel, 0, 5);
  server.arrive(1, 10, 1, kBaseModel, 0, 1);
  server.arrive(0, 10, 1, kBaseModel, 0, -5);
  server.arrive(2, 10, 1);
  Job* gone = server.arrive(0, 10, 1, kBaseModel, 0, 0);
  server.cancel(gone);
  std::vector<std::pair<TenantId, int64_t>> order;
  server.on_dispatch = [&](const Job& job, int64_t) { order.emplace_back(job.owned.tenant, job.owned.priority); };
  server.policy->begin_round();
  EXPECT_EQ(server.policy->next()->request->priority, -5);
  server.policy->pass_over(*server.policy->next());
  EXPECT_EQ(server.policy->next()->request->tenant, 1);
  server.policy->pass_over(*server.policy->next());
  EXPECT_EQ(server.policy->next(), late);
  while (server.busy()) server.step();
  EXPECT_EQ(order, (std::vector<std::pair<TenantId, int64_t>>{{0, -5}, {1, 1}, {0, 5}, {2, 0}}));
}

TEST(Vtc, TheLeadIsWhatRemainsAfterChangingPlaces) {
  TokenServer server({.kind = QueueKind::kVtc, .prediction = Prediction::kMaxTokens, .advance_share = 0.5}, 50);
  const Job* ahead = server.arrive(0, 10, 40);
  server.step();
  server.policy->set_weight(1, 2);
  const Job* behind = server.arrive(1, 30, 20);  // lifted to the tenant that waited last
  const int64_t own = server.policy->virtual_time(*behind);
  for (int i = 0; i < 9; ++i) server.step();
  // It made 10 tokens of 40 and is charged half of the rest; gone, it would leave 10 + 2 * 10. The other would be
  // charged 30 + 20, at half price.
  EXPECT_EQ(server.policy->virtual_time(*ahead), 10'000 + 20'000 + 30'000);
  EXPECT_EQ(server.policy->lead(*ahead, 0, *behind), (10'000 + 20'000) - (own + (30'000 + 20'000) / 2));
  EXPECT_EQ(server.policy->lead(*ahead, 700, *behind), (10'000 + 20'000 - 700) - (own + (30'000 + 20'000) / 2));
  EXPECT_LE(server.policy->lead(*ahead, 0, *server.arrive(0, 5, 5)), 0) << "never of a tenant over itself";
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kDlpm}) {
    TokenServer other({.kind = kind}, 50, [](Ticket&) { return 0; });
    const Job* runs = other.arrive(0, 10, 40);
    other.step();
    EXPECT_EQ(other.policy->lead(*runs, 0, *other.arrive(1, 30, 20)), 0) << "policies without counters know no lead";
  }
}

// Theorem 4.8: whoever does not know lengths can be fooled by the worth of a whole batch. Not a defect: the proof that
// 2U is near best.
TEST(Vtc, AnAdversaryGetsTheWorthOfABatch) {
  constexpr int64_t kCapacity = 5000;
  TokenServer server(kPlain, kCapacity);
  for (int i = 0; i < 40; ++i) server.arrive(0, 1, 499);
  server.step();
  Backlog{1, fixed(1, 499)}.refill(server);
  double most = 0;
  for (int step = 0; step < 490; ++step) {
    server.step();
    most = std::max(most, static_cast<double>(server.service(0) - server.service(1)));
  }
  EXPECT_GT(most, 0.9 * kOutputPrice * kCapacity);
}

TEST(Vtc, IdleTimeEarnsNothing) {
  for (const bool queued : {true, false})
    EXPECT_NEAR(share_after_idle(QueuePolicy::create(kPlain), queued), 0.5, 0.04) << queued;
}

TEST(Vtc, DebtSurvivesIdlenessAndTheSweep) {
  TokenServer server(kPlain, 100'000);
  server.arrive(7, 10, 30'000);  // takes much at once, with nothing else waiting
  while (server.busy()) server.step();
  const Job* mine = server.arrive(7, 10, 1);
  const int64_t debt = server.policy->virtual_time(*mine);
  while (server.busy()) server.step();
  // Others pass by, enough of them for several sweeps, and keep the floor low.
  const Backlog other{1, fixed(1, 1), kBaseModel, 2};
  TokenServer* s = &server;
  for (int i = 0; i < 3000; ++i) {
    other.refill(*s);
    server.step();
  }
  mine = server.arrive(7, 10, 1);
  EXPECT_GE(server.policy->virtual_time(*mine), debt);
}

// The sweep of forgotten tenants once ran while a tenant was being preempted, neither waiting nor running, and reset
// its counter: its next request then went before everybody.
TEST(Vtc, ThePreemptionAtWhichTheSweepIsDueKeepsTheCounter) {
  TokenServer server(kPlain, 1000);
  // Three ends of running a turn, two of them preemptions: the 1024th, after which a sweep is due, is one.
  for (int turn = 0; turn < 700; ++turn) {
    Job* mine = server.arrive(7, 10, 4);
    for (int preemption = 0; preemption < 2; ++preemption) {
      server.step();
      ASSERT_EQ(server.running().size(), 1u);
      const int64_t before = server.policy->virtual_time(*mine);
      ASSERT_GT(before, turn * kPromptPrice * 10);
      server.preempt(mine);
      ASSERT_EQ(server.policy->virtual_time(*mine), before) << "turn " << turn;
    }
    while (server.busy()) server.step();
  }
}

// A tenant is forgotten when it is behind everybody's keys; those hold what is charged in advance, and fall when an
// answer ends early. Who comes back then must not find itself lower than it was.
TEST(Vtc, WhoWasForgottenComesBackNoLower) {
  QueueOptions options = kPlain;
  options.prediction = Prediction::kMaxTokens;
  options.advance_share = 1;
  TokenServer server(options, 5150);
  Job* gone = server.arrive(1, 3000, 1030);
  server.arrive(0, 10, 1100, kBaseModel, 4000);  // charged 4,000 tokens in advance, makes 1,100
  server.step();
  server.arrive(0, 5000, 10);  // waits until that one has ended
  for (int i = 0; i < 1023; ++i) {
    server.preempt(gone);  // each is an end of running; the sweep is due after 1,024
    server.step();
  }
  while (server.running().size() > 1) server.step();
  const int64_t before = server.policy->settled_time(1).value();
  EXPECT_EQ(before, 3000 * kPromptPrice + 1030 * kOutputPrice);
  server.step();
  ASSERT_FALSE(server.policy->settled_time(1)) << "it was not forgotten";
  while (!server.running().empty()) server.step();
  EXPECT_GE(server.policy->virtual_time(*server.arrive(1, 10, 10)), before);
}

// Whatever the schedule, what a tenant was served brings it forward for good: while it is known, and when it comes back
// after it was forgotten.
TEST(Vtc, NoCounterEverFalls) {
  int64_t forgotten = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Rng rng(seed);
    QueueOptions options = kPlain;
    options.prediction = static_cast<Prediction>(rng.below(3));
    options.advance_share = rng.below(2) == 0 ? 1 : 0.25;
    options.within = static_cast<WithinTenant>(rng.below(5));
    TokenServer server(options, 200);
    for (TenantId tenant = 0; tenant < 40; ++tenant)
      server.policy->set_weight(tenant, static_cast<double>(1 + tenant % 3));
    std::map<TenantId, int64_t> reached;
    for (int step = 0; step < 4000; ++step) {
      // Some come now and then, a few all the time.
      const auto tenant = static_cast<TenantId>(rng.below(3) == 0 ? rng.below(40) : rng.below(2));
      if (server.waiting().size() < 20)
        server.arrive(tenant, 1 + static_cast<int64_t>(rng.below(20)), 1 + static_cast<int64_t>(rng.below(6)),
                      static_cast<AdapterId>(rng.below(3)), 30);
      if (!server.waiting().empty() && rng.below(15) == 0) server.cancel(*server.waiting().begin());
      for (int i = 0; i < 3 && !server.running().empty() && rng.below(2) == 0; ++i)
        server.preempt(*std::next(server.running().begin(), static_cast<long>(rng.below(server.running().size()))));
      server.step();
      for (const auto& [id, service] : server.policy->tenants()) {
        const std::optional<int64_t> now = server.policy->settled_time(id);
        forgotten += !now && reached[id] > 0;
        if (!now) continue;
        ASSERT_GE(*now, reached[id] - 2) << "seed " << seed << " step " << step << " tenant " << id;
        reached[id] = std::max(reached[id], *now);
      }
    }
  }
  EXPECT_GT(forgotten, 0) << "the sweep had nothing to do";
}

TEST(ServiceCost, WhoOutlivesAForecastIsTakenForHalfDone) {
  LengthPredictor predictor;
  const Request shorter{.adapter = 1, .max_tokens = 600}, longer{.adapter = 2, .max_tokens = 600};
  predictor.learn(shorter, 32);
  EXPECT_EQ(predictor.predict(longer), 32) << "the average of all";
  EXPECT_EQ(predictor.outlived(longer, 32), 64);
  EXPECT_EQ(predictor.predict(longer), 64);
  EXPECT_EQ(predictor.outlived(longer, 400), 600) << "max_tokens";
  EXPECT_EQ(predictor.outlived(longer, 100), 200);
  EXPECT_EQ(predictor.predict(longer), 600) << "the longest so far";
  EXPECT_EQ(predictor.predict(shorter), 32);
  predictor.learn(longer, 512);
  EXPECT_EQ(predictor.predict(longer), 512) << "a first answer ended";
  EXPECT_EQ(predictor.outlived(longer, 512), 600);
  EXPECT_EQ(predictor.predict(longer), 512) << "an average is not moved by one that goes on";
}

TEST(Vtc, WeightsShareTheServer) {
  for (const Prediction prediction : {Prediction::kNone, Prediction::kMean}) {
    QueueOptions options = kPlain;
    options.prediction = prediction;
    TokenServer server(options, 10'000);
    for (TenantId tenant = 0; tenant < 4; ++tenant) server.policy->set_weight(tenant, static_cast<double>(tenant + 1));
    for (int step = 0; step < 12'000; ++step) {
      for (TenantId tenant = 0; tenant < 4; ++tenant) Backlog{tenant, fixed(256, 256)}.refill(server);
      server.step();
    }
    double all = 0;
    for (TenantId tenant = 0; tenant < 4; ++tenant) all += static_cast<double>(server.service(tenant));
    for (TenantId tenant = 0; tenant < 4; ++tenant)
      EXPECT_NEAR(static_cast<double>(server.service(tenant)) / all, static_cast<double>(tenant + 1) / 10,
                  0.05 * static_cast<double>(tenant + 1) / 10);
  }
}

TEST(Vtc, AggressorDoesNotDelayALightTenant) {  // Theorem 4.11
  const auto longest_wait = [](QueueKind kind, int aggressor) {
    QueueOptions options = kPlain;
    options.kind = kind;
    TokenServer server(options, 4000);
    int64_t longest = 0;
    server.on_dispatch = [&](const Job& job, int64_t waited) {
      if (job.owned.tenant == 1) longest = std::max(longest, waited);
    };
    for (int step = 0; step < 5000; ++step) {
      if (step % 20 == 0)
        for (int i = 0; i < aggressor; ++i) server.arrive(0, 128, 128);
      if (step % 100 == 0) server.arrive(1, 64, 64);
      server.step();
    }
    return longest;
  };
  const int64_t calm = longest_wait(QueueKind::kVtc, 3);
  for (const int aggressor : {10, 30, 100}) EXPECT_LE(longest_wait(QueueKind::kVtc, aggressor), calm + 20) << aggressor;
  EXPECT_GT(longest_wait(QueueKind::kFcfs, 30), 20 * (calm + 1));
}

// Inside a tenant the same holds for its adapters, or its users.
TEST(Vtc, AdaptersOfATenantShareItsService) {
  TokenServer server(kPlain, 2000);
  std::map<AdapterId, int64_t> started;
  server.on_dispatch = [&](const Job& job, int64_t) { ++started[job.owned.adapter]; };
  for (int step = 0; step < 3000; ++step) {
    Backlog{0, fixed(32, 32), 5}.refill(server);
    if (step % 4 == 0) server.arrive(0, 32, 32, 6);
    server.step();
  }
  // Adapter 6 asks for less than half: it gets all of it, though 200 of adapter 5 always wait.
  EXPECT_GE(started[6], 740);
  EXPECT_GT(started[5], started[6]);
}

TEST(QueuePolicies, BillEveryTokenOnceAndForgetNobody) {
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kVtc, QueueKind::kDlpm})
    for (const Prediction prediction : {Prediction::kNone, Prediction::kMean, Prediction::kMaxTokens})
      for (const WithinTenant within : {WithinTenant::kAdapter, WithinTenant::kUser, WithinTenant::kArrival,
                                        WithinTenant::kSlack, WithinTenant::kNewest}) {
        Rng rng(7);
        TokenServer server({.kind = kind, .within = within, .prediction = prediction, .quantum = 20'000}, 3000,
                           [](Ticket& ticket) { return ticket.request->adapter; });
        for (int step = 0; step < 400; ++step) {
          if (rng.below(3) == 0)
            server.arrive(static_cast<TenantId>(rng.below(4)), 1 + static_cast<int64_t>(rng.below(200)),
                          1 + static_cast<int64_t>(rng.below(100)), static_cast<AdapterId>(rng.below(3)), 150);
          if (!server.waiting().empty() && rng.below(15) == 0) server.cancel(*server.waiting().begin());
          server.step();
        }
        for (int guard = 0; server.busy(); ++guard) {
          ASSERT_LT(guard, 100'000) << "somebody is never served";
          server.step();
        }
        int64_t service = 0;
        for (const auto& [id, tenant] : server.policy->tenants()) {
          service += tenant.service;
          EXPECT_EQ(tenant.waiting, 0);
          EXPECT_EQ(tenant.running, 0);
          EXPECT_EQ(tenant.waiting_tokens, 0);
        }
        EXPECT_EQ(service, kPromptPrice * server.prompt_tokens + kOutputPrice * server.output_tokens);
      }
}

// DLPM: who is preempted was never away, and keeps what it is owed.
TEST(Dlpm, APreemptionTakesNoCredit) {
  TokenServer server({.kind = QueueKind::kDlpm, .prediction = Prediction::kMaxTokens, .advance_share = 1}, 100,
                     [](Ticket&) { return 0; });
  Job* job = server.arrive(0, 10, 40);
  server.arrive(1, 100, 1);
  server.step();  // 0 has credit left of its quantum, even with all of its output charged
  ASSERT_EQ(server.running().size(), 1u);
  server.preempt(job);
  const Job* other = server.arrive(1, 10, 10);
  server.policy->begin_round();
  EXPECT_EQ(server.policy->next(), job) << "the earlier one in credit";
  EXPECT_NE(server.policy->next(), other);
}

TEST(QueuePolicies, OrderWithinATenant) {
  const auto order_of = [](WithinTenant within) {
    TokenServer server({.kind = QueueKind::kVtc, .within = within, .prediction = Prediction::kNone}, 10);
    std::vector<RequestId> order;
    server.on_dispatch = [&](const Job& job, int64_t) { order.push_back(job.owned.id); };
    server.arrive(0, 5, 5);  // 0 runs and fills the batch
    server.step();
    std::vector<Job*> jobs;
    for (int i = 0; i < 3; ++i) jobs.push_back(server.arrive(0, 5, 5));
    for (int step = 0; step < 100; ++step) server.step();
    return order;
  };
  EXPECT_EQ(order_of(WithinTenant::kArrival), (std::vector<RequestId>{0, 1, 2, 3}));
  EXPECT_EQ(order_of(WithinTenant::kNewest), (std::vector<RequestId>{0, 3, 2, 1}));
}

TEST(ServiceCost, IsParsedAndChecked) {
  EXPECT_EQ(ServiceCost::parse("1:2").value().of(10, 5), 20'000);
  for (const char* bad :
       {"", "1", "1:", "1:-2", "nan:2", "1:2:3", "1,2,3", "1:0", "x:2", "1e300:2", "1e6:1", "profiled"})
    EXPECT_EQ(ServiceCost::parse(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  EXPECT_LT(ServiceCost::parse("40000:50000").value().of(1 << 20, 1 << 20), kMaxPrice) << "never clipped in service";
}

// A price that no number can hold stays the largest one, and sums of them never wrap round.
TEST(ServiceCost, SaturatesInsteadOfWrappingRound) {
  const ServiceCost dear{.prompt = 1e6, .output = 1e6, .product = 1e6, .output_square = 1e6};
  EXPECT_EQ(dear.of(1 << 20, 1 << 20), kMaxPrice);
  EXPECT_EQ(dear.of(INT64_MAX, INT64_MAX), kMaxPrice);
  QueueOptions options = kPlain;
  options.cost = dear;
  options.prediction = Prediction::kMaxTokens;
  TokenServer server(options, 10'000'000);
  server.policy->set_weight(0, 1e-3);
  int64_t least = 0;
  for (int i = 0; i < 300; ++i) {
    for (int n = 0; n < 8; ++n) server.arrive(0, 1000, 1000 + n);
    const Job* waits = server.arrive(0, 1000, 1000);
    EXPECT_GE(server.policy->virtual_time(*waits), least);
    least = std::max(least, server.policy->settled_time(0).value());
    while (server.busy()) server.step();
    EXPECT_GE(server.service(0), 0);
  }
  EXPECT_EQ(least, kMaxSum);
}

TEST(QueuePolicies, NamesAreParsed) {
  EXPECT_EQ(parse_queue_kind("dlpm").value(), QueueKind::kDlpm);
  EXPECT_THAT(std::string(parse_queue_kind("lifo").status().message()), ::testing::HasSubstr("fcfs, vtc, dlpm"));
  EXPECT_EQ(parse_within_tenant("slack").value(), WithinTenant::kSlack);
  EXPECT_EQ(parse_prediction("max-tokens").value(), Prediction::kMaxTokens);
}

}  // namespace
}  // namespace lk
