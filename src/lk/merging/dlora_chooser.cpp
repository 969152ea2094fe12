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

class DloraChooser : public MergeChooser {
 public:
  explicit DloraChooser(const DloraChooserOptions& options)
      : options_(options),
        alpha_(options.enter),
        beta_(options.leave > 0 ? options.leave : options.merged_step_s / options.unmerged_step_s) {}

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
      adjust_credit(merged_batch(view.queue, mode_), 1 / (ratio() * size_));
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
  bool merged(const StepShape&, AdapterId built) override { return mode_ != kBaseModel && mode_ == built; }
  const char* name() const override { return "dlora"; }

 private:
  double ratio() const { return options_.merged_step_s / options_.unmerged_step_s; }
  double ceiling() const { return options_.credit_unit * static_cast<double>(credit_.size()); }

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
      for (auto& [id, credit] : credit_) credit += options_.credit_unit;
      credit_[adapter] = options_.credit_unit * static_cast<double>(credit_.size());
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
    const double low = ceiling() - options_.credit_slack;
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

  // A period ends when the mode changes: its throughput, in the options' constant times, moves the thresholds.
  void set_mode(AdapterId mode) {
    if (mode == mode_) return;
    const bool was_merged = mode_ != kBaseModel;
    double merged_s = options_.merged_step_s * iterations_, unmerged_s = options_.unmerged_step_s * iterations_;
    if (was_merged) {
      merged_s += options_.switch_s;
    } else {
      unmerged_s += options_.switch_s;
      merged_s += options_.switch_s * changes_of_hottest_;
    }
    const double merged_rate = merged_s > 0 ? served_merged_ / merged_s : 0,
                 fcfs_rate = unmerged_s > 0 ? served_fcfs_ / unmerged_s : 0;
    if (was_merged) {
      if (merged_rate > fcfs_rate && alpha_ - options_.add > beta_)
        alpha_ -= options_.add;
      else if (merged_rate < fcfs_rate)
        alpha_ *= options_.multiply;
    } else {
      if (fcfs_rate > merged_rate && beta_ + options_.add < alpha_)
        beta_ += options_.add;
      else if (fcfs_rate < merged_rate)
        beta_ /= options_.multiply;
    }
    mode_ = mode;
    iterations_ = served_merged_ = served_fcfs_ = changes_of_hottest_ = 0;
  }

  const DloraChooserOptions options_;
  double alpha_, beta_;  // enter and leave merged mode
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

std::unique_ptr<MergeChooser> make_dlora_chooser(const DloraChooserOptions& options) {
  return std::make_unique<DloraChooser>(options);
}

}  // namespace lk
