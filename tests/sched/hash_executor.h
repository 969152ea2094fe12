// SPDX-License-Identifier: Apache-2.0
// HashExecutor: the scheduler's tests run it on this instead of on a model.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "lk/base/rng.h"
#include "lk/sched/scheduler.h"

namespace lk {

// A model without tensors: the state of position p is a hash of the state of p - 1, read from the page table, and the
// token. A wrong, stale or foreign page changes every later token, so tokens prove the paging.
class HashExecutor : public Executor {
 public:
  explicit HashExecutor(uint64_t seed, int64_t num_pages) : rng_(seed), slots_(static_cast<size_t>(num_pages * 16)) {}

  Micros now() const override { return time; }
  static uint64_t next_state(uint64_t state, int32_t token) {
    return mix64(state * 31 + static_cast<uint64_t>(token) + 1);
  }
  static uint64_t first_state(AdapterId adapter) { return mix64(static_cast<uint64_t>(adapter) + 77); }
  static int32_t token_of(uint64_t state) { return static_cast<int32_t>(mix64(state) % 50); }
  // What a request alone would produce.
  static std::vector<int32_t> expected(const Request& request) {
    uint64_t state = first_state(request.adapter);
    for (int32_t token : request.prompt) state = next_state(state, token);
    std::vector<int32_t> output;
    while (static_cast<int64_t>(output.size()) < request.max_tokens) {
      output.push_back(token_of(state));
      if (std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), output.back()) !=
          request.stop_token_ids.end())
        break;
      state = next_state(state, output.back());
    }
    return output;
  }

  AdapterFootprint footprint(AdapterId adapter) const override {
    return {.num_pages = 1 + adapter % 3, .run_length = adapter % 2};
  }
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

inline std::map<RequestId, Outcome> run_all(Scheduler& scheduler, UnifiedPool& pool) {
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

inline Request make_request(RequestId id, AdapterId adapter, int64_t prompt_length, int64_t max_tokens, uint64_t seed) {
  Request request{.id = id, .adapter = adapter, .max_tokens = max_tokens};
  Rng rng(seed);
  for (int64_t i = 0; i < prompt_length; ++i) request.prompt.push_back(static_cast<int32_t>(rng.below(50)));
  return request;
}

}  // namespace lk
