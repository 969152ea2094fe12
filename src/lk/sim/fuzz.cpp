// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/fuzz.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lk/base/page.h"

namespace lk::sim {
namespace {

int64_t between(Rng& rng, int64_t min, int64_t max) {
  return min + static_cast<int64_t>(rng.below(static_cast<uint64_t>(max - min + 1)));
}
// Log-uniform: small and large values alike.
double around(Rng& rng, double min, double max) { return min * std::pow(max / min, rng.uniform()); }

LengthDist random_lengths(Rng& rng) {
  const auto longest = static_cast<int32_t>(around(rng, 1, 200));
  switch (rng.below(3)) {
    case 0:
      return LengthDist::fixed(longest);
    case 1:
      return LengthDist::uniform(1, longest);
    default:
      return LengthDist::lognormal(std::max(1.0, longest / 4.0), 1.5, longest);
  }
}

FaultOptions random_faults(Rng& rng) {
  FaultOptions faults;
  for (double FaultOptions::*field : {&FaultOptions::load_failure, &FaultOptions::slow_load, &FaultOptions::slow_step,
                                      &FaultOptions::cancel, &FaultOptions::time_jump, &FaultOptions::pin})
    if (rng.below(3) == 0) faults.*field = around(rng, 0.001, 0.3);
  return faults;
}

SimSpec random_spec(uint64_t seed, Rng& rng) {
  SimSpec spec;
  spec.seed = seed;
  spec.scheduler.max_step_tokens = between(rng, 1, rng.below(2) ? 16 : 600);
  spec.scheduler.max_running = between(rng, 1, rng.below(2) ? 8 : 64);
  spec.scheduler.load_ahead = between(rng, 1, 40);
  spec.scheduler.prefix_cache = rng.below(2) == 0;
  spec.scheduler.admission = static_cast<Admission>(rng.below(3));
  // Of six; the sixth was another order of arrival, and seeds keep their meaning.
  spec.policy = static_cast<Policy>(rng.below(6) % 5);
  spec.scheduler.queue = {.within = static_cast<WithinTenant>(rng.below(5)),
                          .prediction = static_cast<Prediction>(rng.below(3)),
                          .quantum = between(rng, 1000, 10'000'000)};
  set_policy(spec.scheduler, spec.policy);
  (void)rng.next();  // its limit
  if (rng.below(3) == 0)
    spec.scheduler.slots = {.max = between(rng, 1, 6),
                            .cluster = between(rng, 0, 3),
                            .drain_gap = between(rng, 0, 10'000'000),
                            .drain_wait = between(rng, 0, 2'000'000)};
  if (rng.below(4) == 0)
    spec.scheduler.slo = {.first_token = between(rng, 10'000, 10'000'000), .refuse_early = rng.below(2) == 0};
  spec.adapters = rng.below(4) == 0 ? 0 : between(rng, 1, 24);
  spec.ranks.clear();
  for (int64_t i = between(rng, 1, 4); i > 0; --i) spec.ranks.push_back(between(rng, 1, 64));
  spec.popularity = rng.below(2) ? Popularity::power(around(rng, 0.05, 1)) : Popularity::zipf(rng.uniform() * 2);
  spec.tenants = between(rng, 1, 6);
  spec.ownership = rng.below(2) ? Ownership::kShared : Ownership::kByAdapter;
  for (int64_t i = 0; i < spec.tenants; ++i) spec.weights.push_back(static_cast<double>(between(rng, 1, 4)));
  spec.requests = between(rng, 1, 120);
  spec.rate = around(rng, 0.5, 2000);
  spec.cv = around(rng, 0.2, 10);  // bursts
  spec.input = random_lengths(rng);
  spec.output = random_lengths(rng);
  spec.max_tokens_factor = rng.below(2) ? 1 : around(rng, 1, 4);
  if (rng.below(3) == 0) {
    spec.prefix_groups = between(rng, 1, 4);
    spec.prefix_tokens = between(rng, 1, 100);
  }
  if (rng.below(3) == 0) spec.host_bytes = around(rng, 1e6, 1e9);
  spec.metrics.slo_s = 1e6;  // whatever it is, somebody can meet it
  spec.faults = random_faults(rng);
  return spec;
}

// Draws of their own, so that a seed with the defaults is the run that it was before there were these options.
void vary_fairness(uint64_t seed, SimOptions& options) {
  Rng rng(random_bits(seed, 0xfa17));
  options.scheduler.queue.advance_share = rng.uniform();
  if (rng.below(3) != 0) options.scheduler.preempt_gap = rng.below(5) == 0 ? 0 : around(rng, 1e-6, 1);
}

// Some adapters have whole matrices: of a page up to a multiple of what the longest request takes.
void vary_footprints(uint64_t seed, int64_t most_pages, SimOptions& options) {
  Rng rng(random_bits(seed, 0xb16));
  if (rng.below(2) == 0) return;
  const double most = around(rng, 1, 20 * static_cast<double>(most_pages));
  for (SimAdapter& adapter : options.adapters) {
    if (rng.below(3) != 0) continue;
    const auto pages = static_cast<int64_t>(around(rng, 1, std::max(1.0, most)));
    adapter.pages += pages;
    adapter.bytes += static_cast<double>(pages) * options.model.page_bytes();
  }
}

void vary_merging(uint64_t seed, SimOptions& options) {
  Rng rng(random_bits(seed, 0x3e46e));
  options.merging = static_cast<Merging>(rng.below(5));
  if (options.merging == Merging::kNever) return;
  // Merged weights of a page up to two thirds of the pool: from "always fits" to "not at all", and often taken back.
  const double pages = around(rng, 1, std::max(2.0, 0.67 * static_cast<double>(options.num_pages)));
  options.model.merged_bytes = std::min(options.model.weight_bytes, std::floor(pages) * options.model.page_bytes());
  if (rng.below(2) == 0) options.faults.merge_failure = around(rng, 0.01, 0.5);
  if (rng.below(2) == 0) options.faults.slow_merge = around(rng, 0.01, 1);
}

}  // namespace

Result<Experiment> fuzz_experiment(uint64_t seed, const VaryOptions& vary) {
  Rng rng(random_bits(seed, 0xf022));
  const SimSpec spec = random_spec(seed, rng);
  LK_ASSIGN_OR_RETURN(Experiment experiment, make_experiment(spec));
  SimOptions& options = experiment.options;
  // As little memory as any request leaves possible, or up to eight times that.
  int64_t most_tokens = 1, most_adapter = 0;
  for (const SimRequest& request : experiment.workload.requests)
    most_tokens = std::max<int64_t>(most_tokens, request.input + request.max_tokens);
  vary_footprints(seed, pages_for(most_tokens), options);
  for (const SimAdapter& adapter : options.adapters) most_adapter = std::max(most_adapter, adapter.pages);
  const int64_t least = pages_for(most_tokens) + most_adapter + 1;
  options.num_pages = rng.below(3) == 0 ? least : between(rng, least, 8 * least);
  options.check_invariants = true;
  vary_fairness(seed, options);
  vary_merging(seed, options);
  // Whoever keeps the order of arrival within a tenant may pass nobody of it; the others have bounds of their own.
  const bool in_order = spec.policy == Policy::kFcfs || spec.policy == Policy::kDrr;
  const bool all_run =
      options.merging == Merging::kNever || options.merging == Merging::kAlways;  // else some are kept out
  options.max_bypass = in_order && all_run && options.scheduler.slots.max == 0 && options.scheduler.slots.cluster == 0
                           ? 0
                           : std::numeric_limits<int64_t>::max();
  options.prefetch = rng.below(4) != 0;
  if (vary) vary(options, rng);
  return experiment;
}

Result<SimResult> fuzz_one(uint64_t seed, const VaryOptions& vary) {
  LK_ASSIGN_OR_RETURN(const Experiment experiment, fuzz_experiment(seed, vary));
  Result<SimResult> result = simulate(experiment.options, experiment.workload);
  if (!result.ok()) return result.status().with_context(fmt::format("seed {}", seed));
  return result;
}

Result<FleetResult> fuzz_fleet(uint64_t seed) {
  LK_ASSIGN_OR_RETURN(Experiment experiment, fuzz_experiment(seed, {}));
  Rng rng(random_bits(seed, 0xf1ee7));
  FleetSimOptions fleet{.replica = std::move(experiment.options), .seed = seed};
  fleet.replicas = static_cast<int>(between(rng, 1, 7));
  fleet.routers = static_cast<int>(between(rng, 1, 3));
  const std::vector<std::string> policies = picker_names();
  fleet.policy = policies[rng.below(policies.size())];
  if (rng.below(2) == 0) fleet.report_age_s = rng.uniform() * 5;
  const auto per_hour = [&] { return rng.below(2) == 0 ? 0 : around(rng, 1, 2000); };
  fleet.faults = {.kills = per_hour(),
                  .hangs = per_hour(),
                  .partitions = per_hour(),
                  .drains = per_hour(),
                  .slowdowns = per_hour(),
                  .refusals = per_hour(),
                  .repair_s = around(rng, 0.1, 20),
                  .hang_s = around(rng, 0.1, 20),
                  .rejected = rng.below(3) == 0 ? rng.uniform() * 0.2 : 0,
                  .other_weights = rng.below(3) == 0 ? rng.uniform() : 0};
  const char* planners[] = {"off", "greedy", "dlora"};  // the exact one goes by the wall clock
  fleet.planner = planners[rng.below(std::size(planners))];
  fleet.placement = rng.below(2) == 0;
  Result<FleetResult> result = simulate_fleet(fleet, experiment.workload);
  if (!result.ok()) return result.status().with_context(fmt::format("seed {}", seed));
  return result;
}

}  // namespace lk::sim
