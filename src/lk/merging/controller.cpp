// SPDX-License-Identifier: Apache-2.0
#include "lk/merging/controller.h"

#include <algorithm>

#include "lk/base/check.h"

namespace lk {

MergeController::MergeController(const MergeControllerOptions& options, std::unique_ptr<MergeChooser> chooser,
                                 UnifiedPool& pool, Executor& executor)
    : options_(options), chooser_(std::move(chooser)), pool_(pool), executor_(executor) {
  LK_CHECK(chooser_);
}

MergeController::~MergeController() {
  drop(built_);
  drop(building_);
}

void MergeController::set_allowed(AdapterId adapter, bool allowed) {
  if (allowed) {
    allowed_.insert(adapter);
    return;
  }
  allowed_.erase(adapter);
  if (adapter == built_ || adapter == building_) drop(adapter);
}

const MergeFootprint* MergeController::footprint(AdapterId adapter) {
  auto it = footprints_.find(adapter);
  if (it == footprints_.end()) {
    Result<MergeFootprint> footprint = executor_.merge_footprint(adapter);
    it = footprints_.emplace(adapter, footprint.ok() ? std::move(*footprint) : MergeFootprint()).first;
  }
  return it->second.num_pages == 0 ? nullptr : &it->second;
}

MergeGate::Turn MergeController::plan(std::span<const Queued> queue, int64_t max_running, Micros now) {
  take_finished();
  MergeView view{.now = now, .max_running = max_running, .built = built_, .building = building_};
  std::unordered_map<AdapterId, size_t> index;
  for (const Queued& queued : queue) {
    view.queue.push_back(queued.adapter);
    if (queued.adapter == kBaseModel) continue;
    const auto [it, is_new] = index.emplace(queued.adapter, view.candidates.size());
    if (is_new) {
      MergeCandidate candidate{.adapter = queued.adapter};
      if (const MergeFootprint* f = footprint(queued.adapter)) {
        candidate.relative_cost = f->relative_cost;
        candidate.build_cost_rows = f->build_cost_rows;
        candidate.allowed =
            allowed_.contains(queued.adapter) && !refused_.contains(queued.adapter) &&
            static_cast<double>(f->num_pages) <= options_.max_pool_share * static_cast<double>(pool_.num_pages());
      }
      view.candidates.push_back(candidate);
    }
    MergeCandidate& candidate = view.candidates[it->second];
    ++candidate.requests;
    candidate.rows += queued.rows;
    candidate.backlog_rows += queued.backlog_rows;
  }
  view.longest_wait = exclusive_ != kBaseModel ? now - exclusive_since_ : 0;
  MergePlan plan = chooser_->plan(view);
  if (plan.build != kBaseModel && now >= not_before_) start(plan.build, static_cast<int64_t>(queue.size()), now);
  // Only if it is there, and has something to run: a step must not be empty because others were kept out.
  if (plan.exclusive != built_ || !index.contains(plan.exclusive)) plan.exclusive = kBaseModel;
  if (plan.exclusive != kBaseModel && exclusive_ == kBaseModel) exclusive_since_ = now;
  exclusive_ = plan.exclusive;
  return {.exclusive = exclusive_, .first = std::move(plan.first)};
}

void MergeController::start(AdapterId adapter, int64_t queued, Micros now) {
  const MergeFootprint* f = footprint(adapter);
  LK_CHECK(f && adapter != built_, "adapter {} cannot be merged", adapter);
  const int64_t keep = options_.keep_pages_per_request * queued;
  const auto fits = [&](int64_t given_back) {
    const auto limit = static_cast<int64_t>(options_.max_pool_share * static_cast<double>(pool_.num_pages()));
    return pool_.num_merged() - given_back + f->num_pages <= limit && pool_.can_merge(f->num_pages, keep, given_back);
  };
  const auto pages_of = [&](AdapterId other) {
    return other == kBaseModel ? 0 : static_cast<int64_t>(pool_.merge_pages(other).size());
  };
  // It takes the place of the one being built, and of the one in use only where it must. Nothing goes for a build that
  // would not fit even then.
  const bool beside_built = fits(pages_of(building_));
  if (!beside_built && !fits(pages_of(building_) + pages_of(built_))) {
    not_before_ = now + options_.retry_after;
    return;
  }
  drop(building_);
  if (!beside_built) drop(built_);
  LK_CHECK(pool_.begin_merge(adapter, f->num_pages, keep));
  executor_.start_merge(adapter, pool_.merge_pages(adapter));
  building_ = adapter;
  ++stats_.num_builds;
}

void MergeController::take_finished() {
  for (MergeResult& result : executor_.take_finished_merges()) {
    LK_CHECK(result.adapter == building_, "adapter {} was merged, {} was asked for", result.adapter, building_);
    chooser_->built(result);
    if (result.status.ok()) {
      if (built_ != kBaseModel) drop(built_);
      built_ = stats_.merged = std::exchange(building_, kBaseModel);
    } else {
      refused_.insert(result.adapter);
      ++stats_.num_refused;
      drop(result.adapter);
    }
    stats_.last_build = std::move(result);
  }
}

void MergeController::drop(AdapterId adapter) {
  if (adapter == kBaseModel) return;
  executor_.drop_merge(adapter);
  pool_.release_merge(adapter);
  if (adapter == building_) building_ = kBaseModel;
  if (adapter == built_) built_ = stats_.merged = kBaseModel;
  if (adapter == exclusive_) exclusive_ = kBaseModel;
}

AdapterId MergeController::give_back(Micros now) {
  const AdapterId given = building_ != kBaseModel ? building_ : built_;
  if (given == kBaseModel) return kBaseModel;
  drop(given);
  ++stats_.num_given_back;
  not_before_ = now + options_.retry_after;
  return given;
}

void MergeController::forget(AdapterId adapter) {
  if (adapter == built_ || adapter == building_) drop(adapter);
  allowed_.erase(adapter);
  refused_.erase(adapter);
  footprints_.erase(adapter);
}

void MergeController::choose(StepPlan& plan) {
  shape_ = {.adapters = {}, .rows = plan.num_tokens};
  int64_t hot_rows = 0;
  std::unordered_map<AdapterId, size_t> index;
  for (const StepItem& item : plan.items) {
    const AdapterId adapter = item.request->adapter;
    const auto [it, is_new] = index.emplace(adapter, shape_.adapters.size());
    if (is_new) {
      const MergeFootprint* f = adapter == kBaseModel ? nullptr : footprint(adapter);
      shape_.adapters.push_back({.adapter = adapter,
                                 .allowed = f && allowed_.contains(adapter) && !refused_.contains(adapter),
                                 .relative_cost = f ? f->relative_cost : 0});
    }
    shape_.adapters[it->second].rows += item.end - item.begin;
    ++shape_.adapters[it->second].requests;
    if (adapter == built_ && built_ != kBaseModel) hot_rows += item.end - item.begin;
    if (adapter != exclusive_) exclusive_ = kBaseModel;  // nothing of that adapter could run: the others do
  }
  const AdapterId before = std::exchange(merged_now_, kBaseModel);
  if (hot_rows > 0 && chooser_->merged(shape_, built_)) merged_now_ = built_;
  plan.merged = merged_now_;
  stats_.num_merged_steps += merged_now_ != kBaseModel;
  stats_.num_exclusive_steps += merged_now_ != kBaseModel && hot_rows == plan.num_tokens && exclusive_ != kBaseModel;
  stats_.num_mode_changes += merged_now_ != before;
}

void MergeController::observe(const StepTimes& times) { chooser_->observe(shape_, merged_now_, times); }

}  // namespace lk
