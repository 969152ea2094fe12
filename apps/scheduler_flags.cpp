// SPDX-License-Identifier: Apache-2.0
#include "scheduler_flags.h"

#include <cmath>

namespace lk::apps {

void SchedulerFlags::add_to(CLI::App& command) {
  command_ = &command;
  const char* group = "Scheduling";
  command.add_option("--step-tokens,--max-num-batched-tokens", options.max_step_tokens, "most tokens computed in one step")
      ->check(CLI::Range(1, 1 << 16))->capture_default_str()->group(group);
  command.add_option("--max-running,--max-num-seqs", options.max_running, "most requests in one step")->check(CLI::Range(1, 1 << 16))->capture_default_str()->group(group);
  command.add_flag("--no-prefix-cache", no_prefix_cache, "compute every prompt from its start")->group(group);
  command.add_option("--scheduling-policy", policy, "who is served next: fcfs, vtc (fair between tenants), lcf, drr, dlpm or rpm")->capture_default_str()->group(group);
  command.add_option("--fair-within", within, "vtc, lcf: whose turn it is within a tenant: its adapters' or users' (adapter, user), or its requests' by arrival, slack (to --slo-first-token) or newest first")
      ->capture_default_str()->group(group);
  command.add_option("--service-cost", cost, "price of service: prompt:output tokens, \"profiled\", or a,b,c,d,e = a p + b q + c p q + d q^2 + e")->capture_default_str()->group(group);
  command.add_option("--length-prediction", prediction, "output charged in advance: none, mean (of the tenant's adapter) or max-tokens")->capture_default_str()->group(group);
  command.add_option("--quantum", quantum, "drr, dlpm: credit of a visit, in the price of prompt tokens")->check(CLI::Range(1.0, 1e9))->capture_default_str()->group(group);
  command.add_option("--requests-per-minute", options.queue.requests_per_minute, "rpm: of one tenant")->check(CLI::Range(1, 1 << 20))->capture_default_str()->group(group);
  command.add_option("--admission", admission, "when a request finds memory: optimistic (preempt later), expected (by expected lengths), reserved (by max_tokens: never preempt)")
      ->capture_default_str()->group(group);
  command.add_option("--max-loras", options.slots.max, "most distinct adapters that run together; 0 = as many as fit")->check(CLI::Range(0, 1 << 20))->capture_default_str()->group(group);
  command.add_option("--cluster-adapters", options.slots.cluster, "when that many distinct adapters run, requests of these go first; 0 = off")
      ->check(CLI::Range(0, 1 << 20))->capture_default_str()->group(group);
  command.add_option("--drain-gap", drain_gap, "how far a tenant without an adapter slot may fall behind, in the price of prompt tokens, before an adapter is drained for it")
      ->check(CLI::Range(0.0, 1e12))->capture_default_str()->group(group);
  command.add_option("--drain-wait", drain_wait, "or for how many seconds")->check(CLI::Range(0.0, 86400.0))->capture_default_str()->group(group);
  command.add_option("--load-ahead", options.load_ahead, "waiting requests whose adapters may be loaded before their turn")->check(CLI::Range(1, 1 << 16))->capture_default_str()->group(group);
  command.add_option("--slo-first-token", slo, "seconds to the first token; who would miss them is refused at once, who missed them is dropped; 0 = none")
      ->check(CLI::Range(0.0, 86400.0))->capture_default_str()->group(group);
  command.add_flag("--slo-refuse-late", refuse_late, "with --slo-first-token: only drop what has certainly missed it")->group(group);
}

Result<SchedulerOptions> SchedulerFlags::parse() const {
  SchedulerOptions parsed = options;
  parsed.prefix_cache = !no_prefix_cache;
  LK_ASSIGN_OR_RETURN(parsed.queue.kind, parse_queue_kind(policy));
  LK_ASSIGN_OR_RETURN(parsed.queue.within, parse_within_tenant(within));
  LK_ASSIGN_OR_RETURN(parsed.queue.prediction, parse_prediction(prediction));
  LK_ASSIGN_OR_RETURN(parsed.queue.cost, ServiceCost::parse(cost));
  LK_ASSIGN_OR_RETURN(parsed.admission, parse_admission(admission));
  const auto milli = [](double units) { return std::llround(units * 1000); };
  parsed.queue.quantum = milli(quantum);
  parsed.slots.drain_gap = milli(drain_gap);
  parsed.slots.drain_wait = std::llround(drain_wait * 1e6);
  parsed.slo.first_token = std::llround(slo * 1e6);
  parsed.slo.refuse_early = !refuse_late;

  const QueueKind kind = parsed.queue.kind;
  const auto given = [this](const char* name) { return command_ != nullptr && command_->count(name) > 0; };
  if (given("--quantum") && kind != QueueKind::kDrr && kind != QueueKind::kDlpm)
    return invalid_argument("--quantum belongs to drr and dlpm, the policy is {}", policy);
  if (given("--requests-per-minute") && kind != QueueKind::kRpm) return invalid_argument("--requests-per-minute belongs to rpm, the policy is {}", policy);
  if (given("--fair-within") && kind != QueueKind::kVtc && kind != QueueKind::kLcf) return invalid_argument("--fair-within belongs to vtc and lcf, the policy is {}", policy);
  if (parsed.queue.within == WithinTenant::kSlack && parsed.slo.first_token == 0) return invalid_argument("--fair-within slack needs --slo-first-token");
  if (refuse_late && parsed.slo.first_token == 0) return invalid_argument("--slo-refuse-late needs --slo-first-token");
  if (parsed.slots.max > 0 && parsed.slots.cluster >= parsed.slots.max)
    return invalid_argument("--cluster-adapters {} is not below --max-loras {}: it would never act", parsed.slots.cluster, parsed.slots.max);
  if ((given("--drain-gap") || given("--drain-wait")) && parsed.slots.max == 0) return invalid_argument("--drain-gap and --drain-wait need --max-loras");
  return parsed;
}

}  // namespace lk::apps
