// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lk::sim {
namespace {

constexpr size_t kMaxComparedTenants = 32, kMaxTimelineTenants = 64;
constexpr double kBucketsPerOctave = 32, kSmallest = 1e-6;

double seconds(Micros us) { return static_cast<double>(us) * 1e-6; }

}  // namespace

Summary summarise(std::vector<double>& values) {
  Summary summary{.count = static_cast<int64_t>(values.size())};
  if (values.empty()) return summary;
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) { return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))]; };
  summary.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  summary.p50 = at(0.5);
  summary.p90 = at(0.9);
  summary.p99 = at(0.99);
  summary.max = values.back();
  return summary;
}

void LogHistogram::add(double value) {
  const auto bucket = static_cast<size_t>(value <= kSmallest ? 0 : std::log2(value / kSmallest) * kBucketsPerOctave);
  if (bucket >= counts_.size()) counts_.resize(bucket + 1);
  ++counts_[bucket];
  ++count_;
  sum_ += value;
  max_ = std::max(max_, value);
}

double LogHistogram::quantile(double q) const {
  const auto rank = static_cast<int64_t>(q * static_cast<double>(count_ - 1));
  int64_t seen = 0;
  for (size_t bucket = 0; bucket < counts_.size(); ++bucket)
    if ((seen += counts_[bucket]) > rank)
      return std::min(max_, kSmallest * std::exp2((static_cast<double>(bucket) + 0.5) / kBucketsPerOctave));
  return max_;
}

Summary LogHistogram::summary() const {
  if (count_ == 0) return {};
  return {.count = count_,
          .mean = sum_ / static_cast<double>(count_),
          .p50 = quantile(0.5),
          .p90 = quantile(0.9),
          .p99 = quantile(0.99),
          .max = max_};
}

Recorder::Recorder(const MetricOptions& options, const Workload& workload, const SimExecutor& executor)
    : options_(options),
      workload_(workload),
      executor_(executor),
      window_end_(static_cast<Micros>(workload.duration_s * 1e6)),
      records_(workload.requests.size()),
      submitted_(workload.requests.size()),
      last_token_(workload.requests.size()),
      service_(workload.tenants.size()),
      window_service_(workload.tenants.size()),
      backlog_(workload.tenants.size()),
      unjudged_load_(static_cast<size_t>(workload.num_adapters), -1) {
  if (workload.tenants.size() <= kMaxComparedTenants) pairs_.resize(workload.tenants.size() * workload.tenants.size());
  for (size_t i = 0; i < records_.size(); ++i) records_[i].arrival = workload.requests[i].arrival;
}

void Recorder::on_submit(int32_t request) {
  ++backlog_[static_cast<size_t>(workload_.requests[static_cast<size_t>(request)].tenant)];
  submitted_[static_cast<size_t>(request)] = executor_.now();
}

void Recorder::on_event(const RequestEvent& event, Micros step_start) {
  const auto index = static_cast<size_t>(event.id);
  RequestRecord& record = records_[index];
  const SimRequest& request = workload_.requests[index];
  const auto tenant = static_cast<size_t>(request.tenant);
  const Micros now = executor_.now();
  if (event.started) {
    record.first_step = step_start;
    record.cached = static_cast<int32_t>(event.cached_tokens);
    --backlog_[tenant];
    if (request.adapter != kBaseModel) judge_load(request.adapter, submitted_[index], step_start);
  }
  if (!event.has_token) return;
  double service = options_.output_weight;
  if (record.produced++ == 0) {
    record.first_token = now;
    service += options_.input_weight * (request.input - record.cached);
    if (now <= window_end_) window_inputs_ += request.input;
  } else {
    itl_.add(seconds(now - last_token_[index]));
  }
  last_token_[index] = now;
  service_[tenant] += service / workload_.tenants[tenant].weight;
  if (now <= window_end_) {
    window_service_[tenant] += service;
    ++window_tokens_;
  }
}

void Recorder::on_end(int32_t request, Outcome outcome) {
  RequestRecord& record = records_[static_cast<size_t>(request)];
  record.outcome = outcome;
  record.finish = executor_.now();
  if (record.first_step < 0) --backlog_[static_cast<size_t>(workload_.requests[static_cast<size_t>(request)].tenant)];
  if (outcome == Outcome::kDone && record.finish <= window_end_) ++window_requests_;
}

// A load was hidden when its adapter lay ready at the first step that could have taken the request, or at one that did
// not take it: it waited for its turn, not for the load.
void Recorder::judge_load(AdapterId adapter, Micros submitted, Micros step_start) {
  for (; loads_seen_ < executor_.loads().size(); ++loads_seen_)
    unjudged_load_[static_cast<size_t>(executor_.loads()[loads_seen_].adapter)] = static_cast<int64_t>(loads_seen_);
  int64_t& index = unjudged_load_[static_cast<size_t>(adapter)];
  if (index < 0) return;
  const LoadRecord& load = executor_.loads()[static_cast<size_t>(index)];
  index = -1;
  ++judged_;
  if (load.end <= std::max(submitted, previous_step_)) {
    ++hidden_;
    return;
  }
  load_delay_us_ += static_cast<double>(step_start - load.start);
  one_step_ += std::max(submitted, load.start) >= previous_step_;
}

void Recorder::on_step(Micros step_start, int64_t num_sequences, const TimelinePoint& now) {
  previous_step_ = step_start;
  ++steps_;
  step_sequences_ += num_sequences;
  double difference = 0;
  if (service_.size() > 1) {
    const auto [min, max] = std::minmax_element(service_.begin(), service_.end());
    difference = *max - *min;
  }
  if (executor_.now() <= window_end_) max_accumulated_ = std::max(max_accumulated_, difference);
  compare_backlogged();
  if (executor_.now() < next_point_) return;
  next_point_ += std::max<Micros>(1, window_end_ / std::max(1, options_.timeline_points));
  next_point_ = std::max(next_point_, executor_.now());
  timeline_.push_back(now);
  timeline_.back().time_s = seconds(executor_.now());
  timeline_.back().max_difference = difference;
  if (service_.size() <= kMaxTimelineTenants) timeline_.back().service = service_;
}

void Recorder::compare_backlogged() {
  const size_t n = service_.size();
  if (pairs_.empty() || n < 2) return;
  for (size_t f = 0; f < n; ++f)
    for (size_t g = f + 1; g < n; ++g) {
      Pair& pair = pairs_[f * n + g];
      if (backlog_[f] == 0 || backlog_[g] == 0) {
        pair.active = false;
        continue;
      }
      const double difference = service_[f] - service_[g];
      pair.min = pair.active ? std::min(pair.min, difference) : difference;
      pair.max = pair.active ? std::max(pair.max, difference) : difference;
      pair.active = true;
      max_backlogged_ = std::max(max_backlogged_, pair.max - pair.min);
    }
}

}  // namespace lk::sim
