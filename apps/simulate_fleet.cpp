// SPDX-License-Identifier: Apache-2.0
#include "simulate_fleet.h"

#include <boost/json.hpp>

#include <charconv>
#include <chrono>
#include <map>

#include "commands.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/cluster/planner.h"
#include "lk/sim/fuzz.h"

namespace lk::apps {
namespace {

using namespace sim;
namespace json = boost::json;

Result<FleetFaults> parse_faults(const std::vector<std::string>& texts) {
  FleetFaults faults;
  const std::map<std::string, double*> known = {{"kills", &faults.kills},           {"hangs", &faults.hangs},
                                                {"partitions", &faults.partitions}, {"drains", &faults.drains},
                                                {"slowdowns", &faults.slowdowns},   {"refusals", &faults.refusals},
                                                {"repair", &faults.repair_s},       {"hang", &faults.hang_s}};
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    const auto kind = known.find(text.substr(0, equals));
    if (equals == std::string::npos || kind == known.end())
      return invalid_argument(
          "--fleet-fault {}: give kills, hangs, partitions, drains, slowdowns or refusals (per replica and hour), "
          "repair or hang "
          "(seconds) as KIND=NUMBER",
          text);
    const char* end = text.data() + text.size();
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data() + equals + 1, end, value);
    if (error != std::errc() || stop != end || !(value >= 0 && value <= 1e6))
      return invalid_argument("--fleet-fault {}: the number must be from 0 to 1000000", text);
    *kind->second = value;
  }
  return faults;
}

json::object to_json(const std::string& policy, const std::string& planner, const FleetResult& r) {
  const auto summary = [](const Summary& s) {
    return json::object{{"mean", s.mean}, {"p50", s.p50}, {"p90", s.p90}, {"p99", s.p99}, {"max", s.max}};
  };
  return {{"policy", policy},
          {"planner", planner},
          {"requests", r.requests},
          {"done", r.done},
          {"given_up", r.given_up},
          {"slo_attainment", r.slo_attainment},
          {"ttft_s", summary(r.ttft_s)},
          {"s_per_token", summary(r.s_per_token)},
          {"queueing_s_per_token", summary(r.queueing_s_per_token)},
          {"longest_gap_s", summary(r.longest_gap_s)},
          {"makespan_s", r.makespan_s},
          {"output_tokens", r.output_tokens},
          {"recomputed_tokens", r.recomputed_tokens},
          {"continued", r.others.continued},
          {"hedged", r.others.hedged},
          {"moved", r.others.moved},
          {"planned", r.others.planned},
          {"hints", r.hints},
          {"retried", r.others.retried},
          {"kills", r.kills},
          {"hangs", r.hangs},
          {"partitions", r.partitions},
          {"drains", r.drains},
          {"slowdowns", r.slowdowns},
          {"refusals", r.refusals},
          {"adapter_loads", r.adapter_loads},
          {"disk_reads", r.disk_reads},
          {"preemptions", r.preemptions},
          {"busy_max_over_mean", r.busy_max_over_mean}};
}

}  // namespace

void FleetFlags::add_to(CLI::App& command) {
  const char* group = "Fleet";
  command.add_option("--replicas", replicas, "machines behind routers; 0 = one, without")
      ->check(CLI::Range(0, 10'000))
      ->group(group);
  command.add_option("--routing", policies, "of lorikeet route; several give a row each (default: cost)")
      ->delimiter(',')
      ->check(CLI::IsMember(picker_names()))
      ->group(group);
  command
      .add_option(
          "--planner", planners,
          "of lorikeet route: which running requests go on elsewhere; several give a row each (default: greedy)")
      ->delimiter(',')
      ->check(CLI::IsMember(planner_names()))
      ->group(group);
  command
      .add_flag("!--no-placement", placement, "adapters have no homes by plan, and replicas are not told to prefetch")
      ->group(group);
  command.add_option("--routers", routers, "each with its own view")->check(CLI::Range(1, 1000))->group(group);
  command.add_option("--report-age", report_age, "seconds that replicas' reports are old when they arrive")
      ->check(CLI::Range(0.0, 3600.0))
      ->group(group);
  command
      .add_option("--fleet-slo-first-token", slo_first_token, "seconds; both objectives, or a request missed its own")
      ->check(CLI::Range(1e-6, 1e6))
      ->capture_default_str()
      ->group(group);
  command.add_option("--fleet-slo-token", slo_token, "mean seconds between tokens")
      ->check(CLI::Range(1e-6, 1e6))
      ->capture_default_str()
      ->group(group);
  command
      .add_option(
          "--fleet-fault", faults,
          "kills, hangs, partitions, drains, slowdowns or refusals=N per replica and hour; repair or hang=SECONDS; "
          "repeatable")
      ->group(group);
}

Status FleetFlags::run(const SimSpec& spec, const std::string& out) const {
  LK_ASSIGN_OR_RETURN(Experiment experiment, make_experiment(spec));
  FleetSimOptions options{.replica = std::move(experiment.options),
                          .replicas = replicas,
                          .routers = routers,
                          .report_age_s = report_age,
                          .slo_first_token_s = slo_first_token,
                          .slo_token_s = slo_token,
                          .seed = spec.seed};
  LK_ASSIGN_OR_RETURN(options.faults, parse_faults(faults));
  options.placement = placement;
  fmt::print("{:>15} {:>7} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6} {:>6} {:>6} {:>7} {:>7} {:>6}\n",
             "routing", "planner", "requests", "SLO %", "ttft", "p99", "s/token", "gap p99", "loads", "disk", "cont",
             "hedged", "drain", "planned", "given", "busy");
  json::array runs;
  std::vector<std::pair<std::string, std::string>> rows;
  for (const std::string& policy : policies.empty() ? std::vector<std::string>{"cost"} : policies)
    for (const std::string& planner : planners.empty() ? std::vector<std::string>{"greedy"} : planners)
      rows.emplace_back(policy, planner);
  for (const auto& [policy, planner] : rows) {
    const auto start = std::chrono::steady_clock::now();
    options.policy = policy;
    options.planner = planner;
    LK_ASSIGN_OR_RETURN(const FleetResult r, simulate_fleet(options, experiment.workload));
    fmt::print(
        "{:>15} {:>7} {:>8} {:>7.1f} {:>8.3f} {:>8.3f} {:>8.4f} {:>8.3f} {:>8} {:>7} {:>6} {:>6} {:>6} {:>7} {:>7} "
        "{:>6.2f}\n",
        policy, planner, r.requests, 100 * r.slo_attainment, r.ttft_s.mean, r.ttft_s.p99, r.s_per_token.mean,
        r.longest_gap_s.p99, r.adapter_loads, r.disk_reads, r.others.continued + r.others.retried, r.others.hedged,
        r.others.moved, r.others.planned, r.given_up, r.busy_max_over_mean);
    std::fflush(stdout);
    fmt::print(stderr, "simulated in {:.2f} s\n",
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    runs.push_back(to_json(policy, planner, r));
  }
  if (out.empty()) return Status();
  return write_file_atomic(out,
                           json_text(json::object{{"format", "lorikeet-fleet-simulation-1"}, {"runs", runs}}) + "\n");
}

Status FleetFlags::fuzz(int64_t first_seed, int64_t seeds) {
  FleetResult all;
  int64_t faults = 0;
  for (int64_t i = 0; i < seeds; ++i) {
    LK_ASSIGN_OR_RETURN(const FleetResult r, fuzz_fleet(static_cast<uint64_t>(first_seed + i)));
    all.requests += r.requests;
    all.given_up += r.given_up;
    all.rejected += r.rejected;
    all.mismatches += r.mismatches;
    all.others.continued += r.others.continued;
    all.others.hedged += r.others.hedged;
    all.others.moved += r.others.moved;
    all.others.planned += r.others.planned;
    all.others.retried += r.others.retried;
    faults += r.kills + r.hangs + r.partitions + r.drains + r.slowdowns + r.refusals;
  }
  fmt::print(
      "{} seeds from {}: each answer came once and in order; {} requests, {} faults, {} continued, {} hedged, {} "
      "moved, {} planned, {} retried, {} given up with nobody there, {} refused for good, {} times other weights were "
      "noticed\n",
      seeds, first_seed, all.requests, faults, all.others.continued, all.others.hedged, all.others.moved,
      all.others.planned, all.others.retried, all.given_up, all.rejected, all.mismatches);
  return Status();
}

}  // namespace lk::apps
