// SPDX-License-Identifier: Apache-2.0
// SimSpec: one simulation as its user describes it, by named parameters. Flags, sweeps and suites all set them through
// the same table.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lk/sim/policies.h"
#include "lk/sim/simulation.h"

namespace lk::sim {

enum class Ownership { kByAdapter, kShared };

struct SimSpec {
  std::string model = "a10g-7b";  // built-in name or JSON file
  double pool_tokens = 0;         // 0 = the model's
  double host_bytes = 0;
  SchedulerOptions scheduler;  // max_step_tokens, max_running: 0 = the model's; the queue's kind by set_policy()
  Policy policy = Policy::kVtc;
  Merging merging = Merging::kNever;
  bool prefetch = true;
  MetricOptions metrics;

  int64_t adapters = 100;
  std::vector<int64_t> ranks{8};
  double matrix_share = 0, matrix_bytes = 0;  // see make_adapters()
  int64_t tenants = 1;
  Ownership ownership = Ownership::kByAdapter;
  std::vector<double> weights;  // taken in turn by the tenants; empty = all 1
  double rate = 2, cv = 1, duration_s = 300;
  int64_t requests = 0;  // 0 = as many as arrive in duration_s
  Popularity popularity;
  double base_share = 0, shift_s = 0;  // see Stream
  LengthDist input = LengthDist::uniform(8, 511), output = LengthDist::uniform(8, 511);
  double max_tokens_factor = 1;
  int64_t prefix_groups = 0, prefix_tokens = 0;
  double turns = 1, think_s = 30;
  std::vector<Stream> streams;  // instead of one Gamma process; with the tenants of stream_tenants
  std::vector<Tenant> stream_tenants;
  bool adapters_of_streams = false;  // each tenant of the streams asks its own adapter; else they ask the base model
  std::string trace;                 // path; instead of a generated workload
  double trace_speed = 1;
  bool adapters_given = false;  // adapters was set: a trace must keep to them
  FaultOptions faults;
  uint64_t seed = 42;

  SimSpec() { scheduler.max_step_tokens = scheduler.max_running = 0, scheduler.prefix_cache = false; }
};

struct Parameter {
  std::string name, help;
  std::function<Status(SimSpec&, const std::string& value)> set;
};
// All parameters of the simulator proper.
std::vector<Parameter> sim_parameters();
// Of the policies, those of which a simulation has a wider choice than a server; the program adds the server's others.
std::vector<Parameter> sim_policy_parameters();
// kInvalidArgument names the parameter; kNotFound lists the known ones.
Status set_parameter(const std::vector<Parameter>& parameters, SimSpec& spec, const std::string& name,
                     const std::string& value);

struct Experiment {
  SimOptions options;
  Workload workload;
};
Result<Experiment> make_experiment(const SimSpec& spec);

// A published experiment by name.
struct Suite {
  std::string name, description;
  std::function<void(SimSpec&)> apply;
};
const std::vector<Suite>& suites();
Result<const Suite*> find_suite(const std::string& name);

}  // namespace lk::sim
