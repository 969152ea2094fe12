// SPDX-License-Identifier: Apache-2.0
// Workload: the requests of a simulation, made from a specification and a seed, or read from a trace.
#pragma once

#include <string>
#include <vector>

#include "lk/sched/request.h"
#include "lk/sim/distributions.h"

namespace lk::sim {

struct SimRequest {
  Micros arrival = 0;
  int32_t input = 1, output = 1;  // true lengths in tokens
  int32_t max_tokens = 1;         // what the client asked for, >= output
  AdapterId adapter = kBaseModel;
  int32_t tenant = 0;         // index into Workload::tenants
  int32_t prefix_group = -1;  // requests of a group share the first tokens of their prompts
  int32_t conversation = -1;  // prompts of a conversation begin with those before
};

struct Tenant {
  std::string name;
  double weight = 1;
};

struct Workload {
  std::vector<SimRequest> requests;  // by arrival
  std::vector<Tenant> tenants;
  double duration_s = 0;  // arrivals lie in [0, duration_s)
  int64_t num_adapters = 0;
  int64_t prefix_tokens = 0;  // that a prefix group shares
};
// The scheduler's number of a tenant; 0 is nobody in particular.
inline TenantId tenant_id(int32_t tenant) { return tenant + 1; }

// Arrivals within [begin_s, end_s).
struct Phase {
  enum class Kind {
    kConstant,  // evenly spaced
    kGamma,     // gaps of mean 1 / rate and coefficient of variation cv; cv = 1 is Poisson
    kOnOff,     // evenly spaced while on, nothing while off; on first
    kRamp,      // the rate goes linearly from rate to end_rate
  } kind = Kind::kConstant;
  double begin_s = 0, end_s = 0;
  double rate = 1;  // requests/s
  double cv = 1, end_rate = 0, on_s = 60, off_s = 60;
};

inline constexpr int64_t kMaxConversation = 4096;
inline constexpr int32_t kOwnerOfAdapter = -1, kAnyTenant = -2;

struct Stream {
  int32_t tenant = kOwnerOfAdapter;  // an index, the adapter's owner (adapter mod tenants), or each alike
  std::vector<Phase> phases;
  LengthDist input = LengthDist::fixed(256), output = LengthDist::fixed(256);
  int64_t first_adapter = 0, num_adapters = 0;  // 0 = the base model
  Popularity popularity;
  double base_share = 0;  // of the requests that ask the base model all the same, in [0, 1]
  double shift_s = 0;     // every so many seconds other adapters are the popular ones; 0 = never
};

struct WorkloadSpec {
  std::vector<Tenant> tenants{{"t0"}};
  std::vector<Stream> streams;
  double max_tokens_factor = 1;  // >= 1: what clients ask for over what they get
  int64_t prefix_groups = 0, prefix_tokens = 0;
  // Each arrival begins a conversation of `turns` requests (mean of a geometric distribution, >= 1) with the same
  // adapter: the next one `think_s` (exponential) after its predecessor's arrival, its prompt that one's prompt and
  // answer and a new input. A conversation ends early with its stream, or when it would pass kMaxConversation tokens.
  double turns = 1, think_s = 30;
  int64_t max_requests = 0;  // 0 = no limit
  uint64_t seed = 42;
};

// kInvalidArgument for weights, rates and lengths out of range (NaN included).
Result<Workload> generate(const WorkloadSpec& spec);
// Arrival times in seconds of one phase.
std::vector<double> arrivals_of(const Phase& phase, Rng& rng, int64_t max_count);

// A CSV with a header. Columns by any usual name, case ignored: time (seconds, or YYYY-MM-DD HH:MM:SS[.fraction]),
// prompt tokens, output tokens; optionally adapter and tenant. Adapters are numbers below num_adapters (empty = the
// base model); with num_adapters 0 every new name is a new adapter. Times start at 0 and are divided by `speed`. Errors
// name the line.
Result<Workload> parse_trace(const std::string& text, int64_t num_adapters, double speed, double max_tokens_factor);

}  // namespace lk::sim
