// SPDX-License-Identifier: Apache-2.0
#include "lk/merging/controller.h"

#include <algorithm>

#include "lk/base/check.h"

namespace lk {
namespace {

// Merged layers never take more of the pool: it is there for requests and their adapters.
constexpr double kMaxPoolShare = 0.5;
// Nor do they leave fewer pages available than this for each request in the queue, or they would be given back at once.
constexpr int64_t kKeepPagesPerRequest = 2;
// After the pool had no room, or merged pages were given back: such pressure rarely ends within a few steps.
constexpr Micros kRetryAfter = 1'000'000;

}  // namespace

MergeController::MergeController(std::unique_ptr<MergeChooser> chooser, UnifiedPool& pool, Executor& executor)
    : chooser_(std::move(chooser)), pool_(pool), executor_(executor) {
  LK_CHECK(chooser_);
}

MergeController::~MergeController() {
  drop(built_);
  drop(building_);
}

MergeController::Known& MergeController::known(AdapterId adapter) {
  Known& known = known_[adapter];
  if (!known.footprint) {
    const Result<MergeFootprint> footprint =
        adapter == kBaseModel ? MergeFootprint() : executor_.merge_footprint(adapter);
    known.footprint = footprint.ok() ? *footprint : MergeFootprint();
  }
  return known;
}

bool MergeController::meets_first(Known& known, size_t place) const {
  if (known.round == round_) return false;
  known.round = round_;
  known.place = place;
  return true;
}

MergeGate::Turn MergeController::plan(std::span<const Queued> queue, int64_t max_running, Micros now) {
  take_finished(now);
  view_.now = now;
  view_.max_running = max_running;
  view_.built = built_;
  view_.building = building_;
  view_.queue.clear();
  view_.candidates.clear();
  ++round_;
  for (const Queued& queued : queue) {
    view_.queue.push_back(queued.adapter);
    if (queued.adapter == kBaseModel) continue;
    Known& known = this->known(queued.adapter);
    if (meets_first(known, view_.candidates.size())) {
      const MergeFootprint& f = *known.footprint;
      view_.candidates.push_back(
          {.adapter = queued.adapter,
           .allowed = f.num_pages > 0 && known.may_be_merged() && breaker_.allows(queued.adapter, now) &&
                      static_cast<double>(f.num_pages) <= kMaxPoolShare * static_cast<double>(pool_.num_pages()),
           .relative_cost = f.relative_cost,
           .build_cost_rows = f.build_cost_rows});
    }
    MergeCandidate& candidate = view_.candidates[known.place];
    ++candidate.requests;
    candidate.rows += queued.rows;
    candidate.backlog_rows += queued.backlog_rows;
  }
  view_.longest_wait = exclusive_ != kBaseModel ? now - exclusive_since_ : 0;
  MergePlan plan = chooser_->plan(view_);
  if (plan.build != kBaseModel && now >= not_before_) start(plan.build, static_cast<int64_t>(queue.size()), now);
  // Only if it is there, and has something to run: a step must not be empty because others were kept out.
  const auto exclusive = known_.find(plan.exclusive);
  if (plan.exclusive != built_ || exclusive == known_.end() || exclusive->second.round != round_)
    plan.exclusive = kBaseModel;
  if (plan.exclusive != kBaseModel && exclusive_ == kBaseModel) exclusive_since_ = now;
  exclusive_ = plan.exclusive;
  return {.exclusive = exclusive_, .first = plan.first};
}

void MergeController::start(AdapterId adapter, int64_t queued, Micros now) {
  const int64_t pages = known(adapter).footprint->num_pages;
  LK_CHECK(pages > 0 && adapter != built_, "adapter {} cannot be merged", adapter);
  const int64_t keep = kKeepPagesPerRequest * queued;
  const auto fits = [&](int64_t given_back) {
    const auto limit = static_cast<int64_t>(kMaxPoolShare * static_cast<double>(pool_.num_pages()));
    return pool_.num_merged() - given_back + pages <= limit && pool_.can_merge(pages, keep, given_back);
  };
  const auto pages_of = [&](AdapterId other) {
    return other == kBaseModel ? 0 : static_cast<int64_t>(pool_.merge_pages(other).size());
  };
  // It takes the place of the one being built, and of the one in use only where it must. Nothing goes for a build that
  // would not fit even then.
  const bool beside_built = fits(pages_of(building_));
  if (!beside_built && !fits(pages_of(building_) + pages_of(built_))) {
    not_before_ = now + kRetryAfter;
    return;
  }
  drop(building_);
  if (!beside_built) drop(built_);
  LK_CHECK(pool_.begin_merge(adapter, pages, keep));
  executor_.start_merge(adapter, pool_.merge_pages(adapter));
  building_ = adapter;
  ++stats_.num_builds;
}

void MergeController::take_finished(Micros now) {
  for (MergeResult& result : executor_.take_finished_merges()) {
    LK_CHECK(result.adapter == building_, "adapter {} was merged, {} was asked for", result.adapter, building_);
    chooser_->built(result);
    if (result.status.ok()) {
      if (built_ != kBaseModel) drop(built_);
      built_ = stats_.merged = std::exchange(building_, kBaseModel);
      breaker_.forget(built_);
    } else {
      // Only what the weights themselves forbid is for ever: a file that could not be read may be readable next time.
      const bool for_ever = result.status.code() == StatusCode::kFailedPrecondition;
      if (for_ever)
        known_[result.adapter].refused = true;
      else
        breaker_.failed(result.adapter, now);
      ++(for_ever ? stats_.num_refused : stats_.num_failed);
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
  not_before_ = now + kRetryAfter;
  return given;
}

void MergeController::forget(AdapterId adapter) {
  if (adapter == built_ || adapter == building_) drop(adapter);
  breaker_.forget(adapter);
  known_.erase(adapter);
}

void MergeController::choose(StepPlan& plan) {
  mix_.adapters.clear();
  mix_.rows = plan.num_tokens;
  int64_t hot_rows = 0;
  ++round_;
  for (const StepItem& item : plan.items) {
    const AdapterId adapter = item.request->adapter;
    Known& known = this->known(adapter);
    if (meets_first(known, mix_.adapters.size()))
      mix_.adapters.push_back({.adapter = adapter,
                               .allowed = known.footprint->num_pages > 0 && known.may_be_merged(),
                               .relative_cost = known.footprint->relative_cost});
    mix_.adapters[known.place].rows += item.end - item.begin;
    ++mix_.adapters[known.place].requests;
    if (adapter == built_ && built_ != kBaseModel) hot_rows += item.end - item.begin;
    if (adapter != exclusive_) exclusive_ = kBaseModel;  // nothing of that adapter could run: the others do
  }
  const AdapterId before = std::exchange(merged_now_, kBaseModel);
  if (hot_rows > 0 && chooser_->merged(mix_, built_)) merged_now_ = built_;
  plan.merged = merged_now_;
  stats_.num_merged_steps += merged_now_ != kBaseModel;
  stats_.num_exclusive_steps += merged_now_ != kBaseModel && hot_rows == plan.num_tokens && exclusive_ != kBaseModel;
  stats_.num_mode_changes += merged_now_ != before;
}

void MergeController::observe(const StepTimes& times) { chooser_->observe(mix_, merged_now_, times); }

}  // namespace lk
