// SPDX-License-Identifier: Apache-2.0
// QueuePolicy: who is served next, and who pays for what. The scheduler tells it of every request that arrives, starts,
// makes output, is preempted or ends; the policy keeps each tenant's account and, whenever the scheduler has room,
// names the waiting request that is next. Memory, adapters and steps are the scheduler's business. Policies:
//   fcfs  order of arrival
//   vtc   virtual token counters (arXiv:2401.00588): the tenant that was served least, by weight, and within it its
//         adapter, user or request; a tenant that comes back is lifted to those that wait, so that idle time earns
//         nothing
//   dlpm  deficit longest prefix match (arXiv:2501.14312): among tenants in credit the request with the most resident
//         state
// The simulator adds those they were compared with (sim/policies.h). A new one overrides the protected part: insert(),
// erase(), new_round(), pick() and pass() keep the order, charge() and tenant_time() the accounts.
//
// Thread safety: none; engine thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "lk/sched/service.h"

namespace lk {

enum class QueueKind : uint8_t { kFcfs, kVtc, kDlpm };
// Whose turn it is inside a tenant: its adapters' and its users' by counters of their own; or the requests', by
// arrival, by the least slack to their deadline, or the newest first.
enum class WithinTenant : uint8_t { kAdapter, kUser, kArrival, kSlack, kNewest };
// How many output tokens a request is charged in advance: none, what its tenant's adapter made lately, or max_tokens.
enum class Prediction : uint8_t { kNone, kMean, kMaxTokens };

struct QueueOptions {
  QueueKind kind = QueueKind::kVtc;
  WithinTenant within = WithinTenant::kAdapter;
  Prediction prediction = Prediction::kMean;
  // Of the output that is predicted, the part that is charged in advance; the rest is charged as it is made. A quarter
  // is enough to tell apart who just got a batch of long answers from who did not; only the simulator sets another,
  // such as the paper's 1.
  double advance_share = 0.25;
  ServiceCost cost;
  MilliUnits quantum = 500'000;  // dlpm: credit a visit gives, before weights
};

// "fcfs", "vtc", "dlpm"; "adapter", "user", "arrival", "slack", "newest"; "none", "mean", "max-tokens".
Result<QueueKind> parse_queue_kind(std::string_view text);
Result<WithinTenant> parse_within_tenant(std::string_view text);
Result<Prediction> parse_prediction(std::string_view text);
const char* to_string(QueueKind kind);

// A request in the eyes of a policy. The scheduler owns it and fills the first part.
struct Ticket {
  const Request* request = nullptr;
  uint64_t order = 0;  // of arrival; urgent ones come first
  Micros arrival = 0;
  Micros deadline = kNoDeadline;  // of the first token
  // The policy's own.
  bool charged = false;       // was dispatched once
  int64_t prompt_tokens = 0;  // to be computed: what the prefix cache did not have at the first dispatch
  int64_t computed_prompt = 0, output_tokens = 0;  // done
  int64_t predicted_output = 0;
  MilliUnits advance = 0;  // charged for output that was not made yet
  int64_t tag = 0;         // virtual time of its first dispatch
  void* place = nullptr;   // where it waits or runs
};

// What a tenant received.
struct TenantService {
  double weight = 1;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  MilliUnits service = 0;            // the price of the above
  int64_t waiting = 0, running = 0;  // requests
  int64_t waiting_tokens = 0;        // in prompts
  MilliUnits ahead = 0;              // charged for what was not computed yet
};

// How much of what a request needs is resident: the larger, the cheaper it is to run now.
using Locality = std::function<int64_t(Ticket&)>;

class QueuePolicy {
 public:
  static std::unique_ptr<QueuePolicy> create(const QueueOptions& options, Locality locality = {});
  virtual ~QueuePolicy() = default;
  QueuePolicy(const QueuePolicy&) = delete;
  QueuePolicy& operator=(const QueuePolicy&) = delete;

  // A tenant's share; 1 when never set. Requires: weight in [0.001, 1e6].
  virtual void set_weight(TenantId tenant, double weight);
  // Tenants that were ever seen.
  const std::unordered_map<TenantId, TenantService>& tenants() const { return services_; }
  // Prompt tokens that will be started, by all tenants, before one that arrives now.
  virtual double tokens_ahead(const Request&) const { return static_cast<double>(waiting_tokens_); }
  // Output tokens it may be expected to make.
  int64_t expected_output(const Request& request) const { return predictor_.predict(request); }

  // --- Waiting
  void arrive(Ticket& ticket);
  // It was preempted and waits again, in its old place: not an arrival.
  void wait_again(Ticket& ticket) { enter(ticket, false); }
  // It leaves without having been served (again).
  void leave(Ticket& ticket);

  // --- A round of choosing
  void begin_round();
  // Who is next, of those not passed over in this round; null when there is nobody. The same until one of the others is
  // called.
  Ticket* next();
  // It cannot run now (its adapter is not there yet): others may.
  void pass_over(Ticket& ticket);
  // Nor can what its tenant has behind it.
  void pass_over_tenant(Ticket& ticket);
  // It runs. `uncached_prompt` tokens of its prompt are to be computed, counted once if it was preempted before.
  void dispatch(Ticket& ticket, int64_t uncached_prompt);
  // Virtual time: who would be behind whom if both were next. Larger is later.
  int64_t virtual_time(const Ticket& ticket) const {
    return ticket.request->urgent ? INT64_MIN : tenant_time(ticket, 0);
  }
  // The virtual time that a tenant's computed service has brought it to, without what it is charged ahead of that and
  // may get back. Nothing when the policy has none, or forgot the tenant. Never falls, not even from before the policy
  // forgot the tenant to when it is back (but for rounding, by 2 at most).
  virtual std::optional<int64_t> settled_time(TenantId) const { return std::nullopt; }
  // Whether virtual times of tenants that wait stay near each other, so that who is far behind was not served lately.
  virtual bool bounds_lag() const { return false; }
  // By how much virtual time the tenant of `running` would be ahead of that of `waiting` if these two changed places
  // now and the first got back the price of what it loses (milli-units); 0 or less: it would not be ahead.
  int64_t lead(const Ticket& running, MilliUnits lost, const Ticket& waiting) const;

  // --- Running
  // More of the prompt was computed (nothing that was computed before), or output was made.
  void computed(Ticket& ticket, int64_t prompt_tokens, int64_t output_tokens);
  // It stops running: `finished` or preempted. What it was charged in advance is given back.
  void stop(Ticket& ticket, bool finished);
  // Its output is whole: forecasts for others like it go by its length. One that was cut short says nothing.
  void learn_length(const Ticket& ticket) {
    if (ticket.output_tokens > 0) predictor_.learn(*ticket.request, ticket.output_tokens);
  }

 protected:
  explicit QueuePolicy(const QueueOptions& options) : options_(options) {}
  // If its tenant were charged `advance` more (milli-units, may be negative).
  virtual int64_t tenant_time(const Ticket&, MilliUnits /*advance*/) const { return 0; }
  // Urgent requests never come here: they go first and nobody is charged. `arrives`: it was not here before.
  virtual void insert(Ticket& ticket, bool arrives) = 0;
  virtual void erase(Ticket& ticket) = 0;
  virtual void new_round() = 0;
  virtual Ticket* pick() = 0;
  virtual void pass(Ticket& ticket) = 0;
  virtual void pass_tenant(Ticket& ticket) { pass(ticket); }  // a policy without tenants has one line
  // The ticket's tenant is charged `price` for good and `advance` (either may be negative) for what is to come.
  virtual void charge(Ticket&, MilliUnits /*price*/, MilliUnits /*advance*/) {}
  virtual void begin_running(Ticket&) {}
  virtual void end_running(Ticket&) {}
  TenantService& service(const Ticket& ticket) { return services_[ticket.request->tenant]; }

  const QueueOptions options_;

 private:
  void enter(Ticket& ticket, bool arrives);
  void exit(Ticket& ticket);
  void count_waiting(const Ticket& ticket, int64_t requests);
  void book(Ticket& ticket, MilliUnits price, MilliUnits advance);
  int64_t predicted_output(const Request& request) const;
  MilliUnits advance_of(int64_t prompt_tokens, int64_t output_tokens, int64_t predicted_output) const;
  void set_advance(Ticket& ticket, MilliUnits price);

  std::unordered_map<TenantId, TenantService> services_;
  LengthPredictor predictor_;
  std::map<uint64_t, Ticket*> urgent_;  // waiting, by order
  uint64_t urgent_passed_ = 0;          // in this round, the orders below
  int64_t waiting_tokens_ = 0;
};

}  // namespace lk
