// SPDX-License-Identifier: Apache-2.0
// HashExecutor: the scheduler's tests run it on this instead of on a model.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "lk/base/page.h"
#include "lk/base/rng.h"
#include "lk/sched/scheduler.h"

namespace lk {

// A model without tensors: the state of position p is a hash of the state of p - 1, read from the page table, and the
// token. A wrong, stale or foreign page changes every later token, so tokens prove the paging. The pages of resident
// adapters (rank rows and whole matrices alike) and of merged weights are full of numbers of their own, and every step
// that uses them looks at each.
class HashExecutor : public Executor {
 public:
  explicit HashExecutor(uint64_t seed, int64_t num_pages)
      : rng_(seed), slots_(static_cast<size_t>(num_pages * kPageTokens)) {}

  Micros now() const override { return time; }
  static uint64_t next_state(uint64_t state, int32_t token) {
    return mix64(state * 31 + static_cast<uint64_t>(token) + 1);
  }
  static uint64_t first_state(AdapterId adapter) { return mix64(static_cast<uint64_t>(adapter) + 77); }
  // Adapters from here on are activated ones. They act from the last kInvocation of a prompt on; those with odd numbers
  // also change what comes before.
  static constexpr AdapterId kActivated = 500;
  static constexpr int32_t kInvocation = 7;
  static std::optional<Activation> activation_of(AdapterId adapter, std::span<const int32_t> prompt) {
    if (adapter < kActivated) return std::nullopt;
    Activation activation{.base_before = adapter % 2 == 0};
    for (size_t i = 0; i < prompt.size(); ++i)
      if (prompt[i] == kInvocation) activation.from = static_cast<int64_t>(i);
    return activation;
  }
  std::optional<Activation> activation(AdapterId adapter, std::span<const int32_t> prompt) const override {
    return activation_of(adapter, prompt);
  }
  // Of position `pos`, if `before` is that of the one before it (anything at 0).
  static uint64_t state_at(const Request& request, int64_t pos, uint64_t before, int32_t token) {
    const std::optional<Activation> activation = activation_of(request.adapter, request.prompt);
    const AdapterId at_first = activation && activation->base_before ? kBaseModel : request.adapter;
    if (pos == 0) before = first_state(at_first);
    if (activation && pos >= activation->from) before = mix64(before ^ first_state(request.adapter));
    return next_state(before, token);
  }
  static int32_t token_of(uint64_t state) { return static_cast<int32_t>(mix64(state) % 50); }
  // What a request alone would produce.
  static std::vector<int32_t> expected(const Request& request) {
    uint64_t state = 0;
    int64_t pos = 0;
    for (int32_t token : request.prompt) state = state_at(request, pos++, state, token);
    std::vector<int32_t> output;
    while (static_cast<int64_t>(output.size()) < request.max_tokens) {
      output.push_back(token_of(state));
      if (std::find(request.stop_token_ids.begin(), request.stop_token_ids.end(), output.back()) !=
          request.stop_token_ids.end())
        break;
      state = state_at(request, pos++, state, output.back());
    }
    return output;
  }

  int64_t footprint(AdapterId adapter) const override { return 1 + adapter % 3 + (adapter % 2) * matrix_pages; }
  void start_load(AdapterId adapter, std::span<const PageId> pages) override {
    EXPECT_EQ(static_cast<int64_t>(pages.size()), footprint(adapter));
    EXPECT_FALSE(resident.contains(adapter)) << "its pages are somebody else's, and nobody said so";
    loading_.push_back({adapter, {pages.begin(), pages.end()}});
  }
  void evicted(AdapterId adapter) override {
    EXPECT_EQ(resident.erase(adapter), 1u) << "adapter " << adapter << " was not resident";
    ++num_evicted;
  }
  void stage(AdapterId adapter) override { staged.insert(adapter); }
  void unstage(AdapterId adapter) override { staged.erase(adapter); }
  void abandon_loads() override {
    for (const auto& [adapter, pages] : std::exchange(loading_, {})) abandoned_.push_back({adapter, unavailable("")});
  }
  std::vector<AdapterId> adapters() const override { return known; }
  std::vector<LoadResult> take_finished_loads(bool wait) override {
    std::vector<LoadResult> done = std::exchange(abandoned_, {});
    while (!loading_.empty() && ((wait && done.empty()) || rng_.below(3) == 0)) {
      auto [adapter, pages] = std::move(loading_.front());
      loading_.pop_front();
      const bool broken = adapter == broken_adapter;
      done.push_back({adapter, broken ? data_loss("adapter {} is broken", adapter) : Status()});
      fill(pages, content_of(adapter));
      if (!broken) resident.emplace(adapter, std::move(pages));
    }
    return done;
  }

  Result<MergeFootprint> merge_footprint(AdapterId adapter) const override {
    if (merge_pages == 0 || adapter >= kActivated) return failed_precondition("nothing to merge");
    return MergeFootprint{.num_pages = merge_pages + adapter, .relative_cost = 0.5, .build_cost_rows = 1};
  }
  void start_merge(AdapterId adapter, std::span<const PageId> pages) override {
    EXPECT_EQ(static_cast<int64_t>(pages.size()), merge_pages + adapter);
    EXPECT_TRUE(merges_.emplace(adapter, Merge{.pages = {pages.begin(), pages.end()}}).second);
  }
  std::vector<MergeResult> take_finished_merges() override {
    std::vector<MergeResult> done;
    for (auto& [adapter, merge] : merges_) {
      if (merge.built || rng_.below(3) != 0) continue;
      fill(merge.pages, content_of(adapter + kMergedContent));
      merge.built = true;
      done.push_back({.adapter = adapter, .build_time = 1, .engine_time = 1, .build_cost_rows = 1});
    }
    return done;
  }
  void drop_merge(AdapterId adapter) override { EXPECT_EQ(merges_.erase(adapter), 1u); }

  std::span<ItemResult> execute(const StepPlan& plan) override {
    results_.clear();
    last_step.clear();
    int64_t num_tokens = 0;
    if (plan.merged != kBaseModel) {
      EXPECT_TRUE(merges_.at(plan.merged).built);
      expect_full(merges_.at(plan.merged).pages, content_of(plan.merged + kMergedContent), "merged weights");
      ++num_merged_steps;
    }
    for (const StepItem& item : plan.items) {
      EXPECT_LT(item.begin, item.end);
      if (const AdapterId adapter = item.request->adapter; adapter != kBaseModel) {
        EXPECT_TRUE(resident.contains(adapter)) << "adapter " << adapter << " runs and is not resident";
        expect_full(resident[adapter], content_of(adapter), "an adapter");
      }
      const auto activation = activation_of(item.request->adapter, item.request->prompt);
      EXPECT_EQ(item.deltas_from, activation ? activation->from : 0);
      num_tokens += item.end - item.begin;
      last_step.emplace_back(item.request->id, item.end - item.begin);
      ItemResult result;
      for (int64_t pos = item.begin; pos < item.end; ++pos) {
        const uint64_t before = pos == 0 ? 0 : slot(item, pos - 1);
        slot(item, pos) = state_at(*item.request, pos, before, item.tokens[static_cast<size_t>(pos)]);
        if (item.prompt_logprobs && pos + 1 < static_cast<int64_t>(item.request->prompt.size()))
          result.prompt_logprobs.push_back({.token = item.request->prompt[static_cast<size_t>(pos + 1)],
                                            .logprob = static_cast<float>(token_of(slot(item, pos)))});
      }
      if (item.sample) result.token.token = token_of(slot(item, item.end - 1));
      results_.push_back(std::move(result));
    }
    EXPECT_EQ(num_tokens, plan.num_tokens);
    max_step_tokens_seen = std::max(max_step_tokens_seen, num_tokens);
    return results_;
  }

  int64_t matrix_pages = 1;  // of every second adapter, besides its rank rows
  int64_t merge_pages = 0;   // of merged weights, and one more by adapter; 0: none can be merged
  AdapterId broken_adapter = -2;
  std::map<AdapterId, std::vector<PageId>> resident;
  int64_t num_evicted = 0, num_merged_steps = 0;
  std::set<AdapterId> staged;
  std::vector<AdapterId> known;  // of adapters(); requests may ask for any
  Micros time = 0;
  int64_t max_step_tokens_seen = 0;
  std::vector<std::pair<RequestId, int64_t>> last_step;  // tokens of each request

 private:
  static constexpr AdapterId kMergedContent = 1000;
  struct Merge {
    std::vector<PageId> pages;
    bool built = false;
  };
  static uint64_t content_of(AdapterId adapter) { return mix64(static_cast<uint64_t>(adapter) + 12345); }
  std::span<uint64_t> slots_of(PageId page) {
    return std::span(slots_).subspan(static_cast<size_t>(page * kPageTokens), kPageTokens);
  }
  void fill(const std::vector<PageId>& pages, uint64_t content) {
    for (size_t i = 0; i < pages.size(); ++i) std::ranges::fill(slots_of(pages[i]), content + i);
  }
  void expect_full(const std::vector<PageId>& pages, uint64_t content, const char* whose) {
    for (size_t i = 0; i < pages.size(); ++i)
      if (std::ranges::count(slots_of(pages[i]), content + i) != kPageTokens)
        ADD_FAILURE() << "page " << pages[i] << " of " << whose << " was overwritten";
  }
  uint64_t& slot(const StepItem& item, int64_t pos) {
    return slots_[static_cast<size_t>(item.block_table[static_cast<size_t>(pos / kPageTokens)] * kPageTokens +
                                      pos % kPageTokens)];
  }
  Rng rng_;
  std::vector<uint64_t> slots_;
  std::deque<std::pair<AdapterId, std::vector<PageId>>> loading_;
  std::vector<LoadResult> abandoned_;
  std::map<AdapterId, Merge> merges_;
  std::vector<ItemResult> results_;  // of the latest step
};

// Merges now this adapter and now that one of those with even numbers, and forgets them again: no policy, all cases.
class RandomMergeGate : public MergeGate {
 public:
  RandomMergeGate(UnifiedPool& pool, HashExecutor& executor, uint64_t seed)
      : pool_(pool), executor_(executor), rng_(seed) {}
  ~RandomMergeGate() override { give_back(0); }
  void keep() { keep_ = true; }  // what is merged, until somebody needs its pages; and merges nothing more

  Turn plan(std::span<const Queued> queue, int64_t, Micros) override {
    for (const MergeResult& result : executor_.take_finished_merges()) built_ = result.adapter == merged_;
    if (merged_ != kBaseModel) {
      if (!keep_ && rng_.below(20) == 0) give_back(0);
      return {};
    }
    if (keep_) return {};
    const AdapterId adapter = queue.empty() ? kBaseModel : queue[rng_.below(queue.size())].adapter;
    if (adapter < 0 || adapter % 2 != 0) return {};
    const Result<MergeFootprint> footprint = executor_.merge_footprint(adapter);
    if (!footprint.ok() || !pool_.begin_merge(adapter, footprint->num_pages, 0)) return {};
    executor_.start_merge(adapter, pool_.merge_pages(adapter));
    merged_ = adapter;
    return {};
  }
  void choose(StepPlan& plan) override {
    for (const StepItem& item : plan.items)
      if (built_ && item.request->adapter == merged_) plan.merged = merged_;
  }
  void observe(const StepTimes&) override {}
  AdapterId give_back(Micros) override {
    const AdapterId given = std::exchange(merged_, kBaseModel);
    built_ = false;
    if (given == kBaseModel) return kBaseModel;
    executor_.drop_merge(given);
    pool_.release_merge(given);
    return given;
  }
  void forget(AdapterId adapter) override {
    if (adapter == merged_) give_back(0);
  }

 private:
  UnifiedPool& pool_;
  HashExecutor& executor_;
  Rng rng_;
  AdapterId merged_ = kBaseModel;
  bool built_ = false, keep_ = false;
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
