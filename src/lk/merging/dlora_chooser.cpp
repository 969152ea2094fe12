// SPDX-License-Identifier: Apache-2.0
// dLoRA's rule. Names follow its artifact: the FCFS batch is what would run unmerged, the merged batch the oldest
// requests of one adapter.
#include <algorithm>
#include <map>
#include <optional>
#include <utility>

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
    find_starving();
    if (!starving_.empty()) {
      serve_starving();
      set_mode(kBaseModel);
      ++iterations_;
      plan.first = starving_;
      return plan;
    }
    const AdapterId hottest = this->hottest();
    const auto batch = static_cast<double>(fcfs_.size());
    const auto share = [&](AdapterId adapter) { return static_cast<double>(queued(adapter)) / batch; };
    const bool stay = mode_ != kBaseModel && mode_ == view.built && queued(mode_) > 0 && share(mode_) >= beta_;
    if (!stay && hottest != kBaseModel && share(hottest) >= alpha_ && hottest != view.built && hottest != view.building)
      plan.build = hottest;
    const bool enter = !stay && hottest != kBaseModel && hottest == view.built && share(hottest) >= alpha_;
    if (stay || enter) {
      if (enter) set_mode(hottest);
      plan.exclusive = mode_;
      accounts_.at(mode_).batch = std::min(static_cast<int64_t>(size_), queued(mode_));
      adjust_credit(1 / (kRatio * size_));
    } else {
      set_mode(kBaseModel);
      changes_of_hottest_ += hottest != last_hottest_;
    }
    last_hottest_ = hottest;
    ++iterations_;
    served_merged_ += std::min<double>(size_, static_cast<double>(queued(mode_ != kBaseModel ? mode_ : hottest)));
    served_fcfs_ += batch;
    return plan;
  }
  // The step was planned for one mode; it runs in it.
  bool merged(const StepMix&, AdapterId built) override { return mode_ != kBaseModel && mode_ == built; }
  const char* name() const override { return "dlora"; }

 private:
  // Of an adapter that was ever in the queue, or the base model.
  struct Account {
    double credit = 0;
    bool was_starving = false;
    // Of the step being planned.
    bool allowed = false;
    int64_t queued = 0, fcfs = 0;  // requests; and in the FCFS batch
    std::optional<int64_t> batch;  // in the batch that is to run, if it is
  };

  double ceiling() const { return kCreditUnit * static_cast<double>(accounts_.size()); }
  int64_t queued(AdapterId adapter) const {
    const auto it = accounts_.find(adapter);
    return it == accounts_.end() ? 0 : it->second.queued;
  }

  void read(const MergeView& view) {
    size_ = static_cast<double>(view.max_running);
    for (auto& [adapter, account] : accounts_)
      account = {.credit = account.credit, .was_starving = account.was_starving};
    for (const AdapterId adapter : view.queue) {
      auto it = accounts_.find(adapter);
      if (it == accounts_.end()) {
        // One more adapter raises everybody's ceiling by a unit, and their credit with it.
        for (auto& [id, account] : accounts_) account.credit += kCreditUnit;
        it = accounts_.emplace(adapter, Account{.credit = ceiling()}).first;
      }
      ++it->second.queued;
    }
    fcfs_.assign(
        view.queue.begin(),
        view.queue.begin() + static_cast<long>(std::min(view.queue.size(), static_cast<size_t>(view.max_running))));
    for (const AdapterId adapter : fcfs_) ++accounts_.at(adapter).fcfs;
    for (const MergeCandidate& candidate : view.candidates) accounts_.at(candidate.adapter).allowed = candidate.allowed;
  }

  AdapterId hottest() const {
    AdapterId best = kBaseModel;
    int64_t most = 0;
    for (const auto& [adapter, account] : accounts_) {
      if (!account.allowed || account.queued <= most || account.credit < 0) continue;
      best = adapter;
      most = account.queued;
    }
    return best;
  }

  // Adapters that owe nothing any more and were displaced too often, the poorest last.
  void find_starving() {
    starving_.clear();
    const double low = ceiling() - kCreditSlack;
    for (auto& [adapter, account] : accounts_) {
      const bool starves = account.queued > 0 && accounts_.size() >= 2 &&
                           (account.credit >= ceiling() || (account.was_starving && account.credit >= low));
      account.was_starving = starves;
      if (starves) starving_.push_back(adapter);
    }
    std::sort(starving_.begin(), starving_.end(), [&](AdapterId a, AdapterId b) {
      return std::pair(-accounts_.at(a).credit, a) < std::pair(-accounts_.at(b).credit, b);
    });
  }
  void serve_starving() {
    auto left = static_cast<int64_t>(size_);
    for (const AdapterId adapter : starving_) {
      Account& account = accounts_.at(adapter);
      account.batch = std::min(left, account.queued);
      left -= *account.batch;
    }
    for (const AdapterId adapter : fcfs_) {
      Account& account = accounts_.at(adapter);
      if (left > 0 && !account.was_starving) account.batch = account.batch.value_or(0) + 1, --left;
    }
    adjust_credit(1 / size_);
  }
  // Whoever gets more than FCFS gives would have pays `price` a slot to those who get less; a slot left empty costs
  // half. The sum stays.
  void adjust_credit(double price) {
    const auto more = [](const Account& account) { return account.batch.value_or(0) - account.fcfs; };
    int64_t scheduled = 0, gained = 0, lost = 0;
    Account* first = nullptr;  // in the batch
    for (auto& [adapter, account] : accounts_) {
      if (account.batch && !first) first = &account;
      scheduled += account.batch.value_or(0);
      (more(account) > 0 ? gained : lost) += std::abs(more(account));
    }
    if (lost == 0 || gained == 0) {
      if (lost == 0 || !first) return;
      // Nobody took the slots: the one who runs alone pays for the empty ones.
      for (auto& [adapter, account] : accounts_)
        if (more(account) < 0) transfer(*first, account, price / 2 * static_cast<double>(-more(account)));
      return;
    }
    const double each = scheduled == static_cast<int64_t>(fcfs_.size()) ? price : price / 2;
    for (auto& [loser, losses] : accounts_) {
      if (more(losses) >= 0) continue;
      for (auto& [winner, gains] : accounts_)
        if (more(gains) > 0)
          transfer(gains, losses,
                   each * static_cast<double>(-more(losses)) * static_cast<double>(more(gains)) /
                       static_cast<double>(gained));
    }
  }
  static void transfer(Account& from, Account& to, double credit) {
    from.credit -= credit;
    to.credit += credit;
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
  std::map<AdapterId, Account> accounts_;
  std::vector<AdapterId> fcfs_, starving_;  // of the step being planned
};

}  // namespace

std::unique_ptr<MergeChooser> make_dlora_chooser() { return std::make_unique<DloraChooser>(); }

}  // namespace lk
