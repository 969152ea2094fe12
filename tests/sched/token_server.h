// SPDX-License-Identifier: Apache-2.0
// TokenServer: queue policies under the model of the VTC paper (arXiv:2401.00588): a server whose batch holds a number
// of tokens, which reserves prompt and output on admission, and makes one token of each running request a step. It
// preempts only when a test asks it to.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <set>

#include "lk/base/rng.h"
#include "lk/sched/queue_policy.h"

namespace lk {

inline constexpr int64_t kPromptPrice = 1000, kOutputPrice = 2000;

struct Job : Ticket {
  Request owned;
  int64_t output = 0;  // that it will make; max_tokens may be more
};

class TokenServer {
 public:
  TokenServer(const QueueOptions& options, int64_t capacity, Locality locality = {})
      : TokenServer(QueuePolicy::create(options, std::move(locality)), capacity) {}
  TokenServer(std::unique_ptr<QueuePolicy> policy, int64_t capacity) : policy(std::move(policy)), capacity_(capacity) {}

  Job* arrive(TenantId tenant, int64_t prompt, int64_t output, AdapterId adapter = kBaseModel, int64_t max_tokens = 0,
              int64_t priority = 0) {
    Job& job = jobs_.emplace_back();
    job.owned = {.id = static_cast<RequestId>(num_jobs_),
                 .adapter = adapter,
                 .tenant = tenant,
                 .priority = priority,
                 .prompt = std::vector<int32_t>(static_cast<size_t>(prompt)),
                 .max_tokens = max_tokens > 0 ? max_tokens : output};
    job.request = &job.owned;
    job.order = num_jobs_++;
    job.arrival = now;
    job.output = output;
    policy->arrive(job);
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
      // After a preemption the prompt is computed again, which is not billed again.
      policy->computed(job, static_cast<int64_t>(job.owned.prompt.size()) - job.computed_prompt, 0);
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
      policy->learn_length(job);
      policy->stop(job, true);
      it = running_.erase(it);
      jobs_.remove_if([&](const Job& other) { return &other == &job; });
    }
    ++now;
  }
  void preempt(Job* job) {
    running_.remove(job);
    used_ -= static_cast<int64_t>(job->owned.prompt.size()) + job->output;
    policy->stop(*job, false);
    policy->wait_again(*job);
    waiting_.insert(job);
  }
  int64_t service(TenantId tenant) const {
    const auto it = policy->tenants().find(tenant);
    return it == policy->tenants().end() ? 0 : it->second.service;
  }
  bool busy() const { return !waiting_.empty() || !running_.empty(); }
  const std::set<Job*>& waiting() const { return waiting_; }
  const std::list<Job*>& running() const { return running_; }

  std::unique_ptr<QueuePolicy> policy;
  int64_t now = 0, prompt_tokens = 0, output_tokens = 0;
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
inline Drift drift_of(const QueueOptions& options, int64_t capacity, const Backlog& f, const Backlog& g,
                      int steps = 6000) {
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

inline std::function<std::pair<int64_t, int64_t>()> fixed(int64_t prompt, int64_t output) {
  return [=] { return std::pair(prompt, output); };
}
inline std::function<std::pair<int64_t, int64_t>()> random_lengths(uint64_t seed, int64_t most) {
  auto rng = std::make_shared<Rng>(seed);
  return [=] {
    return std::pair<int64_t, int64_t>(1 + rng->below(static_cast<uint64_t>(most)),
                                       1 + rng->below(static_cast<uint64_t>(most)));
  };
}

inline std::function<std::pair<int64_t, int64_t>()> around_256(uint64_t seed) {
  auto rng = std::make_shared<Rng>(seed);
  return [=] { return std::pair<int64_t, int64_t>(206 + rng->below(101), 206 + rng->below(101)); };
}

inline const QueueOptions kPlain{.kind = QueueKind::kVtc, .prediction = Prediction::kNone};

// The share of the server that tenant 1 gets once it comes, where tenant 0 was alone for long: with a backlog, or with
// never anything left in the queue.
inline double share_after_idle(std::unique_ptr<QueuePolicy> policy, bool queued) {
  TokenServer server(std::move(policy), 2000);
  const Backlog a{0, fixed(64, 64)}, b{1, fixed(64, 64)};
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

}  // namespace lk
