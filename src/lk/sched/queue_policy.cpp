// SPDX-License-Identifier: Apache-2.0
#include "lk/sched/queue_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "lk/base/check.h"
#include "lk/sched/deficit_queue.h"
#include "lk/sched/enum_names.h"
#include "lk/sched/fair_queue.h"
#include "lk/sched/fifo_queue.h"

namespace lk {
namespace {

constexpr EnumNames<QueueKind, 3> kKinds{
    {{"fcfs", QueueKind::kFcfs}, {"vtc", QueueKind::kVtc}, {"dlpm", QueueKind::kDlpm}}};
constexpr EnumNames<WithinTenant, 5> kWithin{{{"adapter", WithinTenant::kAdapter},
                                              {"user", WithinTenant::kUser},
                                              {"arrival", WithinTenant::kArrival},
                                              {"slack", WithinTenant::kSlack},
                                              {"newest", WithinTenant::kNewest}}};
constexpr EnumNames<Prediction, 3> kPredictions{
    {{"none", Prediction::kNone}, {"mean", Prediction::kMean}, {"max-tokens", Prediction::kMaxTokens}}};

}  // namespace

Result<QueueKind> parse_queue_kind(std::string_view text) { return parse_name("scheduling policy", text, kKinds); }
Result<WithinTenant> parse_within_tenant(std::string_view text) {
  return parse_name("order within a tenant", text, kWithin);
}
Result<Prediction> parse_prediction(std::string_view text) {
  return parse_name("length prediction", text, kPredictions);
}
const char* to_string(QueueKind kind) {
  return std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& entry) { return entry.second == kind; })
      ->first.data();
}

std::unique_ptr<QueuePolicy> QueuePolicy::create(const QueueOptions& options, Locality locality) {
  switch (options.kind) {
    case QueueKind::kFcfs:
      return std::make_unique<FifoQueue>(options);
    case QueueKind::kVtc:
      return std::make_unique<FairQueue>(options);
    case QueueKind::kDlpm:
      return std::make_unique<DeficitQueue>(options, std::move(locality));
  }
  LK_CHECK(false, "unknown queue kind");
}

void QueuePolicy::set_weight(TenantId tenant, double weight) {
  LK_CHECK(weight >= 1e-3 && weight <= 1e6, "tenant {}: weight {}", tenant, weight);
  services_[tenant].weight = weight;
}

void QueuePolicy::arrive(Ticket& ticket) {
  enter(ticket, true);
  const Request& request = *ticket.request;
  if (!request.resumed()) return;
  // Charged for its prompt and output where they were made. It computes them again as after a preemption, for nothing.
  ticket.charged = true;
  ticket.tag = virtual_time(ticket);
  ticket.prompt_tokens = ticket.computed_prompt = static_cast<int64_t>(request.prompt.size());
  ticket.output_tokens = static_cast<int64_t>(request.output_so_far.size());
  ticket.predicted_output = predicted_output(request);
}

void QueuePolicy::enter(Ticket& ticket, bool arrives) {
  count_waiting(ticket, 1);
  if (ticket.request->urgent)
    urgent_.emplace(ticket.order, &ticket);
  else
    insert(ticket, arrives);
}

void QueuePolicy::count_waiting(const Ticket& ticket, int64_t requests) {
  const int64_t tokens = requests * static_cast<int64_t>(ticket.request->prompt.size());
  TenantService& tenant = service(ticket);
  tenant.waiting += requests;
  tenant.waiting_tokens += tokens;
  waiting_tokens_ += tokens;
}

void QueuePolicy::exit(Ticket& ticket) {
  count_waiting(ticket, -1);
  if (ticket.request->urgent)
    urgent_.erase(ticket.order);
  else
    erase(ticket);
}

void QueuePolicy::begin_round() {
  urgent_passed_ = 0;
  new_round();
}

Ticket* QueuePolicy::next() {
  const auto it = urgent_.lower_bound(urgent_passed_);
  return it != urgent_.end() ? it->second : pick();
}

void QueuePolicy::pass_over(Ticket& ticket) {
  if (ticket.request->urgent)
    urgent_passed_ = ticket.order + 1;
  else
    pass(ticket);
}

void QueuePolicy::pass_over_tenant(Ticket& ticket) {
  if (ticket.request->urgent)
    pass_over(ticket);
  else
    pass_tenant(ticket);
}

void QueuePolicy::leave(Ticket& ticket) {
  exit(ticket);
  // Of a prompt that was charged at dispatch, what was never computed.
  if (ticket.charged)
    book(ticket,
         options_.cost.of(ticket.computed_prompt, ticket.output_tokens) -
             options_.cost.of(ticket.prompt_tokens, ticket.output_tokens),
         0);
}

void QueuePolicy::book(Ticket& ticket, MilliUnits price, MilliUnits advance) {
  if (ticket.request->urgent || (price == 0 && advance == 0)) return;
  service(ticket).ahead += price + advance;
  charge(ticket, price, advance);
}

void QueuePolicy::dispatch(Ticket& ticket, int64_t uncached_prompt) {
  TenantService& tenant = service(ticket);
  if (!ticket.charged) {
    ticket.tag = virtual_time(ticket);
    ticket.prompt_tokens = uncached_prompt;
    ticket.predicted_output = predicted_output(*ticket.request);
    tenant.cached_tokens += static_cast<int64_t>(ticket.request->prompt.size()) - uncached_prompt;
  }
  exit(ticket);
  ++tenant.running;
  if (!ticket.request->urgent) begin_running(ticket);
  // The whole prompt at once, or the tenant would win every round until it was computed.
  set_advance(ticket, ticket.charged ? 0 : options_.cost.of(uncached_prompt, 0));
  ticket.charged = true;
}

int64_t QueuePolicy::predicted_output(const Request& request) const {
  switch (options_.prediction) {
    case Prediction::kNone:
      return 0;
    case Prediction::kMean:
      return predictor_.predict(request);
    case Prediction::kMaxTokens:
      return request.max_tokens;
  }
  LK_CHECK(false, "unknown prediction");
}

MilliUnits QueuePolicy::advance_of(int64_t prompt_tokens, int64_t output_tokens, int64_t predicted_output) const {
  if (predicted_output <= output_tokens) return 0;
  const MilliUnits price =
      options_.cost.of(prompt_tokens, predicted_output) - options_.cost.of(prompt_tokens, output_tokens);
  return std::llround(options_.advance_share * static_cast<double>(price));
}

int64_t QueuePolicy::lead(const Ticket& running, MilliUnits lost, const Ticket& waiting) const {
  if (running.request->urgent || waiting.request->urgent) return 0;
  const auto prompt = static_cast<int64_t>(waiting.request->prompt.size());
  const MilliUnits price =
      waiting.charged ? advance_of(waiting.prompt_tokens, waiting.output_tokens, waiting.predicted_output)
                      : options_.cost.of(prompt, 0) + advance_of(prompt, 0, predicted_output(*waiting.request));
  return tenant_time(running, -running.advance - lost) - tenant_time(waiting, price);
}

void QueuePolicy::set_advance(Ticket& ticket, MilliUnits price) {
  const MilliUnits before =
      std::exchange(ticket.advance, advance_of(ticket.prompt_tokens, ticket.output_tokens, ticket.predicted_output));
  book(ticket, price, ticket.advance - before);
}

void QueuePolicy::computed(Ticket& ticket, int64_t prompt_tokens, int64_t output_tokens) {
  const ServiceCost& cost = options_.cost;
  TenantService& tenant = service(ticket);
  tenant.prompt_tokens += prompt_tokens;
  tenant.output_tokens += output_tokens;
  const MilliUnits done = cost.of(ticket.computed_prompt, ticket.output_tokens);
  const MilliUnits charged = cost.of(ticket.prompt_tokens, ticket.output_tokens);
  ticket.computed_prompt += prompt_tokens;
  ticket.output_tokens += output_tokens;
  const MilliUnits price = cost.of(ticket.computed_prompt, ticket.output_tokens) - done;
  tenant.service = saturating_add(tenant.service, price);
  if (!ticket.request->urgent) tenant.ahead -= price;
  if (output_tokens > 0 && options_.prediction == Prediction::kMean && ticket.output_tokens >= ticket.predicted_output)
    ticket.predicted_output = predictor_.outlived(*ticket.request, ticket.output_tokens);
  if (output_tokens > 0) set_advance(ticket, cost.of(ticket.prompt_tokens, ticket.output_tokens) - charged);
}

void QueuePolicy::stop(Ticket& ticket, bool finished) {
  --service(ticket).running;
  MilliUnits refund = 0;
  if (finished)
    refund = options_.cost.of(ticket.prompt_tokens, ticket.output_tokens) -
             options_.cost.of(ticket.computed_prompt, ticket.output_tokens);
  book(ticket, -refund, -std::exchange(ticket.advance, 0));
  if (!ticket.request->urgent) end_running(ticket);
}

}  // namespace lk
