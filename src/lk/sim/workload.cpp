// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/workload.h"

#include <algorithm>
#include <cmath>

#include "lk/base/check.h"

namespace lk::sim {
namespace {

constexpr int64_t kMaxRequests = 100'000'000;

Status check(const Phase& phase) {
  const auto positive = [](double value) { return std::isfinite(value) && value > 0; };
  if (!positive(phase.end_s - phase.begin_s) || !(phase.begin_s >= 0))
    return invalid_argument("a phase must end after it begins, got {}..{} s", phase.begin_s, phase.end_s);
  if (phase.kind == Phase::Kind::kRamp) {
    if (!(phase.rate >= 0 && phase.end_rate >= 0 && positive(phase.rate + phase.end_rate)))
      return invalid_argument("a ramp needs rates of at least 0, one of them positive, got {} to {}", phase.rate,
                              phase.end_rate);
  } else if (!positive(phase.rate)) {
    return invalid_argument("the rate must be positive, got {} requests/s", phase.rate);
  }
  if (!positive(phase.cv)) return invalid_argument("cv must be positive, got {}", phase.cv);
  if (phase.kind == Phase::Kind::kOnOff && !(positive(phase.on_s) && phase.off_s >= 0))
    return invalid_argument("on must be positive and off at least 0 s, got {} and {}", phase.on_s, phase.off_s);
  return Status();
}

Status check(const WorkloadSpec& spec) {
  if (spec.tenants.empty()) return invalid_argument("a workload needs a tenant");
  for (const Tenant& tenant : spec.tenants)
    if (!(std::isfinite(tenant.weight) && tenant.weight > 0))
      return invalid_argument("tenant {}: the weight must be positive, got {}", tenant.name, tenant.weight);
  if (!(spec.max_tokens_factor >= 1 && spec.max_tokens_factor <= 1e6))
    return invalid_argument("max_tokens over the true length must be at least 1, got {}", spec.max_tokens_factor);
  if (!(spec.turns >= 1 && spec.turns <= 1e6 && spec.think_s > 0 && spec.think_s <= 1e9))
    return invalid_argument("a conversation has at least one turn and positive pauses, got {} turns and {} s",
                            spec.turns, spec.think_s);
  if (spec.streams.empty()) return invalid_argument("a workload needs a stream of requests");
  for (const Stream& stream : spec.streams) {
    for (const Phase& phase : stream.phases) LK_RETURN_IF_ERROR(check(phase));
    if (!(stream.base_share >= 0 && stream.base_share <= 1))
      return invalid_argument("the base model's share must lie in [0, 1], got {}", stream.base_share);
    if (!(std::isfinite(stream.shift_s) && stream.shift_s >= 0))
      return invalid_argument("popularity shifts after 0 s (never) or more, got {}", stream.shift_s);
  }
  return Status();
}

// Evenly spaced in the integral of a rate that goes linearly from r0 to r1.
double ramp_time(double r0, double r1, double length, double count) {
  const double slope = (r1 - r0) / length;
  if (std::abs(slope) < 1e-12) return count / r0;
  return (-r0 + std::sqrt(std::max(0.0, r0 * r0 + 2 * slope * count))) / slope;
}

class Generator {
 public:
  Generator(const WorkloadSpec& spec, const Stream& stream, uint64_t seed)
      : spec_(spec),
        stream_(stream),
        popularity_(stream.popularity),
        arrivals_(seed ^ 1),
        lengths_(seed ^ 2),
        choices_(seed ^ 3),
        turns_(seed ^ 4) {
    if (stream.num_adapters > 0) popularity_.prepare(stream.num_adapters);
  }

  void run(std::vector<SimRequest>& out) {
    const int64_t limit = spec_.max_requests > 0 ? spec_.max_requests : kMaxRequests;
    for (const Phase& phase : stream_.phases)
      for (const double time : arrivals_of(phase, arrivals_, limit)) {
        out.push_back(make(time));
        if (spec_.turns > 1) converse(time, phase.end_s, out);
      }
  }

 private:
  SimRequest make(double time) {
    SimRequest request{.arrival = static_cast<Micros>(std::llround(time * 1e6))};
    request.input = stream_.input.sample(lengths_);
    set_output(request, lengths_);
    if (stream_.num_adapters > 0) request.adapter = pick_adapter(time);
    const auto num_tenants = static_cast<int32_t>(spec_.tenants.size());
    if (stream_.tenant >= 0)
      request.tenant = stream_.tenant;
    else if (stream_.tenant == kOwnerOfAdapter)
      request.tenant = std::max(request.adapter, 0) % num_tenants;
    else
      request.tenant = static_cast<int32_t>(choices_.below(static_cast<uint64_t>(num_tenants)));
    if (spec_.prefix_groups > 0)
      request.prefix_group = static_cast<int32_t>(choices_.below(static_cast<uint64_t>(spec_.prefix_groups)));
    return request;
  }

  // The turns after out.back(), whose number in `out` names the conversation.
  void converse(double time, double end_s, std::vector<SimRequest>& out) {
    SimRequest turn = out.back();
    turn.conversation = out.back().conversation = static_cast<int32_t>(out.size() - 1);
    while (turns_.uniform() < 1 - 1 / spec_.turns) {
      time += spec_.think_s * sample_exponential(turns_);
      turn.arrival = static_cast<Micros>(std::llround(time * 1e6));
      turn.input += turn.output + stream_.input.sample(turns_);
      set_output(turn, turns_);
      if (time >= end_s || int64_t{turn.input} + turn.max_tokens > kMaxConversation) return;
      out.push_back(turn);
    }
  }

  void set_output(SimRequest& request, Rng& rng) {
    request.output = stream_.output.sample(rng);
    request.max_tokens = static_cast<int32_t>(std::min(std::ceil(request.output * spec_.max_tokens_factor), 1e9));
  }

  AdapterId pick_adapter(double time) {
    const bool base = stream_.base_share > 0 && choices_.uniform() < stream_.base_share;
    const int64_t rank = popularity_.pick(choices_);
    if (base) return kBaseModel;
    // Steps of the golden ratio: one period's popular adapters are far from those of the periods before.
    const double turns = stream_.shift_s > 0 ? std::floor(time / stream_.shift_s) * 0.6180339887498949 : 0;
    const auto begin = static_cast<int64_t>((turns - std::floor(turns)) * static_cast<double>(stream_.num_adapters));
    return static_cast<AdapterId>(stream_.first_adapter + (begin + rank) % stream_.num_adapters);
  }

  const WorkloadSpec& spec_;
  const Stream& stream_;
  Popularity popularity_;
  Rng arrivals_, lengths_, choices_, turns_;
};

}  // namespace

std::vector<double> arrivals_of(const Phase& phase, Rng& rng, int64_t max_count) {
  std::vector<double> times;
  const double length = phase.end_s - phase.begin_s;
  double total = 0;  // of a ramp: its integral
  if (phase.kind == Phase::Kind::kRamp) total = (phase.rate + phase.end_rate) / 2 * length;
  for (double at = 0; static_cast<int64_t>(times.size()) < max_count;) {
    const auto count = static_cast<double>(times.size());
    switch (phase.kind) {
      case Phase::Kind::kConstant:
        at = count / phase.rate;
        break;
      case Phase::Kind::kGamma:
        at += sample_gamma(rng, 1 / (phase.cv * phase.cv)) * phase.cv * phase.cv / phase.rate;
        break;
      case Phase::Kind::kOnOff: {
        const double on_time = count / phase.rate;
        at = on_time + std::floor(on_time / phase.on_s + 1e-9) * phase.off_s;
        break;
      }
      case Phase::Kind::kRamp:
        at = count < total ? ramp_time(phase.rate, phase.end_rate, length, count) : length;
        break;
    }
    if (!(at < length)) break;
    times.push_back(phase.begin_s + at);
  }
  return times;
}

Result<Workload> generate(const WorkloadSpec& spec) {
  LK_RETURN_IF_ERROR(check(spec));
  Workload workload{.tenants = spec.tenants, .prefix_tokens = spec.prefix_tokens};
  for (size_t i = 0; i < spec.streams.size(); ++i) {
    const Stream& stream = spec.streams[i];
    LK_CHECK(stream.tenant < static_cast<int32_t>(spec.tenants.size()));
    Generator(spec, stream, random_bits(spec.seed, i)).run(workload.requests);
    workload.num_adapters = std::max(workload.num_adapters, stream.first_adapter + stream.num_adapters);
    for (const Phase& phase : stream.phases) workload.duration_s = std::max(workload.duration_s, phase.end_s);
  }
  std::stable_sort(workload.requests.begin(), workload.requests.end(),
                   [](const SimRequest& a, const SimRequest& b) { return a.arrival < b.arrival; });
  if (spec.max_requests > 0 && static_cast<int64_t>(workload.requests.size()) >= spec.max_requests) {
    workload.requests.resize(static_cast<size_t>(spec.max_requests));
    workload.duration_s =
        std::min(workload.duration_s, static_cast<double>(workload.requests.back().arrival + 1) * 1e-6);
  }
  if (workload.requests.empty()) return invalid_argument("the workload has no request: raise the rate or the duration");
  return workload;
}

}  // namespace lk::sim
