// SPDX-License-Identifier: Apache-2.0
// dLoRA's rule. Names follow its artifact: the FCFS batch is what would run unmerged, the merged batch the oldest
// requests of one adapter.
#include <algorithm>
#include <map>
#include <set>

#include "lk/base/check.h"
#include "lk/merging/chooser.h"

namespace lk {
namespace {

// All as in the artifact.
// The times of one step of llama-7b there, and of a change of mode: only their ratios matter.
constexpr double kMergedStep = 0.015, kUnmergedStep = 0.027, kSwitch = 0.020;
constexpr double kRatio = kMergedStep / kUnmergedStep;
// Of the thresholds, at each change of mode.
constexpr double kAdd = 0.05, kMultiply = 1.1;
constexpr double kEnter = 1.0;         // initial upper threshold: share of the batch that the hottest adapter must fill
constexpr double kCreditUnit = 10000;  // an adapter begins with (N - 1) units and starves at N units
constexpr double kCreditSlack = 5000;  // one that was served as starving stays so until it fell by this

class DloraChooser : public MergeChooser {
 public:
  MergePlan plan(const MergeView& view) override {
    MergePlan plan;
    if (view.queue.empty()) return plan;
    read(view);
    plan.first = starving();
    if (!plan.first.empty()) {
      serve_starving(plan.first);
      set_mode(kBaseModel);
      ++iterations_;
      return plan;
    }
    const AdapterId hottest = this->hottest();
    const auto batch = static_cast<double>(fcfs_.size());
    const auto share = [&](AdapterId adapter) { return static_cast<double>(count_[adapter]) / batch; };
    const bool stay = mode_ != kBaseModel && mode_ == view.built && count_[mode_] > 0 && share(mode_) >= beta_;
    if (!stay && hottest != kBaseModel && share(hottest) >= alpha_ && hottest != view.built && hottest != view.building)
      plan.build = hottest;
    const bool enter = !stay && hottest != kBaseModel && hottest == view.built && share(hottest) >= alpha_;
    if (stay || enter) {
      if (enter) set_mode(hottest);
      plan.exclusive = mode_;
      adjust_credit(merged_batch(view.queue, mode_), 1 / (kRatio * size_));
    } else {
      set_mode(kBaseModel);
      changes_of_hottest_ += hottest != last_hottest_;
    }
    last_hottest_ = hottest;
    ++iterations_;
    served_merged_ += std::min<double>(size_, static_cast<double>(count_[mode_ != kBaseModel ? mode_ : hottest]));
    served_fcfs_ += batch;
    return plan;
  }
  // The step was planned for one mode; it runs in it.
  bool merged(const StepMix&, AdapterId built) override { return mode_ != kBaseModel && mode_ == built; }
  const char* name() const override { return "dlora"; }

 private:
  double ceiling() const { return kCreditUnit * static_cast<double>(credit_.size()); }

  void read(const MergeView& view) {
    size_ = static_cast<double>(view.max_running);
    allowed_.clear();
    for (const MergeCandidate& candidate : view.candidates)
      if (candidate.allowed) allowed_.insert(candidate.adapter);
    fcfs_.assign(
        view.queue.begin(),
        view.queue.begin() + static_cast<long>(std::min(view.queue.size(), static_cast<size_t>(view.max_running))));
    count_.clear();
    for (AdapterId adapter : view.queue) {
      ++count_[adapter];
      if (credit_.contains(adapter)) continue;
      // One more adapter raises everybody's ceiling by a unit, and their credit with it.
      for (auto& [id, credit] : credit_) credit += kCreditUnit;
      credit_[adapter] = kCreditUnit * static_cast<double>(credit_.size());
    }
  }

  AdapterId hottest() const {
    AdapterId best = kBaseModel;
    int64_t most = 0;
    for (AdapterId adapter : allowed_) {
      const auto it = count_.find(adapter);
      if (it == count_.end() || it->second <= most || credit_.at(adapter) < 0) continue;
      best = adapter;
      most = it->second;
    }
    return best;
  }

  // Adapters that owe nothing any more and were displaced too often, the poorest last.
  std::vector<AdapterId> starving() {
    std::vector<AdapterId> order;
    const double low = ceiling() - kCreditSlack;
    for (const auto& [adapter, count] : count_) {
      const double credit = credit_.at(adapter);
      if (credit >= ceiling() || (was_starving_.contains(adapter) && credit >= low)) order.push_back(adapter);
    }
    if (credit_.size() < 2) order.clear();
    std::stable_sort(order.begin(), order.end(),
                     [&](AdapterId a, AdapterId b) { return credit_.at(a) > credit_.at(b); });
    was_starving_ = {order.begin(), order.end()};
    return order;
  }
  void serve_starving(const std::vector<AdapterId>& first) {
    std::map<AdapterId, int64_t> batch;
    auto left = static_cast<int64_t>(size_);
    for (AdapterId adapter : first) left -= batch[adapter] = std::min(left, count_[adapter]);
    for (AdapterId adapter : fcfs_)
      if (left > 0 && !was_starving_.contains(adapter)) ++batch[adapter], --left;
    adjust_credit(batch, 1 / size_);
  }
  std::map<AdapterId, int64_t> merged_batch(const std::vector<AdapterId>& queue, AdapterId adapter) const {
    return {{adapter, std::min<int64_t>(static_cast<int64_t>(size_), std::count(queue.begin(), queue.end(), adapter))}};
  }
  // Whoever gets more than FCFS gives would have pays `price` a slot to those who get less; a slot left empty costs
  // half. The sum stays.
  void adjust_credit(const std::map<AdapterId, int64_t>& batch, double price) {
    std::map<AdapterId, int64_t> more;
    int64_t scheduled = 0, gained = 0, lost = 0;
    for (const auto& [adapter, count] : batch) more[adapter] += count, scheduled += count;
    for (AdapterId adapter : fcfs_) --more[adapter];
    for (const auto& [adapter, difference] : more) (difference > 0 ? gained : lost) += std::abs(difference);
    if (lost == 0 || gained == 0) {
      if (lost == 0 || batch.empty()) return;
      // Nobody took the slots: the one who runs alone pays for the empty ones.
      for (const auto& [adapter, difference] : more)
        if (difference < 0) transfer(batch.begin()->first, adapter, price / 2 * static_cast<double>(-difference));
      return;
    }
    const double each = scheduled == static_cast<int64_t>(fcfs_.size()) ? price : price / 2;
    for (const auto& [loser, losses] : more) {
      if (losses >= 0) continue;
      for (const auto& [winner, gains] : more)
        if (gains > 0)
          transfer(winner, loser,
                   each * static_cast<double>(-losses) * static_cast<double>(gains) / static_cast<double>(gained));
    }
  }
  void transfer(AdapterId from, AdapterId to, double credit) {
    credit_.at(from) -= credit;
    credit_.at(to) += credit;
  }

  // A period ends when the mode changes: its throughput, in these constant times, moves the thresholds.
  void set_mode(AdapterId mode) {
    if (mode == mode_) return;
    const bool was_merged = mode_ != kBaseModel;
    double merged_s = kMergedStep * iterations_, unmerged_s = kUnmergedStep * iterations_;
    if (was_merged) {
      merged_s += kSwitch;
    } else {
      unmerged_s += kSwitch;
      merged_s += kSwitch * changes_of_hottest_;
    }
    const double merged_rate = merged_s > 0 ? served_merged_ / merged_s : 0,
                 fcfs_rate = unmerged_s > 0 ? served_fcfs_ / unmerged_s : 0;
    if (was_merged) {
      if (merged_rate > fcfs_rate && alpha_ - kAdd > beta_)
        alpha_ -= kAdd;
      else if (merged_rate < fcfs_rate)
        alpha_ *= kMultiply;
    } else {
      if (fcfs_rate > merged_rate && beta_ + kAdd < alpha_)
        beta_ += kAdd;
      else if (fcfs_rate < merged_rate)
        beta_ /= kMultiply;
    }
    mode_ = mode;
    iterations_ = served_merged_ = served_fcfs_ = changes_of_hottest_ = 0;
  }

  double alpha_ = kEnter, beta_ = kRatio;  // enter and leave merged mode
  AdapterId mode_ = kBaseModel, last_hottest_ = kBaseModel;
  double size_ = 1;                                                                       // requests per step
  double iterations_ = 0, served_merged_ = 0, served_fcfs_ = 0, changes_of_hottest_ = 0;  // of the present period
  std::map<AdapterId, double> credit_;
  std::set<AdapterId> was_starving_;
  // Of the step being planned.
  std::set<AdapterId> allowed_;
  std::vector<AdapterId> fcfs_;
  std::map<AdapterId, int64_t> count_;
};

}  // namespace

std::unique_ptr<MergeChooser> make_dlora_chooser() { return std::make_unique<DloraChooser>(); }

}  // namespace lk
