// SPDX-License-Identifier: Apache-2.0
// Recorder::result(): from notes to figures.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "lk/sim/metrics.h"

namespace lk::sim {
namespace {

double seconds(Micros us) { return static_cast<double>(us) * 1e-6; }
double ratio(double a, double b) { return b > 0 ? a / b : 0; }

// (sum x)^2 / (n sum x^2): 1 = all alike, 1/n = one has everything.
double jain_index(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  const double squares = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
  return squares > 0 ? sum * sum / (static_cast<double>(values.size()) * squares) : 1;
}

// Length of the part of [a, b) that lies in [c, d).
double overlap(double a, double b, double c, double d) { return std::max(0.0, std::min(b, d) - std::max(a, c)); }

}  // namespace

// As the VTC artifact computes its tables: a request's whole cost is spread evenly between its first token and its end;
// 19 windows of +-30 s around 30 s + i * 0.0475 D (28.5 s in runs of 600 s); what a tenant asked for in a window is the
// cost of its arrivals.
ServiceDifference Recorder::service_difference() const {
  constexpr double kHalf = 30, kWindow = 2 * kHalf;
  constexpr int kTicks = 19;
  ServiceDifference out;
  const size_t n = workload_.tenants.size();
  if (workload_.duration_s < 2 * kWindow || n < 2) return out;
  std::vector<double> served(n * kTicks), asked(n * kTicks);
  const auto tick_time = [&](int tick) { return kHalf + tick * 0.0475 * workload_.duration_s; };
  for (size_t i = 0; i < records_.size(); ++i) {
    const RequestRecord& record = records_[i];
    const SimRequest& request = workload_.requests[i];
    const double asked_cost = cost(request.input, request.output),
                 served_cost = record.produced > 0 ? cost(request.input, record.produced) : 0;
    const double begin = seconds(record.first_token), end = std::max(seconds(record.finish), begin + 1e-6),
                 arrival = seconds(record.arrival);
    for (int tick = 0; tick < kTicks; ++tick) {
      const double from = tick_time(tick) - kHalf, to = tick_time(tick) + kHalf;
      const size_t at = static_cast<size_t>(tick) * n + static_cast<size_t>(request.tenant);
      if (arrival >= from && arrival < to) asked[at] += asked_cost / kWindow;
      if (served_cost > 0) served[at] += served_cost * overlap(begin, end, from, to) / (end - begin) / kWindow;
    }
  }
  std::vector<double> values;
  for (int tick = 0; tick < kTicks; ++tick) {
    const auto first = static_cast<ptrdiff_t>(static_cast<size_t>(tick) * n);
    const double best = *std::max_element(served.begin() + first, served.begin() + first + static_cast<ptrdiff_t>(n));
    double total = 0;
    for (size_t t = 0; t < n; ++t) {
      const size_t at = static_cast<size_t>(first) + t;
      total += std::min(best - served[at], std::abs(asked[at] - served[at]));
    }
    values.push_back(total);
  }
  out.num_windows = kTicks;
  out.max = *std::max_element(values.begin(), values.end());
  out.mean = std::accumulate(values.begin(), values.end(), 0.0) / kTicks;
  for (const double value : values) out.variance += (value - out.mean) * (value - out.mean) / kTicks;
  return out;
}

void Recorder::fill_tenants(SimResult& result) const {
  std::vector<std::vector<double>> ttft(workload_.tenants.size());
  std::vector<int64_t> met(workload_.tenants.size());
  result.tenants.resize(workload_.tenants.size());
  for (size_t i = 0; i < records_.size(); ++i) {
    const RequestRecord& record = records_[i];
    const auto tenant = static_cast<size_t>(workload_.requests[i].tenant);
    TenantFigures& figures = result.tenants[tenant];
    ++figures.requests;
    figures.done += record.outcome == Outcome::kDone;
    figures.rejected += record.outcome == Outcome::kRejected;
    if (record.produced > 0) figures.input_tokens += workload_.requests[i].input;
    figures.output_tokens += record.produced;
    if (record.first_token < 0) continue;
    const double latency = seconds(record.first_token - record.arrival);
    ttft[tenant].push_back(latency);
    met[tenant] += record.outcome == Outcome::kDone && latency < options_.slo_s;
  }
  std::vector<double> weighted;
  for (size_t t = 0; t < result.tenants.size(); ++t) {
    TenantFigures& figures = result.tenants[t];
    figures.name = workload_.tenants[t].name;
    figures.weight = workload_.tenants[t].weight;
    figures.service = window_service_[t];
    figures.service_rate = ratio(figures.service, workload_.duration_s);
    figures.slo_attainment = ratio(static_cast<double>(met[t]), static_cast<double>(figures.requests));
    figures.ttft_s = summarise(ttft[t]);
    weighted.push_back(figures.service / figures.weight);
  }
  result.jain_index = jain_index(weighted);
}

void Recorder::fill_window(SimResult& result) const {
  int64_t met = 0, outputs = 0, inputs = 0;
  double satisfaction = 0;
  Micros end = 0;
  std::vector<double> ttft, e2e;
  for (size_t i = 0; i < records_.size(); ++i) {
    const RequestRecord& record = records_[i];
    switch (record.outcome) {
      case Outcome::kDone:
        ++result.done;
        break;
      case Outcome::kCancelled:
        ++result.cancelled;
        break;
      case Outcome::kRejected:
        ++result.rejected;
        break;
      case Outcome::kFailed:
        ++result.failed;
        break;
      case Outcome::kPending:
        break;
    }
    end = std::max(end, record.finish);
    outputs += record.produced;
    if (record.produced > 0) inputs += workload_.requests[i].input;
    if (record.first_token < 0) continue;
    const double latency = seconds(record.first_token - record.arrival);
    ttft.push_back(latency);
    if (record.outcome != Outcome::kDone) continue;
    e2e.push_back(seconds(record.finish - record.arrival));
    met += latency < options_.slo_s;
    satisfaction += std::max(0.0, 1 - latency * latency / (options_.slo_s * options_.slo_s));
  }
  result.makespan_s = seconds(end);
  result.slo_s = options_.slo_s;
  result.slo_attainment = ratio(static_cast<double>(met), static_cast<double>(records_.size()));
  result.satisfaction = ratio(satisfaction, static_cast<double>(records_.size()));
  result.requests_per_s = ratio(static_cast<double>(window_requests_), workload_.duration_s);
  result.output_tokens_per_s = ratio(static_cast<double>(window_tokens_), workload_.duration_s);
  result.total_tokens_per_s = ratio(static_cast<double>(window_tokens_ + window_inputs_), workload_.duration_s);
  result.drained_requests_per_s = ratio(static_cast<double>(result.done), result.makespan_s);
  result.drained_output_tokens_per_s = ratio(static_cast<double>(outputs), result.makespan_s);
  result.drained_total_tokens_per_s = ratio(static_cast<double>(outputs + inputs), result.makespan_s);
  result.ttft_s = summarise(ttft);
  result.e2e_s = summarise(e2e);
  result.itl_s = itl_.summary();
}

SimResult Recorder::result(int64_t pool_tokens) const {
  SimResult result{.requests = static_cast<int64_t>(records_.size()), .duration_s = workload_.duration_s};
  fill_window(result);
  fill_tenants(result);
  result.max_accumulated_difference = max_accumulated_;
  result.max_backlogged_difference = max_backlogged_;
  double longest = 0, least_weight = workload_.tenants.front().weight;
  for (const SimRequest& request : workload_.requests) longest = std::max<double>(longest, request.input);
  for (const Tenant& tenant : workload_.tenants) least_weight = std::min(least_weight, tenant.weight);
  result.vtc_bound =
      2 * std::max(options_.input_weight * longest, options_.output_weight * static_cast<double>(pool_tokens)) /
      least_weight;
  result.service_difference = service_difference();
  result.adapter_loads = static_cast<int64_t>(executor_.loads().size());
  for (const LoadRecord& load : executor_.loads()) result.failed_loads += load.failed;
  result.cold_loads = executor_.num_cold_loads();
  result.judged_loads = judged_;
  result.hidden_loads = judged_ > 0 ? static_cast<double>(hidden_) / static_cast<double>(judged_) : 1;
  result.one_step_loads = ratio(static_cast<double>(one_step_), static_cast<double>(judged_));
  result.load_delay_ms = ratio(load_delay_us_ * 1e-3, static_cast<double>(judged_ - hidden_));
  result.mean_step_ms = ratio(executor_.busy_us() * 1e-3, static_cast<double>(steps_));
  result.mean_step_sequences = ratio(static_cast<double>(step_sequences_), static_cast<double>(steps_));
  result.busy_fraction = ratio(executor_.busy_us(), static_cast<double>(executor_.now()));
  result.timeline = timeline_;
  return result;
}

}  // namespace lk::sim
