// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/simulation.h"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "lk/base/check.h"
#include "lk/base/page.h"

namespace lk::sim {
namespace {

constexpr Micros kIdleStep = 10'000;          // a policy that waits for the clock is asked again after this
constexpr int64_t kMaxIdleSteps = 1'000'000;  // in a row, before the scheduler counts as stalled
constexpr int64_t kMaxBarrenSteps =
    200'000;  // in a row without a token or an end, before it counts as going round in circles

Outcome outcome_of(const RequestEvent& event) {
  if (event.finish == FinishReason::kCancelled) return Outcome::kCancelled;
  if (event.finish != FinishReason::kError) return Outcome::kDone;
  switch (event.error.code()) {
    case StatusCode::kResourceExhausted:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kUnavailable:
      return Outcome::kRejected;
    default:
      return Outcome::kFailed;
  }
}

Status validate(const SimOptions& options, const Workload& workload) {
  LK_RETURN_IF_ERROR(validate(options.model));
  if (workload.requests.empty()) return invalid_argument("the workload has no requests");
  if (static_cast<int64_t>(options.adapters.size()) < workload.num_adapters)
    return invalid_argument("the workload asks for {} adapters, there are {}", workload.num_adapters,
                            options.adapters.size());
  for (const Tenant& tenant : workload.tenants)
    if (!(tenant.weight >= 1e-3 && tenant.weight <= 1e6))
      return invalid_argument("tenant {}: weight {} is not in [0.001, 1000000]", tenant.name, tenant.weight);
  for (size_t i = 0; i < options.adapters.size(); ++i)
    if (options.adapters[i].pages >= options.num_pages)
      return invalid_argument(
          "the pool of {} pages ({} tokens) does not hold adapter {} (rank {}, {} pages) and a token: raise it",
          options.num_pages, options.num_pages * kPageTokens, i, options.adapters[i].rank, options.adapters[i].pages);
  double least_ttft = 1e300;
  for (const SimRequest& request : workload.requests) {
    const int64_t adapter_pages =
        request.adapter == kBaseModel ? 0 : options.adapters[static_cast<size_t>(request.adapter)].pages;
    const int64_t total = int64_t{request.input} + request.max_tokens;
    if (pages_for(total) + adapter_pages > options.num_pages)
      return invalid_argument(
          "the pool of {} pages ({} tokens) does not hold one sequence of {} + {} tokens and its adapter of {} pages: "
          "raise it or shorten "
          "the sequences",
          options.num_pages, options.num_pages * kPageTokens, request.input, request.max_tokens, adapter_pages);
    if (total > options.scheduler.max_sequence)
      return invalid_argument("a request of {} + {} tokens is longer than the context of {}", request.input,
                              request.max_tokens, options.scheduler.max_sequence);
    least_ttft = std::min(least_ttft, unloaded_ttft_s(options, request));
  }
  if (!(options.metrics.slo_s > least_ttft))
    return invalid_argument(
        "no request can meet an objective of {} s: the first token of the quickest one takes {:.4f} s on an idle "
        "machine",
        options.metrics.slo_s, least_ttft);
  return Status();
}

class Simulation {
 public:
  Simulation(const SimOptions& options, const Workload& workload)
      : options_(options),
        workload_(workload),
        faults_(options.faults),
        executor_(options.model, options.adapters, options.host_bytes, faults_),
        pool_(options.num_pages),
        merging_(make_merging(options.merging)),
        scheduler_(options.scheduler, pool_, executor_, merging_.get()),
        recorder_(options.metrics, workload, executor_),
        place_(workload.requests.size(), -1) {
    pool_.set_reload_cost([this](AdapterId adapter) { return executor_.reload_cost(adapter); });
    for (size_t i = 0; merging_ && i < options.adapters.size(); ++i) merging_->allow(static_cast<AdapterId>(i));
    for (size_t i = 0; i < workload.tenants.size(); ++i)
      scheduler_.set_tenant_weight(tenant_id(static_cast<int32_t>(i)), workload.tenants[i].weight);
    if (options.prefetch) executor_.set_interlude([this](Micros end) { prefetch_until(end); });
  }

  Result<SimResult> run() {
    while (next_ < workload_.requests.size() || scheduler_.has_work()) {
      LK_RETURN_IF_ERROR(submit_arrivals());
      if (!scheduler_.has_work()) {
        if (next_ < workload_.requests.size()) executor_.advance_to(workload_.requests[next_].arrival);
        continue;
      }
      LK_RETURN_IF_ERROR(step());
      inject_faults();
    }
    const SimResult figures = result();
    LK_RETURN_IF_ERROR(check_end());
    return figures;
  }

 private:
  std::unique_ptr<MergeController> make_merging(Merging merging) {
    if (merging == Merging::kNever) return nullptr;
    return std::make_unique<MergeController>(make_chooser(merging), pool_, executor_);
  }

  const SimRequest& request(int64_t id) const { return workload_.requests[static_cast<size_t>(id)]; }

  void fill_prompt(const SimRequest& request, RequestId id, std::vector<int32_t>& prompt) {
    prompt.assign(static_cast<size_t>(request.input), kToken);
    if (!options_.scheduler.prefix_cache) return;
    // Contents matter to the prefix cache only: prompts differ, but for what a group or a conversation shares.
    const uint64_t own = request.conversation >= 0 ? (uint64_t{1} << 41) + static_cast<uint64_t>(request.conversation)
                                                   : (uint64_t{1} << 40) + static_cast<uint64_t>(id);
    for (size_t i = 0; i < prompt.size(); ++i) {
      const bool shared = request.prefix_group >= 0 && static_cast<int64_t>(i) < workload_.prefix_tokens;
      const uint64_t stream = shared ? static_cast<uint64_t>(request.prefix_group) : own;
      prompt[i] = 2 + static_cast<int32_t>(random_bits(stream, i) >> 34);
    }
    if (request.conversation < 0) return;
    std::vector<std::pair<int32_t, int32_t>>& answers = answers_[request.conversation];
    for (const auto& [begin, end] : answers) {
      std::fill(prompt.begin() + begin, prompt.begin() + end, kToken);
      prompt[static_cast<size_t>(end - 1)] = kStopToken;
    }
    answers.emplace_back(request.input, request.input + request.output);
  }

  Status submit_arrivals() {
    for (; next_ < workload_.requests.size() && workload_.requests[next_].arrival <= executor_.now(); ++next_) {
      const auto id = static_cast<RequestId>(next_);
      const SimRequest& from = request(id);
      executor_.expect(id, from.output);
      Request to{.id = id,
                 .adapter = from.adapter,
                 .tenant = tenant_id(from.tenant),
                 .max_tokens = from.max_tokens,
                 .stop_token_ids = {kStopToken}};
      fill_prompt(from, id, to.prompt);
      recorder_.on_submit(static_cast<int32_t>(id));
      const Status status = scheduler_.submit(std::move(to));
      if (status.ok()) {
        place_[next_] = static_cast<int32_t>(live_.size());
        live_.push_back(static_cast<int32_t>(id));
      } else if (status.code() == StatusCode::kInvalidArgument) {
        return status.with_context(fmt::format("request {}", id));
      } else {
        recorder_.on_end(static_cast<int32_t>(id), Outcome::kRejected);
      }
    }
    return Status();
  }

  // What arrives before the step ends; it is submitted after it.
  void prefetch_until(Micros end) {
    for (size_t i = next_; i < workload_.requests.size() && workload_.requests[i].arrival < end; ++i) {
      executor_.advance_to(workload_.requests[i].arrival);
      scheduler_.prefetch(workload_.requests[i].adapter);
    }
  }

  Status step() {
    const Micros begin = executor_.now();
    const int64_t steps = scheduler_.stats().num_steps;
    const std::span<RequestEvent> events = scheduler_.step(false);
    const bool ran = scheduler_.stats().num_steps > steps;
    for (const RequestEvent& event : events) LK_RETURN_IF_ERROR(on_event(event, begin));
    if (ran) recorder_.on_step(begin, scheduler_.num_running(), point());
    if (options_.check_invariants) LK_RETURN_IF_ERROR(check_step(events));
    barren_steps_ = events.empty() ? barren_steps_ + 1 : 0;
    if (ran && barren_steps_ > kMaxBarrenSteps)
      return internal_error(
          "{} steps without a token: {} waiting, {} running, {} of {} pages hold adapters, {} loads and {} preemptions "
          "so far",
          barren_steps_, scheduler_.num_waiting(), scheduler_.num_running(), pool_.num_adapter(), pool_.num_pages(),
          executor_.loads().size(), scheduler_.stats().num_preemptions);
    idle_steps_ = ran || !events.empty() ? 0 : idle_steps_ + 1;
    return idle_steps_ > 0 ? wait_for_something() : Status();
  }

  TimelinePoint point() const {
    return {.running = scheduler_.num_running(),
            .waiting = scheduler_.num_waiting(),
            .adapter_pages = pool_.num_adapter(),
            .kv_pages = pool_.num_kv() - pool_.num_cached_kv()};
  }

  // Nothing could run: the clock goes to the next thing that happens.
  Status wait_for_something() {
    if (idle_steps_ > kMaxIdleSteps)
      return internal_error("the scheduler is stalled at {} us: {} waiting, {} running, no step for {} attempts",
                            executor_.now(), scheduler_.num_waiting(), scheduler_.num_running(), idle_steps_);
    Micros until = executor_.now() + kIdleStep;
    if (const std::optional<Micros> load = executor_.next_load_end()) until = *load;
    if (next_ < workload_.requests.size()) until = std::min(until, workload_.requests[next_].arrival);
    executor_.advance_to(std::max(until, executor_.now()));
    return Status();
  }

  Status on_event(const RequestEvent& event, Micros step_begin) {
    if (event.id < 0 || event.id >= static_cast<RequestId>(place_.size()) || place_[static_cast<size_t>(event.id)] < 0)
      return internal_error("an event for request {}, which is not in the scheduler", event.id);
    recorder_.on_event(event, step_begin);
    if (event.finish == FinishReason::kNone) return Status();
    const RequestRecord& record = recorder_.records()[static_cast<size_t>(event.id)];
    const Outcome outcome = outcome_of(event);
    if (outcome == Outcome::kDone && record.produced != request(event.id).output)
      return internal_error("request {} ended with {} tokens instead of {}", event.id, record.produced,
                            request(event.id).output);
    end(static_cast<int32_t>(event.id), outcome);
    return Status();
  }

  void end(int32_t id, Outcome outcome) {
    recorder_.on_end(id, outcome);
    int32_t& place = place_[static_cast<size_t>(id)];
    live_[static_cast<size_t>(place)] = live_.back();
    place_[static_cast<size_t>(live_.back())] = place;
    live_.pop_back();
    place = -1;
  }

  void inject_faults() {
    if (!options_.faults.any()) return;
    if (faults_.cancels() && !live_.empty()) {
      const int32_t id = live_[faults_.pick(live_.size())];
      LK_CHECK(scheduler_.finish(id));
      end(id, Outcome::kCancelled);
    }
    if (const Micros jump = faults_.time_jump_us(); jump > 0) executor_.advance_to(executor_.now() + jump);
    if (!options_.adapters.empty() && faults_.pins()) {
      const auto adapter = static_cast<AdapterId>(faults_.pick(options_.adapters.size()));
      // It may not fit: then the scheduler says so.
      if (!pinned_.insert(adapter).second) pinned_.erase(adapter);
      if (!scheduler_.set_pinned(adapter, pinned_.contains(adapter)).ok()) pinned_.erase(adapter);
    }
  }

  Status check_step(std::span<const RequestEvent> events) {
    pool_.check_integrity();
    for (const RequestEvent& event : events) {
      if (!event.started) continue;
      int64_t bypassed = 0;
      const SimRequest& started = request(event.id);
      for (const int32_t id : live_) {
        const RequestRecord& record = recorder_.records()[static_cast<size_t>(id)];
        if (id >= event.id || record.first_step >= 0 || request(id).tenant != started.tenant) continue;
        const AdapterId adapter = request(id).adapter;
        bypassed += adapter == kBaseModel || pool_.adapter_state(adapter) == AdapterState::kResident;
      }
      max_bypass_ = std::max(max_bypass_, bypassed);
      if (bypassed > options_.max_bypass)
        return internal_error("request {} began before {} earlier ones of its tenant whose adapters were ready",
                              event.id, bypassed);
    }
    // Whatever the schedule, what a tenant was served counts for good; rounding may move a counter by 2.
    for (const auto& [tenant, service] : scheduler_.tenants()) {
      const std::optional<int64_t> now = scheduler_.settled_time(tenant);
      if (!now) continue;
      int64_t& reached = settled_.emplace(tenant, *now).first->second;
      if (*now < reached - 2)
        return internal_error("the counter of tenant {} fell from {} to {}", tenant, reached, *now);
      reached = std::max(reached, *now);
    }
    for (const int32_t id : live_)
      if (recorder_.records()[static_cast<size_t>(id)].produced >= request(id).output)
        return internal_error("request {} has all its tokens and still lives", id);
    return Status();
  }

  Status check_end() {
    if (!live_.empty()) return internal_error("{} requests never ended", live_.size());
    if (!options_.check_invariants) return Status();
    for (const AdapterId adapter : pinned_) LK_CHECK(scheduler_.set_pinned(adapter, false).ok());
    if (merging_)
      while (merging_->give_back(executor_.now()) != kBaseModel) {
      }
    pool_.evict_all();
    pool_.check_integrity();
    if (pool_.num_free() != pool_.num_pages())
      return internal_error("{} pages are still taken after the end", pool_.num_pages() - pool_.num_free());
    return Status();
  }

  SimResult result() const {
    SimResult result = recorder_.result(options_.num_pages * kPageTokens);
    const SchedulerStats& stats = scheduler_.stats();
    result.steps = stats.num_steps;
    result.computed_tokens = stats.num_computed_tokens;
    result.cached_prompt_tokens = stats.num_cached_prompt_tokens;
    result.preemptions = stats.num_preemptions;
    result.fair_preemptions = stats.num_fair_preemptions;
    // Once each: the prompt but its cached part, and every output token but the last.
    int64_t needed = 0;
    for (size_t i = 0; i < workload_.requests.size(); ++i) {
      const RequestRecord& record = recorder_.records()[i];
      if (record.produced > 0) needed += workload_.requests[i].input - record.cached + record.produced - 1;
    }
    result.recomputed_tokens = std::max<int64_t>(0, stats.num_computed_tokens - needed);
    if (merging_) result.merges = merging_->stats();
    result.adapter_evictions = pool_.num_evicted_adapters();
    result.max_bypass = max_bypass_;
    return result;
  }

  const SimOptions& options_;
  const Workload& workload_;
  Faults faults_;
  SimExecutor executor_;
  UnifiedPool pool_;
  std::unique_ptr<MergeController> merging_;  // null: nothing is merged
  Scheduler scheduler_;
  Recorder recorder_;
  size_t next_ = 0;                      // the next arrival
  std::vector<int32_t> live_;            // requests in the scheduler, in no order
  std::vector<int32_t> place_;           // by request: its place in live_, or -1
  std::set<AdapterId> pinned_;           // by inject_faults
  std::map<TenantId, int64_t> settled_;  // the furthest that check_step() saw each counter
  std::unordered_map<int32_t, std::vector<std::pair<int32_t, int32_t>>>
      answers_;  // by conversation: positions of its turns' answers so far
  int64_t idle_steps_ = 0, barren_steps_ = 0, max_bypass_ = 0;
};

}  // namespace

double unloaded_ttft_s(const SimOptions& options, const SimRequest& request) {
  double us = 0;
  const int64_t rank = request.adapter == kBaseModel ? 0 : options.adapters[static_cast<size_t>(request.adapter)].rank;
  for (int64_t begin = 0; begin < request.input;) {
    const int64_t rows = std::min<int64_t>(request.input - begin, options.scheduler.max_step_tokens);
    begin += rows;
    us += options.model.step_us_of({.num_tokens = rows,
                                    .num_samples = begin == request.input,
                                    .sequences = {{rows, begin}},
                                    .segments = {{rank, rows}}});
  }
  return us * 1e-6;
}

Result<SimResult> simulate(const SimOptions& options, const Workload& workload) {
  LK_RETURN_IF_ERROR(validate(options, workload));
  Simulation simulation(options, workload);
  return simulation.run();
}

}  // namespace lk::sim
