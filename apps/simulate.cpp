// SPDX-License-Identifier: Apache-2.0
// lorikeet simulate: the server's scheduler and page pool under a workload, on a virtual clock and a cost model.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <set>

#include <boost/json.hpp>

#include "commands.h"
#include "help.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/sim/fuzz.h"
#include "lk/sim/report.h"
#include "lk/sim/streams.h"
#include "policy_flags.h"
#include "simulate_fleet.h"

namespace lk::apps {
namespace {

namespace json = boost::json;
using namespace sim;

struct SimulateFlags {
  std::string suite, out;
  std::vector<std::string> sweeps, streams;
  std::vector<std::pair<std::string, std::string>> values;  // parameters as given, in the order of the table
  int64_t fuzz_seeds = 0, first_seed = 0;
  FleetFlags fleet;
  bool list = false, print_model = false, per_tenant = false, timeline = false, check = false;
};

// The simulator's, then the server's that it has no wider choice of.
std::vector<Parameter> all_policy_parameters() {
  std::vector<Parameter> parameters = sim_policy_parameters();
  const size_t own = parameters.size();
  for (const PolicyFlag& flag : policy_flags())
    if (std::none_of(parameters.begin(), parameters.begin() + static_cast<long>(own),
                     [&](const Parameter& parameter) { return parameter.name == flag.name; }))
      parameters.push_back({flag.name, flag.help, [set = flag.set](SimSpec& spec, const std::string& value) {
                              return set(spec.scheduler, value);
                            }});
  return parameters;
}

std::vector<Parameter> all_parameters() {
  std::vector<Parameter> parameters = sim_parameters();
  for (Parameter& parameter : all_policy_parameters()) parameters.push_back(std::move(parameter));
  return parameters;
}

Status check(const SimSpec& spec, const std::set<std::string>& given) {
  LK_RETURN_IF_ERROR(check_policy(spec.scheduler, given));
  if (given.contains("advance-share") && spec.scheduler.queue.prediction == Prediction::kNone)
    return invalid_argument("--advance-share needs a --length-prediction");
  if (given.contains("preempt-gap") && spec.scheduler.preempt_gap > 0 && spec.policy == Policy::kLcf)
    return invalid_argument("--preempt-gap belongs to vtc: what lcf pays back has no bound");
  return Status();
}

struct Sweep {
  std::string key;
  std::vector<std::string> values;
};

Result<std::vector<Sweep>> parse_sweeps(const std::vector<std::string>& texts) {
  std::vector<Sweep> sweeps;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
      return invalid_argument("--sweep wants KEY=VALUE,VALUE,..., got \"{}\"", text);
    sweeps.push_back({text.substr(0, equals), split(text.substr(equals + 1), ',')});
  }
  return sweeps;
}

// One run: what was set beyond the defaults, and what came out.
struct Run {
  std::vector<std::pair<std::string, std::string>> swept;
  SimResult result;
  double wall_s = 0;
};

Result<SimSpec> base_spec(const SimulateFlags& flags, const std::vector<Parameter>& parameters) {
  SimSpec spec;
  if (!flags.suite.empty()) {
    LK_ASSIGN_OR_RETURN(const Suite* suite, find_suite(flags.suite));
    suite->apply(spec);
  }
  for (const auto& [name, value] : flags.values) LK_RETURN_IF_ERROR(set_parameter(parameters, spec, name, value));
  for (const std::string& stream : flags.streams) LK_RETURN_IF_ERROR(add_stream(spec, stream).with_context("--stream"));
  return spec;
}

Result<Run> run_one(const SimSpec& spec, bool check) {
  const auto start = std::chrono::steady_clock::now();
  LK_ASSIGN_OR_RETURN(Experiment experiment, make_experiment(spec));
  experiment.options.check_invariants = check;
  Run run;
  LK_ASSIGN_OR_RETURN(run.result, simulate(experiment.options, experiment.workload));
  run.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return run;
}

// Every combination of the swept values, the last key fastest.
Result<std::vector<Run>> run_all(const SimulateFlags& flags, const std::vector<Sweep>& sweeps) {
  const std::vector<Parameter> parameters = all_parameters();
  LK_ASSIGN_OR_RETURN(const SimSpec base, base_spec(flags, parameters));
  std::vector<Run> runs;
  std::vector<size_t> at(sweeps.size());
  if (!sweeps.empty()) {
    for (const Sweep& sweep : sweeps) fmt::print("{:>14} ", sweep.key);
    fmt::print("{}\n", sweep_header());
  }
  while (true) {
    SimSpec spec = base;
    std::vector<std::pair<std::string, std::string>> swept;
    for (size_t i = 0; i < sweeps.size(); ++i) {
      swept.emplace_back(sweeps[i].key, sweeps[i].values[at[i]]);
      LK_RETURN_IF_ERROR(set_parameter(parameters, spec, swept.back().first, swept.back().second));
    }
    std::set<std::string> given;
    for (const auto& [name, value] : flags.values) given.insert(name);
    for (const auto& [name, value] : swept) given.insert(name);
    LK_RETURN_IF_ERROR(check(spec, given));
    Result<Run> run = run_one(spec, flags.check);
    if (!run.ok()) {
      std::string where;
      for (const auto& [key, value] : swept) where += fmt::format("{}{}={}", where.empty() ? "" : ", ", key, value);
      return where.empty() ? run.status() : run.status().with_context(where);
    }
    run->swept = std::move(swept);
    if (sweeps.empty()) {
      fmt::print("{}", format_result(run->result, flags.per_tenant));
      fmt::print(stderr, "simulated {} requests and {} steps in {:.2f} s\n", run->result.requests, run->result.steps,
                 run->wall_s);
    } else {
      for (const auto& [key, value] : run->swept) fmt::print("{:>14} ", value);
      fmt::print("{}\n", sweep_line(run->result));
      std::fflush(stdout);
    }
    runs.push_back(std::move(*run));
    size_t digit = sweeps.size();
    while (digit > 0 && ++at[digit - 1] == sweeps[digit - 1].values.size()) at[--digit] = 0;
    if (digit == 0) return runs;
  }
}

Status write_runs(const SimulateFlags& flags, const std::vector<Sweep>& sweeps, const std::vector<Run>& runs) {
  if (flags.out.empty()) return Status();
  json::object settings;
  for (const auto& [name, value] : flags.values) settings[name] = value;
  json::array streams, sweep_keys, out_runs;
  for (const std::string& stream : flags.streams) streams.emplace_back(stream);
  for (const Sweep& sweep : sweeps) sweep_keys.emplace_back(sweep.key);
  for (const Run& run : runs) {
    json::object swept;
    for (const auto& [key, value] : run.swept) swept[key] = value;
    out_runs.push_back(
        json::object{{"swept", swept}, {"result", to_json(run.result, flags.timeline || runs.size() == 1)}});
  }
  const json::object out{{"format", "lorikeet-simulation-1"},
                         {"suite", flags.suite},
                         {"settings", settings},
                         {"streams", streams},
                         {"sweep", sweep_keys},
                         {"runs", out_runs}};
  return write_file_atomic(flags.out, json_text(out) + "\n");
}

// --- random schedules

char current_seed[64] = "";

// A broken contract aborts; its seed must not be lost.
void on_abort(int) {
  const ssize_t ignored = ::write(STDERR_FILENO, current_seed, std::char_traits<char>::length(current_seed));
  static_cast<void>(ignored);
}

Status run_fuzz(const SimulateFlags& flags) {
  std::signal(SIGABRT, on_abort);
  int64_t steps = 0, requests = 0, preemptions = 0, loads = 0, ended_early = 0;
  for (int64_t i = 0; i < flags.fuzz_seeds; ++i) {
    const auto seed = static_cast<uint64_t>(flags.first_seed + i);
    const auto end = fmt::format_to_n(current_seed, sizeof current_seed - 2, "lorikeet: seed {}\n", seed);
    *end.out = '\0';
    LK_ASSIGN_OR_RETURN(const SimResult result, fuzz_one(seed, {}));
    steps += result.steps;
    requests += result.requests;
    preemptions += result.preemptions;
    loads += result.adapter_loads;
    ended_early += result.cancelled + result.failed + result.rejected;
  }
  fmt::print(
      "{} seeds from {}: every invariant held over {} steps, {} requests ({} cancelled, failed or rejected), {} loads, "
      "{} preemptions\n",
      flags.fuzz_seeds, flags.first_seed, steps, requests, ended_early, loads, preemptions);
  return Status();
}

void print_lists() {
  fmt::print("suites\n");
  for (const Suite& suite : suites()) fmt::print("  {:<22} {}\n", suite.name, suite.description);
  fmt::print("machines\n");
  for (const std::string& name : builtin_cost_models())
    fmt::print("  {:<22} {}\n", name, find_cost_model(name)->description);
}

Status run_simulate(const SimulateFlags& flags) {
  if (flags.list) {
    print_lists();
    return Status();
  }
  if (flags.print_model) {
    LK_ASSIGN_OR_RETURN(const SimSpec spec, base_spec(flags, all_parameters()));
    LK_ASSIGN_OR_RETURN(const CostModel model, find_cost_model(spec.model));
    fmt::print("{}", to_json(model));
    return Status();
  }
  if (flags.fuzz_seeds > 0)
    return flags.fleet.replicas > 0 ? FleetFlags::fuzz(flags.first_seed, flags.fuzz_seeds) : run_fuzz(flags);
  if (flags.fleet.replicas > 0) {
    if (!flags.sweeps.empty()) return invalid_argument("--sweep is for one machine; --routing takes several policies");
    const std::vector<Parameter> parameters = all_parameters();
    LK_ASSIGN_OR_RETURN(const SimSpec spec, base_spec(flags, parameters));
    std::set<std::string> given;
    for (const auto& [name, value] : flags.values) given.insert(name);
    LK_RETURN_IF_ERROR(check(spec, given));
    return flags.fleet.run(spec, flags.out);
  }
  LK_ASSIGN_OR_RETURN(const std::vector<Sweep> sweeps, parse_sweeps(flags.sweeps));
  LK_ASSIGN_OR_RETURN(const std::vector<Run> runs, run_all(flags, sweeps));
  return write_runs(flags, sweeps, runs);
}

}  // namespace

void add_simulate(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* command = app.add_subcommand("simulate", "Run the scheduler under a workload on a virtual clock");
  const std::vector<Parameter> parameters = sim_parameters();
  const auto values = std::make_shared<std::vector<std::pair<std::string, std::string>>>();
  for (const Parameter& parameter : all_parameters()) values->emplace_back(parameter.name, "");
  std::vector<CLI::Option*> options;
  size_t i = 0;
  for (const Parameter& parameter : all_parameters()) {
    const bool is_fault = parameter.name.starts_with("fault-");
    options.push_back(command->add_option("--" + parameter.name, (*values)[i].second, parameter.help)
                          ->group(is_fault                 ? "Faults"
                                  : i >= parameters.size() ? "Policy"
                                                           : "Simulation (each can be swept)"));
    ++i;
  }
  command
      ->add_option("--stream", flags->streams,
                   "one tenant's requests instead of the one process: "
                   "tenant=NAME,rate=R,kind=constant|poisson|gamma|on-off|ramp,end-rate=R,cv=C,on=S,off=S,from=S,"
                   "to=S,input=L,output=L,weight=W; repeatable")
      ->group("Runs");
  command->add_option("--suite", flags->suite, "a published experiment; other flags change it (--list)")->group("Runs");
  command->add_option("--sweep", flags->sweeps, "one run per value; repeatable")->type_name("KEY=A,B,C")->group("Runs");
  command->add_option("--out", flags->out, "also write all figures as JSON; tools/plot_simulation.py draws them")
      ->type_name("FILE.json")
      ->group("Runs");
  command->add_flag("--timeline", flags->timeline, "with --out and --sweep: also each run over time")->group("Runs");
  command->add_flag("--per-tenant", flags->per_tenant, "also a row for each tenant")->group("Runs");
  command->add_flag("--check", flags->check, "check every invariant after each step (slow)")->group("Runs");
  command->add_flag("--list", flags->list, "list suites and machines")->group("Runs");
  command->add_flag("--print-model", flags->print_model, "print the machine as JSON, for --model after edits")
      ->group("Runs");
  command
      ->add_option("--fuzz-seeds", flags->fuzz_seeds,
                   "instead: so many random schedules with faults, all invariants checked")
      ->check(CLI::Range(0, 100'000'000))
      ->group("Runs");
  command->add_option("--first-seed", flags->first_seed, "of --fuzz-seeds")
      ->check(CLI::NonNegativeNumber)
      ->group("Runs");
  flags->fleet.add_to(*command);
  // The fleet's options are under --help-all.
  std::set<std::string> shown;
  for (const CLI::Option* option : command->get_options())
    if (option->get_group() != "Fleet") shown.insert(option->get_name());
  show_in_help(*command, shown);
  command->callback([flags, values, options, &exit_code] {
    for (size_t n = 0; n < options.size(); ++n)
      if (options[n]->count() > 0) flags->values.push_back((*values)[n]);
    if (Status status = run_simulate(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace lk::apps
