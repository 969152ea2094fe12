// SPDX-License-Identifier: Apache-2.0
// Queue policies against the model of the VTC paper (arXiv:2401.00588): a server whose batch holds a number of tokens,
// which reserves prompt and output on admission, never preempts, and makes one token of each running request a step.
#include "lk/sched/queue_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <list>
#include <set>

#include "lk/base/rng.h"

namespace lk {
namespace {

constexpr int64_t kPromptPrice = 1000, kOutputPrice = 2000;

struct Job : Ticket {
  Request owned;
  int64_t output = 0;  // that it will make; max_tokens may be more
};

class TokenServer {
 public:
  TokenServer(const QueueOptions& options, int64_t capacity, Locality locality = {})
      : policy(QueuePolicy::create(options, std::move(locality))), capacity_(capacity) {}

  Job* arrive(TenantId tenant, int64_t prompt, int64_t output, AdapterId adapter = kBaseModel, int64_t max_tokens = 0) {
    Job& job = jobs_.emplace_back();
    job.owned = {.id = static_cast<RequestId>(num_jobs_),
                 .adapter = adapter,
                 .tenant = tenant,
                 .prompt = std::vector<int32_t>(static_cast<size_t>(prompt)),
                 .max_tokens = max_tokens > 0 ? max_tokens : output};
    job.request = &job.owned;
    job.order = num_jobs_++;
    job.arrival = now;
    job.output = output;
    if (!policy->arrive(job, now * 1000).ok()) {
      jobs_.pop_back();
      ++num_refused;
      return nullptr;
    }
    waiting_.insert(&job);
    prompt_tokens += prompt;
    output_tokens += output;
    return &job;
  }
  void cancel(Job* job) {
    prompt_tokens -= static_cast<int64_t>(job->owned.prompt.size());
    output_tokens -= job->output;
    waiting_.erase(job);
    policy->leave(*job);
  }
  // Admits what fits, then makes a token of each.
  void step() {
    policy->begin_round();
    while (Ticket* ticket = policy->next()) {
      auto& job = static_cast<Job&>(*ticket);
      const int64_t need = static_cast<int64_t>(job.owned.prompt.size()) + job.output;
      if (used_ + need > capacity_) break;
      used_ += need;
      policy->dispatch(job, static_cast<int64_t>(job.owned.prompt.size()));
      policy->computed(job, static_cast<int64_t>(job.owned.prompt.size()), 0);
      waiting_.erase(&job);
      running_.push_back(&job);
      if (on_dispatch) on_dispatch(job, now - job.arrival);
    }
    for (auto it = running_.begin(); it != running_.end();) {
      Job& job = **it;
      policy->computed(job, 0, 1);
      if (job.output_tokens < job.output) {
        ++it;
        continue;
      }
      used_ -= static_cast<int64_t>(job.owned.prompt.size()) + job.output;
      policy->stop(job, true);
      it = running_.erase(it);
      jobs_.remove_if([&](const Job& other) { return &other == &job; });
    }
    ++now;
  }
  int64_t service(TenantId tenant) const {
    const auto it = policy->tenants().find(tenant);
    return it == policy->tenants().end() ? 0 : it->second.service;
  }
  bool busy() const { return !waiting_.empty() || !running_.empty(); }
  const std::set<Job*>& waiting() const { return waiting_; }

  std::unique_ptr<QueuePolicy> policy;
  int64_t now = 0, prompt_tokens = 0, output_tokens = 0, num_refused = 0;
  std::function<void(const Job&, int64_t waited)> on_dispatch;

 private:
  const int64_t capacity_;
  int64_t used_ = 0;
  uint64_t num_jobs_ = 0;
  std::list<Job> jobs_;
  std::list<Job*> running_;
  std::set<Job*> waiting_;
};

// Keeps `tenant` backlogged: never fewer than `depth` of its requests wait.
struct Backlog {
  TenantId tenant;
  std::function<std::pair<int64_t, int64_t>()> lengths;
  AdapterId adapter = kBaseModel;
  int64_t depth = 200;  // more than a step can admit
  void refill(TokenServer& server) const {
    const auto it = server.policy->tenants().find(tenant);
    for (int64_t waiting = it == server.policy->tenants().end() ? 0 : it->second.waiting; waiting < depth; ++waiting) {
      const auto [prompt, output] = lengths();
      server.arrive(tenant, prompt, output, adapter);
    }
  }
};

struct Drift {
  double largest = 0, smallest = 0, last = 0;
  double range() const { return largest - smallest; }
  void see(double difference) {
    largest = std::max(largest, difference);
    smallest = std::min(smallest, difference);
    last = difference;
  }
};

// The largest difference in service over any interval in which both are backlogged.
Drift drift_of(const QueueOptions& options, int64_t capacity, const Backlog& f, const Backlog& g, int steps = 6000) {
  TokenServer server(options, capacity);
  Drift drift;
  for (int step = 0; step < steps; ++step) {
    f.refill(server);
    g.refill(server);
    server.step();
    drift.see(static_cast<double>(server.service(f.tenant) - server.service(g.tenant)));
  }
  return drift;
}

std::function<std::pair<int64_t, int64_t>()> fixed(int64_t prompt, int64_t output) {
  return [=] { return std::pair(prompt, output); };
}
std::function<std::pair<int64_t, int64_t>()> random_lengths(uint64_t seed, int64_t most) {
  auto rng = std::make_shared<Rng>(seed);
  return [=] {
    return std::pair<int64_t, int64_t>(1 + rng->below(static_cast<uint64_t>(most)),
                                       1 + rng->below(static_cast<uint64_t>(most)));
  };
}

std::function<std::pair<int64_t, int64_t>()> around_256(uint64_t seed) {
  auto rng = std::make_shared<Rng>(seed);
  return [=] { return std::pair<int64_t, int64_t>(206 + rng->below(101), 206 + rng->below(101)); };
}

const QueueOptions kPlain{.kind = QueueKind::kVtc, .prediction = Prediction::kNone};

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
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kDrr}) {
    TokenServer other({.kind = kind}, 50);
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

double share_after_idle(QueueKind kind, bool queued) {
  QueueOptions options = kPlain;
  options.kind = kind;
  TokenServer server(options, 2000);
  const Backlog a{0, fixed(64, 64)}, b{1, fixed(64, 64)};
  // A alone for long: with a backlog, or with never anything left in the queue.
  for (int step = 0; step < 4000; ++step) {
    if (queued)
      a.refill(server);
    else if (step % 8 == 0)
      server.arrive(0, 64, 64);
    server.step();
  }
  const int64_t before_a = server.service(0), before_b = server.service(1);
  for (int step = 0; step < 2000; ++step) {
    a.refill(server);
    b.refill(server);
    server.step();
  }
  const auto got_a = static_cast<double>(server.service(0) - before_a),
             got_b = static_cast<double>(server.service(1) - before_b);
  return got_b / (got_a + got_b);
}

TEST(Vtc, IdleTimeEarnsNothing) {
  for (const bool queued : {true, false}) {
    EXPECT_NEAR(share_after_idle(QueueKind::kVtc, queued), 0.5, 0.04) << queued;
    EXPECT_GT(share_after_idle(QueueKind::kLcf, queued), 0.9) << "without the lift a newcomer takes it all";
  }
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
  for (const QueueKind kind : {QueueKind::kFcfs, QueueKind::kVtc, QueueKind::kLcf, QueueKind::kDrr, QueueKind::kDlpm})
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

TEST(Drr, SharesTheServerByWeight) {
  TokenServer server({.kind = QueueKind::kDrr, .prediction = Prediction::kNone}, 10'000);
  server.policy->set_weight(1, 3);
  for (int step = 0; step < 12'000; ++step) {
    Backlog{0, fixed(256, 32)}.refill(server);
    Backlog{1, fixed(32, 256)}.refill(server);
    server.step();
  }
  EXPECT_NEAR(static_cast<double>(server.service(1)) / static_cast<double>(server.service(0)), 3, 0.15);
}

TEST(Dlpm, TakesWhatIsResidentWhileThereIsCredit) {
  const auto switches = [](QueueKind kind) {
    AdapterId resident = kBaseModel;
    TokenServer server({.kind = kind, .prediction = Prediction::kNone, .quantum = 2'000'000}, 500,
                       [&](Ticket& ticket) { return ticket.request->adapter == resident; });
    int count = 0;
    server.on_dispatch = [&](const Job& job, int64_t) {
      count += job.owned.adapter != resident;
      resident = job.owned.adapter;
    };
    Rng rng(3);
    for (int step = 0; step < 3000; ++step) {
      for (TenantId tenant = 0; tenant < 3; ++tenant)
        if (server.waiting().size() < 60) server.arrive(tenant, 40, 40, static_cast<AdapterId>(rng.below(4)));
      server.step();
    }
    const auto [least, most] = std::minmax({server.service(0), server.service(1), server.service(2)});
    EXPECT_LE(most - least, 2 * (2'000'000 + kOutputPrice * 500));  // about its bound, 2 (U + quantum)
    return count;
  };
  EXPECT_LT(switches(QueueKind::kDlpm), switches(QueueKind::kDrr) / 2);
}

TEST(Rpm, RefusesBeyondTheMinute) {
  TokenServer server({.kind = QueueKind::kRpm, .requests_per_minute = 5}, 10'000);
  for (int i = 0; i < 8; ++i) server.arrive(0, 5, 5);
  EXPECT_EQ(server.num_refused, 3);
  EXPECT_TRUE(server.arrive(1, 5, 5)) << "the limit is each tenant's own";
  for (int step = 0; step < 60'000; ++step) server.step();  // a step is a millisecond here
  EXPECT_TRUE(server.arrive(0, 5, 5));
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
  EXPECT_EQ(ServiceCost::parse("profiled").value().of(100, 0), 221'460);
  EXPECT_EQ(ServiceCost::parse("1,2,0.5,0.25,3").value().of(2, 4), 1000 * (2 + 8 + 4 + 4 + 3));
  for (const char* bad : {"", "1", "1:", "1:-2", "nan:2", "1:2:3", "1,2,3", "1:0", "x:2", "1e300:2"})
    EXPECT_EQ(ServiceCost::parse(bad).status().code(), StatusCode::kInvalidArgument) << bad;
}

TEST(QueuePolicies, NamesAreParsed) {
  EXPECT_EQ(parse_queue_kind("dlpm").value(), QueueKind::kDlpm);
  EXPECT_THAT(std::string(parse_queue_kind("lifo").status().message()),
              ::testing::HasSubstr("fcfs, vtc, lcf, drr, dlpm, rpm"));
  EXPECT_EQ(parse_within_tenant("slack").value(), WithinTenant::kSlack);
  EXPECT_EQ(parse_prediction("max-tokens").value(), Prediction::kMaxTokens);
}

}  // namespace
}  // namespace lk
