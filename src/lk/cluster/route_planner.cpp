// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/route_planner.h"

#include <ctime>

#include "lk/base/guarded.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kRound = 1s;
constexpr int64_t kPlaceEvery = 10;  // rounds

}  // namespace

RoutePlanner::RoutePlanner(FleetView& fleet, std::unique_ptr<Planner> planner, std::string kind, std::string name,
                           Host host)
    : fleet_(fleet),
      planner_(std::move(planner)),
      kind_(std::move(kind)),
      name_(std::move(name)),
      host_(std::move(host)) {
  if (kind_ != "off") thread_ = std::thread([this] { run(); });
}

RoutePlanner::~RoutePlanner() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RoutePlanner::run() {
  set_thread_name("lk-route-plan");
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, kRound, [this] { return stopping_; })) {
    lock.unlock();
    (void)guarded("the planner", [this] { round(); });
    lock.lock();
  }
}

void RoutePlanner::round() {
  ++rounds_;
  const FleetPicture picture = fleet_.picture(Clock::now());
  if (rounds_ % static_cast<int64_t>(planner_->interval_seconds()) == 0) {
    std::vector<PlannedMove> moves = planner_->moves(picture);
    if (!planner_->last_hot().empty()) {
      std::lock_guard lock(mutex_);
      hot_ = planner_->last_hot();
      hot_at_ = Clock::now();
    }
    if (!moves.empty()) host_.move(std::move(moves));
  }
  if (kind_ == "dlora") return;  // it moves only
  planner_->observe(picture, std::chrono::duration<double>(kRound).count());
  if (!leads_) return;
  if (rounds_ % kPlaceEvery == 0) {
    const Placement before = planner_->placement();
    const Placement& placement = planner_->place(picture);
    fleet_.set_placement(std::make_shared<const Placement>(placement));
    if (host_.publish && (placement != before || rounds_ == kPlaceEvery)) {
      FleetPlan plan{.leader = name_, .made_at = std::time(nullptr), .placement = placement, .work = {}};
      for (const auto& [adapter, homes] : placement.homes) plan.work[adapter] = planner_->work_of(adapter);
      host_.publish(plan);
    }
  }
  for (const Planner::Hint& hint : planner_->hints(picture, planner_->placement()))
    for (const std::string& adapter : hint.adapters) {
      ++hints_;
      host_.prefetch(hint.replica, adapter);
    }
}

void RoutePlanner::follow(const Placement& placement) {
  if (!leads_) fleet_.set_placement(std::make_shared<const Placement>(placement));
}

RoutePlanner::Figures RoutePlanner::figures() const {
  Figures figures{.kind = kind_,
                  .leads = leads_,
                  .homes = static_cast<int64_t>(fleet_.placement()->homes.size()),
                  .hints = hints_,
                  .hot = {}};
  std::lock_guard lock(mutex_);
  figures.hot = hot_;
  if (hot_at_ != FleetView::Time())
    figures.hot_seconds_ago = std::chrono::duration<double>(Clock::now() - hot_at_).count();
  return figures;
}

}  // namespace lk
