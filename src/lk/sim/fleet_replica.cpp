// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/fleet_replica.h"

#include <fmt/format.h>

#include <algorithm>

namespace lk::sim {
namespace {

constexpr Micros kIdleStep = 10'000;  // a scheduler that waits for the clock is asked again after this
constexpr double kSlowness = 10;

}  // namespace

std::string adapter_name(AdapterId adapter) {
  return adapter == kBaseModel ? std::string() : fmt::format("a{}", adapter);
}

FleetReplica::FleetReplica(const SimOptions& options, std::string id)
    : options_(options),
      id_(std::move(id)),
      executor_(std::make_unique<SimExecutor>(options.model, options.adapters, options.host_bytes, faults_)),
      pool_(std::make_unique<UnifiedPool>(options.num_pages)),
      scheduler_(std::make_unique<Scheduler>(options.scheduler, *pool_, *executor_)) {
  pool_->set_reload_cost([this](AdapterId adapter) { return executor_->reload_cost(adapter); });
}

Status FleetReplica::submit(const SimRequest& request, const Work& work, int32_t so_far, Micros now) {
  advance_to(now);
  const auto id = static_cast<RequestId>(entries_.size());
  executor_->expect(id, request.output);
  Request to{.id = id,
             .adapter = request.adapter,
             .tenant = tenant_id(request.tenant),
             .max_tokens = request.max_tokens,
             .stop_token_ids = {kStopToken}};
  to.prompt.assign(static_cast<size_t>(request.input), kToken);
  to.output_so_far.assign(static_cast<size_t>(so_far), kToken);
  entries_.push_back({.work = work, .made = so_far});
  scheduler_->prefetch(request.adapter);
  LK_RETURN_IF_ERROR(scheduler_->submit(std::move(to)));
  entries_.back().live = true;
  ++live_;
  return Status();
}

void FleetReplica::cancel(const Work& work) {
  for (size_t id = 0; id < entries_.size(); ++id) {
    Entry& entry = entries_[id];
    if (!entry.live || entry.work.request != work.request || entry.work.source != work.source) continue;
    (void)scheduler_->finish(static_cast<RequestId>(id));
    entry.live = false;
    --live_;
    return;
  }
}

void FleetReplica::advance_to(Micros time) {
  if (executor_->now() < time && !scheduler_->has_work()) executor_->advance_to(time);
}

std::vector<FleetReplica::Event> FleetReplica::step(Micros until) {
  const int64_t steps = scheduler_->stats().num_steps;
  const Micros begin = executor_->now();
  std::vector<Event> events;
  for (const RequestEvent& event : scheduler_->step(false)) {
    Entry& entry = entries_[static_cast<size_t>(event.id)];
    Event seen{.work = entry.work,
               .has_token = event.has_token,
               .ended = event.finish != FinishReason::kNone,
               .failed = event.finish == FinishReason::kError || event.finish == FinishReason::kCancelled,
               .index = entry.made};
    if (event.has_token) ++entry.made;
    if (seen.ended) {
      entry.live = false;
      --live_;
    }
    events.push_back(seen);
  }
  const bool ran = scheduler_->stats().num_steps > steps;
  if (ran && slow_)
    executor_->advance_to(begin + static_cast<Micros>(kSlowness * static_cast<double>(executor_->now() - begin)));
  if (!ran && events.empty()) {
    Micros next = begin + kIdleStep;
    if (const std::optional<Micros> load = executor_->next_load_end()) next = std::max(begin, *load);
    executor_->advance_to(std::max(begin + 1, std::min(next, until)));
  }
  return events;
}

std::vector<FleetReplica::Work> FleetReplica::live() const {
  std::vector<Work> works;
  for (const Entry& entry : entries_)
    if (entry.live) works.push_back(entry.work);
  return works;
}

ReplicaReport FleetReplica::report() const {
  const SchedulerStats& stats = scheduler_->stats();
  ReplicaReport report{.id = id_,
                       .model = "base",
                       .numerics = "simulated",
                       .ready = !draining,
                       .draining = draining,
                       .weight_bytes = static_cast<int64_t>(options_.model.weight_bytes + options_.model.head_bytes),
                       .context = options_.scheduler.max_sequence,
                       .page_bytes = static_cast<int64_t>(options_.model.page_bytes()),
                       .pages = options_.num_pages,
                       .pages_free = pool_->num_free() + pool_->num_cached_kv(),
                       .running = scheduler_->num_running(),
                       .waiting = scheduler_->num_waiting(),
                       .max_running = options_.scheduler.max_running,
                       .host_bytes = static_cast<int64_t>(options_.host_bytes),
                       .steps = stats.num_steps,
                       .computed_tokens = stats.num_computed_tokens,
                       .execute_seconds = executor_->busy_us() * 1e-6};
  const auto bytes_of = [&](AdapterId adapter) {
    return static_cast<int64_t>(options_.adapters[static_cast<size_t>(adapter)].bytes);
  };
  for (const AdapterId adapter : executor_->on_host())
    report.adapters[adapter_name(adapter)] = {.bytes = bytes_of(adapter), .on_host = true};
  for (const auto& [adapter, info] : pool_->resident_adapters()) {
    report.adapters[adapter_name(adapter)].bytes = bytes_of(adapter);
    report.adapters[adapter_name(adapter)].on_device = true;
  }
  for (const auto& [adapter, load] : scheduler_->adapter_load())
    if (adapter != kBaseModel) report.adapters[adapter_name(adapter)].in_flight = load.running + load.waiting;
  return report;
}

}  // namespace lk::sim
