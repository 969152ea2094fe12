// SPDX-License-Identifier: Apache-2.0
#include "lk/sim/spec.h"

#include <algorithm>
#include <cmath>

#include "lk/base/file.h"

namespace lk::sim {
namespace {

constexpr int64_t kMaxCount = 100'000'000;
constexpr double kMaxBytes = 0x1p50;

template <class T>
using Field = T SimSpec::*;

Parameter number(const char* name, const char* help, double min, double max,
                 std::function<void(SimSpec&, double)> store) {
  return {name, help, [=](SimSpec& spec, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(const double value, parse_number(text, name, min, max));
            store(spec, value);
            return Status();
          }};
}

Parameter integer(const char* name, const char* help, int64_t min, int64_t max,
                  std::function<void(SimSpec&, int64_t)> store) {
  return {name, help, [=](SimSpec& spec, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(const int64_t value, parse_integer(text, name, min, max));
            store(spec, value);
            return Status();
          }};
}

Parameter length(const char* name, const char* help, Field<LengthDist> field) {
  return {name, help, [=](SimSpec& spec, const std::string& text) -> Status {
            LK_ASSIGN_OR_RETURN(spec.*field, parse_length_dist(text));
            return Status();
          }};
}

Parameter choice(const char* name, const char* help, std::vector<std::string> choices,
                 std::function<void(SimSpec&, const std::string&)> store) {
  return {name, help, [=](SimSpec& spec, const std::string& text) -> Status {
            if (std::find(choices.begin(), choices.end(), text) == choices.end())
              return invalid_argument("{} is {}, got \"{}\"", name, fmt::join(choices, " or "), text);
            store(spec, text);
            return Status();
          }};
}

Status set_weights(SimSpec& spec, const std::string& text) {
  spec.weights.clear();
  for (const std::string& part : split(text, '/')) {
    LK_ASSIGN_OR_RETURN(const double weight, parse_number(part, "a weight", 1e-6, 1e6));
    spec.weights.push_back(weight);
  }
  return Status();
}

Status set_ranks(SimSpec& spec, const std::string& text) {
  spec.ranks.clear();
  for (const std::string& part : split(text, '/')) {
    LK_ASSIGN_OR_RETURN(const int64_t rank, parse_integer(part, "a rank", 1, 4096));
    spec.ranks.push_back(rank);
  }
  return Status();
}

std::vector<Parameter> machine_parameters() {
  return {
      {"model", "machine and base model: a built-in name, or a JSON file of `lorikeet bench calibrate`",
       [](SimSpec& spec, const std::string& text) {
         spec.model = text;
         return Status();
       }},
      number("pool-tokens", "page pool in tokens of KV (default: the model's)", 16, 1e12,
             [](SimSpec& s, double v) { s.pool_tokens = v; }),
      number("host-bytes", "host tier for adapters; 0 = it holds all of them", 0, kMaxBytes,
             [](SimSpec& s, double v) { s.host_bytes = v; }),
      integer("step-tokens", "most tokens computed in one step (default: the model's)", 1, 1 << 20,
              [](SimSpec& s, int64_t v) { s.scheduler.max_step_tokens = v; }),
      integer("max-running", "most requests in one step (default: the model's)", 1, 1 << 20,
              [](SimSpec& s, int64_t v) { s.scheduler.max_running = v; }),
      integer("load-ahead", "waiting requests whose adapters may be loaded before their turn", 1, 1 << 20,
              [](SimSpec& s, int64_t v) { s.scheduler.load_ahead = v; }),
      choice("prefetch", "adapters of requests that arrive within a step begin to load before it ends: on or off",
             {"on", "off"}, [](SimSpec& s, const std::string& v) { s.prefetch = v == "on"; }),
      choice("prefix-cache", "on or off", {"on", "off"},
             [](SimSpec& s, const std::string& v) { s.scheduler.prefix_cache = v == "on"; }),
  };
}

std::vector<Parameter> workload_parameters() {
  return {
      integer("adapters", "adapters registered; 0 = the base model only", 0, 10'000'000,
              [](SimSpec& s, int64_t v) {
                s.adapters = v;
                s.adapters_given = true;
                s.adapters_of_streams = v > 0;
              }),
      {"ranks", "of the adapters in turn, R or R/R/...", set_ranks},
      number("matrix-share", "of the adapters, that replace whole matrices or have a head of their own", 0, 1,
             [](SimSpec& s, double v) { s.matrix_share = v; }),
      number("matrix-bytes", "of these, each", 0, kMaxBytes, [](SimSpec& s, double v) { s.matrix_bytes = v; }),
      {"popularity", "of the adapters: uniform, power:ALPHA (S-LoRA's) or zipf:S",
       [](SimSpec& spec, const std::string& text) -> Status {
         LK_ASSIGN_OR_RETURN(spec.popularity, parse_popularity(text));
         return Status();
       }},
      number("alpha", "short for --popularity power:ALPHA", 1e-3, 100,
             [](SimSpec& s, double v) { s.popularity = Popularity::power(v); }),
      number("base-share", "of the requests that ask the base model instead", 0, 1,
             [](SimSpec& s, double v) { s.base_share = v; }),
      number("shift", "seconds after which other adapters are the popular ones; 0 = never", 0, 1e9,
             [](SimSpec& s, double v) { s.shift_s = v; }),
      integer("tenants", "who share the machine", 1, 1'000'000, [](SimSpec& s, int64_t v) { s.tenants = v; }),
      choice("ownership",
             "adapter = adapter i belongs to tenant i mod tenants; shared = every tenant asks every adapter",
             {"adapter", "shared"},
             [](SimSpec& s, const std::string& v) {
               s.ownership = v == "shared" ? Ownership::kShared : Ownership::kByAdapter;
             }),
      {"weights", "of the tenants in turn, W or W/W/...", set_weights},
      number("rate", "requests/s of the whole load", 1e-6, 1e6, [](SimSpec& s, double v) { s.rate = v; }),
      number("cv", "coefficient of variation of the gaps (Gamma); 1 = Poisson", 1e-3, 100,
             [](SimSpec& s, double v) { s.cv = v; }),
      number("duration", "seconds of arrivals", 1e-3, 1e9, [](SimSpec& s, double v) { s.duration_s = v; }),
      integer("requests", "stop after so many arrivals; 0 = no limit", 0, kMaxCount,
              [](SimSpec& s, int64_t v) { s.requests = v; }),
      length("input", "prompt tokens: N, MIN:MAX, lognormal:MEDIAN:SIGMA:MAX or file:PATH", &SimSpec::input),
      length("output", "output tokens, likewise", &SimSpec::output),
      number("max-tokens-factor", "what clients ask for over the true output length", 1, 1e6,
             [](SimSpec& s, double v) { s.max_tokens_factor = v; }),
      integer("prefix-groups", "prompts of a group share their first tokens; 0 = none do", 0, kMaxCount,
              [](SimSpec& s, int64_t v) { s.prefix_groups = v; }),
      integer("prefix-tokens", "so many", 0, 1 << 22, [](SimSpec& s, int64_t v) { s.prefix_tokens = v; }),
      number("turns", "requests of a conversation, mean; --rate is then of conversations", 1, 1e6,
             [](SimSpec& s, double v) { s.turns = v; }),
      number("think", "seconds from one turn's arrival to the next one's, mean", 1e-3, 1e9,
             [](SimSpec& s, double v) { s.think_s = v; }),
      {"trace", "CSV of requests instead: time, context, generated[, adapter][, tenant]",
       [](SimSpec& spec, const std::string& text) {
         spec.trace = text;
         return Status();
       }},
      number("trace-speed", "times of the trace are divided by this", 1e-6, 1e6,
             [](SimSpec& s, double v) { s.trace_speed = v; }),
      integer("seed", "of the workload and the faults", 0, kMaxCount,
              [](SimSpec& s, int64_t v) { s.seed = static_cast<uint64_t>(v); }),
  };
}

std::vector<Parameter> other_parameters() {
  const auto chance = [](const char* name, const char* help, double FaultOptions::*field) {
    return number(name, help, 0, 1, [field](SimSpec& s, double v) { s.faults.*field = v; });
  };
  return {
      number("slo", "objective for the first token, seconds", 1e-6, 1e6,
             [](SimSpec& s, double v) { s.metrics.slo_s = v; }),
      number("input-weight", "service of a prompt token", 0, 1e6,
             [](SimSpec& s, double v) { s.metrics.input_weight = v; }),
      number("output-weight", "service of an output token", 0, 1e6,
             [](SimSpec& s, double v) { s.metrics.output_weight = v; }),
      chance("fault-load-failure", "probability that a load fails", &FaultOptions::load_failure),
      chance("fault-slow-load", "probability that a load takes up to 100 times as long", &FaultOptions::slow_load),
      chance("fault-slow-step", "probability that a step takes up to 50 times as long", &FaultOptions::slow_step),
      chance("fault-cancel", "probability per step that a request is cancelled", &FaultOptions::cancel),
      chance("fault-time-jump", "probability per step that the clock jumps up to a minute", &FaultOptions::time_jump),
      chance("fault-pin", "probability per step that an adapter is pinned or let go", &FaultOptions::pin),
      chance("fault-merge-failure", "probability that a build of merged weights is refused",
             &FaultOptions::merge_failure),
      chance("fault-slow-merge", "probability that a build of merged weights takes up to 1,000 times as long",
             &FaultOptions::slow_merge),
  };
}

double weight_of(const SimSpec& spec, size_t tenant, double otherwise) {
  return spec.weights.empty() ? otherwise : spec.weights[tenant % spec.weights.size()];
}

WorkloadSpec stream_workload(const SimSpec& spec) {
  WorkloadSpec workload{.tenants = spec.stream_tenants, .streams = spec.streams};
  for (size_t i = 0; i < workload.tenants.size(); ++i)
    workload.tenants[i].weight = weight_of(spec, i, workload.tenants[i].weight);
  for (Stream& stream : workload.streams) {
    if (!spec.adapters_of_streams || stream.tenant < 0) continue;
    stream.first_adapter = stream.tenant % std::max<int64_t>(1, spec.adapters);
    stream.num_adapters = 1;
  }
  return workload;
}

WorkloadSpec gamma_workload(const SimSpec& spec) {
  WorkloadSpec workload;
  workload.tenants.clear();
  for (int64_t i = 0; i < spec.tenants; ++i)
    workload.tenants.push_back({fmt::format("t{}", i), weight_of(spec, static_cast<size_t>(i), 1)});
  // With a number of requests the duration is only a limit when it was meant as one.
  const double end = spec.requests > 0 ? 1e9 : spec.duration_s;
  workload.streams = {
      {.tenant = spec.ownership == Ownership::kShared ? kAnyTenant : kOwnerOfAdapter,
       .phases = {{.kind = Phase::Kind::kGamma, .begin_s = 0, .end_s = end, .rate = spec.rate, .cv = spec.cv}},
       .input = spec.input,
       .output = spec.output,
       .num_adapters = spec.adapters,
       .popularity = spec.popularity,
       .base_share = spec.base_share,
       .shift_s = spec.shift_s}};
  return workload;
}

Result<Workload> make_workload(const SimSpec& spec) {
  if (!spec.trace.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(spec.trace, size_t{2} << 30));
    Result<Workload> workload =
        parse_trace(text, spec.adapters_given ? spec.adapters : 0, spec.trace_speed, spec.max_tokens_factor);
    if (!workload.ok()) return workload.status().with_context(spec.trace);
    for (size_t i = 0; i < workload->tenants.size(); ++i) workload->tenants[i].weight = weight_of(spec, i, 1);
    return workload;
  }
  WorkloadSpec workload = spec.streams.empty() ? gamma_workload(spec) : stream_workload(spec);
  workload.max_tokens_factor = spec.max_tokens_factor;
  workload.prefix_groups = spec.prefix_groups;
  workload.prefix_tokens = spec.prefix_tokens;
  workload.turns = spec.turns;
  workload.think_s = spec.think_s;
  workload.max_requests = spec.requests;
  workload.seed = spec.seed;
  return generate(workload);
}

}  // namespace

std::vector<Parameter> sim_parameters() {
  std::vector<Parameter> all = machine_parameters();
  for (const auto& more : {workload_parameters(), other_parameters()}) all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<Parameter> sim_policy_parameters() {
  return {
      {"scheduling-policy", "who is served next: fcfs, vtc (fair between tenants), lcf, drr or dlpm",
       [](SimSpec& spec, const std::string& text) -> Status {
         LK_ASSIGN_OR_RETURN(spec.policy, parse_policy(text));
         set_policy(spec.scheduler, spec.policy);
         return Status();
       }},
      {"service-cost",
       "price of service: prompt:output tokens, \"profiled\", or a,b,c,d,e = a p + b q + c p q + d q^2 + e",
       [](SimSpec& spec, const std::string& text) -> Status {
         LK_ASSIGN_OR_RETURN(spec.scheduler.queue.cost, parse_service_cost(text));
         return Status();
       }},
      number("advance-share",
             "part of the predicted output that is charged in advance, the rest as it is made; 1: all, as in VTC's "
             "paper",
             0, 1, [](SimSpec& s, double v) { s.scheduler.queue.advance_share = v; }),
      {"merging",
       "run one adapter at a time merged into the base: never, always (the one with most requests), exclusive (the "
       "oldest request's, alone), dlora (its thresholds and credits) or cost (by measured step times)",
       [](SimSpec& spec, const std::string& text) -> Status {
         LK_ASSIGN_OR_RETURN(spec.merging, parse_merging(text));
         return Status();
       }},
  };
}

Status set_parameter(const std::vector<Parameter>& parameters, SimSpec& spec, const std::string& name,
                     const std::string& value) {
  std::vector<std::string> names;
  for (const Parameter& parameter : parameters) {
    if (parameter.name == name) return parameter.set(spec, value).with_context(fmt::format("--{}", name));
    names.push_back(parameter.name);
  }
  return not_found("no parameter \"{}\"; there are {}", name, fmt::join(names, ", "));
}

Result<Experiment> make_experiment(const SimSpec& spec) {
  Experiment experiment;
  SimOptions& options = experiment.options;
  LK_ASSIGN_OR_RETURN(options.model, find_cost_model(spec.model));
  if (spec.pool_tokens > 0) options.model.pool_bytes = spec.pool_tokens * options.model.kv_bytes_per_token;
  options.num_pages = options.model.num_pages();
  options.scheduler = spec.scheduler;
  if (options.scheduler.max_step_tokens == 0)
    options.scheduler.max_step_tokens = static_cast<int64_t>(options.model.max_step_tokens);
  if (options.scheduler.max_running == 0)
    options.scheduler.max_running = static_cast<int64_t>(options.model.max_running);
  options.merging = spec.merging;
  options.host_bytes = spec.host_bytes;
  options.prefetch = spec.prefetch;
  options.metrics = spec.metrics;
  options.faults = spec.faults;
  options.faults.seed = spec.seed;
  LK_ASSIGN_OR_RETURN(experiment.workload, make_workload(spec));
  options.adapters = make_adapters(
      options.model,
      std::max(experiment.workload.num_adapters, spec.streams.empty() && spec.trace.empty() ? spec.adapters : 0),
      spec.ranks, spec.matrix_share, spec.matrix_bytes);
  return experiment;
}

}  // namespace lk::sim
