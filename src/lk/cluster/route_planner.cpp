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
      host_(std::move(host)) {}

void RoutePlanner::start() {
  if (kind_ != "off") thread_ = std::thread([this] { run(); });
}

void RoutePlanner::stop() {
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
  if (!planner_places(kind_)) return;
  planner_->observe(picture, std::chrono::duration<double>(kRound).count());
  std::shared_ptr<const FleetPlan> seen;
  {
    std::lock_guard lock(mutex_);
    seen = seen_;
  }
  // Whoever begins to lead goes on from the homes that the fleet has, not from those it would have chosen alone.
  const bool leads = leads_;
  if (leads && !led_ && seen) planner_->adopt(seen->placement, seen->work);
  led_ = leads;
  if (!leads) return;
  if (rounds_ % kPlaceEvery == 0) place(picture, seen.get());
  for (const Planner::Hint& hint : planner_->hints(picture, planner_->placement()))
    for (const std::string& adapter : hint.adapters) {
      ++hints_;
      host_.prefetch(hint.replica, adapter);
    }
}

void RoutePlanner::place(const FleetPicture& picture, const FleetPlan* seen) {
  const Placement& placement = planner_->place(picture);
  fleet_.set_placement(std::make_shared<const Placement>(placement));
  if (!host_.publish) return;
  FleetPlan plan{.leader = name_, .made_at = std::time(nullptr), .placement = placement, .work = {}};
  for (const auto& [adapter, homes] : placement.homes) plan.work[adapter] = planner_->work_of(adapter);
  // As it would be read: of very many adapters only the first fit.
  const Result<FleetPlan> written = parse_plan(format_plan(plan));
  if (seen && written.ok() && seen->leader == name_ && seen->placement == written->placement) return;
  host_.publish(plan);
}

void RoutePlanner::set_leads(bool leads) {
  std::lock_guard lock(mutex_);
  leads_ = leads;
  if (!leads && seen_) fleet_.set_placement(std::make_shared<const Placement>(seen_->placement));
}

void RoutePlanner::follow(const FleetPlan& plan) {
  std::lock_guard lock(mutex_);
  seen_ = plan.leader.empty() ? nullptr : std::make_shared<const FleetPlan>(plan);
  if (!leads_ && seen_) fleet_.set_placement(std::make_shared<const Placement>(plan.placement));
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
