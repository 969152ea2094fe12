// SPDX-License-Identifier: Apache-2.0
#include "policy_flags.h"

#include <charconv>
#include <cmath>

namespace lk::apps {
namespace {

constexpr double kMany = 1e12;

Result<double> number(const std::string& text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= min && value <= max))
    return invalid_argument("\"{}\" is not a number from {} to {}", text, min, max);
  return value;
}

// `scale` turns the flag's unit into the option's: 1000 for prices in milli-units, 1e6 for seconds in microseconds.
PolicyFlag whole(const char* name, const char* help, const char* standard, double scale, double min, double max,
                 std::function<int64_t&(SchedulerOptions&)> field) {
  return {name, help, standard,
          [=](SchedulerOptions& options, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(const double value, number(text, min, max));
            if (scale == 1 && value != std::floor(value)) return invalid_argument("\"{}\" is not a whole number", text);
            field(options) = std::llround(value * scale);
            return Status();
          },
          scale == 1 ? "INT" : "FLOAT"};
}

PolicyFlag real(const char* name, const char* help, const char* standard, double min, double max,
                std::function<double&(SchedulerOptions&)> field) {
  return {name, help, standard,
          [=](SchedulerOptions& options, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(field(options), number(text, min, max));
            return Status();
          },
          "FLOAT"};
}

template <typename Parse, typename Field>
PolicyFlag named(const char* name, const char* help, const char* standard, Parse parse, Field field) {
  return {name, help, standard, [=](SchedulerOptions& options, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(field(options), parse(text));
            return Status();
          }};
}

}  // namespace

const std::vector<PolicyFlag>& policy_flags() {
  using O = SchedulerOptions;
  const auto advanced = [](PolicyFlag flag) {
    flag.advanced = true;
    return flag;
  };
  static const std::vector<PolicyFlag> flags{
      named("scheduling-policy",
            "who is served next: fcfs, vtc (fair between tenants) or dlpm (of the tenants in credit, what is resident)",
            "vtc", parse_queue_kind, [](O& o) -> QueueKind& { return o.queue.kind; }),
      named("fair-within",
            "vtc: whose turn it is within a tenant: its adapters' or users' (adapter, user), or its requests' by "
            "arrival, by slack (to --slo-first-token) or newest first",
            "adapter", parse_within_tenant, [](O& o) -> WithinTenant& { return o.queue.within; }),
      advanced(named("service-cost", "price of service: prompt:output tokens", "1:2", ServiceCost::parse,
                     [](O& o) -> ServiceCost& { return o.queue.cost; })),
      advanced(named("length-prediction",
                     "output charged in advance: none, mean (of the tenant's adapter) or max-tokens", "mean",
                     parse_prediction, [](O& o) -> Prediction& { return o.queue.prediction; })),
      advanced(whole("quantum", "dlpm: credit of a visit, in the price of prompt tokens", "500", 1000, 1, 1e9,
                     [](O& o) -> int64_t& { return o.queue.quantum; })),
      named("admission",
            "when a request finds memory: optimistic (preempt later), expected (by expected lengths) or reserved (by "
            "max_tokens: never preempt)",
            "optimistic", parse_admission, [](O& o) -> Admission& { return o.admission; }),
      advanced(real("preempt-gap",
                    "vtc, without --max-loras: how far a tenant that finds no memory may fall behind, as a part of "
                    "what the whole memory, full of output, costs, before requests of the tenant furthest ahead start "
                    "over for it; 0 = never",
                    "0.1", 0, 1e6, [](O& o) -> double& { return o.preempt_gap; })),
      whole("max-loras", "most distinct adapters that run together; 0 = as many as fit", "0", 1, 0, 1e6,
            [](O& o) -> int64_t& { return o.slots.max; }),
      advanced(whole("cluster-adapters", "when that many distinct adapters run, requests of these go first; 0 = off",
                     "0", 1, 0, 1e6, [](O& o) -> int64_t& { return o.slots.cluster; })),
      advanced(whole("drain-gap",
                     "how far a tenant without an adapter slot may fall behind, in the price of prompt tokens, before "
                     "an adapter is drained for it",
                     "4000", 1000, 0, kMany, [](O& o) -> int64_t& { return o.slots.drain_gap; })),
      advanced(whole("drain-wait", "or for how many seconds", "5", 1e6, 0, 86400,
                     [](O& o) -> int64_t& { return o.slots.drain_wait; })),
      whole("slo-first-token",
            "seconds to the first token: who would miss them is refused at once, who missed them is dropped; 0 = none",
            "0", 1e6, 0, 86400, [](O& o) -> int64_t& { return o.slo.first_token; }),
      advanced(
          {"slo-refuse",
           "with --slo-first-token: early (by forecast, on arrival) or late (only drop what has certainly missed it)",
           "early", [](O& o, const std::string& text) {
             if (text != "early" && text != "late") return invalid_argument("\"{}\" is neither early nor late", text);
             o.slo.refuse_early = text == "early";
             return Status();
           }})};
  return flags;
}

Status check_policy(const SchedulerOptions& options, const std::set<std::string>& given) {
  const QueueKind kind = options.queue.kind;
  const std::string policy = to_string(kind);
  if (given.contains("quantum") && kind != QueueKind::kDlpm)
    return invalid_argument("--quantum belongs to dlpm, the policy is {}", policy);
  if (given.contains("fair-within") && kind != QueueKind::kVtc)
    return invalid_argument("--fair-within belongs to vtc, the policy is {}", policy);
  if (given.contains("preempt-gap") && options.preempt_gap > 0 && !options.can_preempt_for_fairness())
    return invalid_argument("--preempt-gap belongs to vtc, without --max-loras and unless --admission is reserved");
  if (options.queue.within == WithinTenant::kSlack && options.slo.first_token == 0)
    return invalid_argument("--fair-within slack needs --slo-first-token");
  if (given.contains("slo-refuse") && options.slo.first_token == 0)
    return invalid_argument("--slo-refuse needs --slo-first-token");
  if (options.slots.max > 0 && options.slots.cluster >= options.slots.max)
    return invalid_argument("--cluster-adapters {} is not below --max-loras {}: it would never act",
                            options.slots.cluster, options.slots.max);
  if ((given.contains("drain-gap") || given.contains("drain-wait")) && options.slots.max == 0)
    return invalid_argument("--drain-gap and --drain-wait need --max-loras");
  return Status();
}

void SchedulerFlags::add_to(CLI::App& command) {
  const char *group = "Scheduling", *advanced = "Scheduling (advanced)";
  command
      .add_option("--step-tokens,--max-num-batched-tokens", options.max_step_tokens, "most tokens computed in one step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-running,--max-num-seqs", options.max_running, "most requests in one step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--load-ahead", options.load_ahead, "waiting requests whose adapters may be loaded before their turn")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(advanced);
  command.add_flag("--no-prefix-cache", no_prefix_cache, "compute every prompt from its start")->group(advanced);
  for (const PolicyFlag& flag : policy_flags())
    command
        .add_option_function<std::string>(
            "--" + flag.name, [this, name = flag.name](const std::string& value) { values.emplace_back(name, value); },
            flag.help)
        ->default_str(flag.standard)
        ->type_name(flag.type)
        ->group(group);
  command
      .add_option(
          "--merging", merging,
          "run one adapter at a time merged into the base: never, dlora (its thresholds and credits) or cost (by "
          "measured step times). A merged adapter's tokens may differ in rounding from step to step")
      ->default_str("never")
      ->group(group);
  command
      .add_option("--exact", exact,
                  "with --merging: names of adapters that are never merged, so that their tokens depend on nobody; * "
                  "and ?; repeatable")
      ->type_name("PATTERN")
      ->group(group);
}

Result<SchedulerOptions> SchedulerFlags::parse() const {
  SchedulerOptions parsed = options;
  parsed.prefix_cache = !no_prefix_cache;
  std::set<std::string> given;
  for (const auto& [name, value] : values) {
    const auto& flags = policy_flags();
    const auto flag =
        std::find_if(flags.begin(), flags.end(), [&](const PolicyFlag& candidate) { return candidate.name == name; });
    LK_RETURN_IF_ERROR(flag->set(parsed, value).with_context("--" + name));
    given.insert(name);
  }
  LK_RETURN_IF_ERROR(check_policy(parsed, given));
  return parsed;
}

Result<MergeMode> SchedulerFlags::parse_merging() const {
  Result<MergeMode> mode = parse_merge_mode(merging);
  if (!mode.ok()) return mode.status().with_context("--merging");
  if (!exact.empty() && *mode == MergeMode::kNever)
    return invalid_argument("--exact needs --merging: without it every adapter is exact");
  return mode;
}

}  // namespace lk::apps
