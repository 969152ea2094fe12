// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/admission_queue.h"

#include <algorithm>

namespace lk {
namespace {

double seconds_until(const StartRate& rate, double tokens_ahead) {
  return static_cast<double>(rate.until_start(tokens_ahead)) / 1e6;
}

}  // namespace

AdmissionQueue::Admission AdmissionQueue::admit(const Account& account, const Share& share, const StartRate& rate,
                                                std::optional<double> patience_seconds) {
  std::lock_guard lock(mutex_);
  Admission admission = decide(account, share, rate, patience_seconds);
  if (admission.status.ok()) take_places(account, share);
  return admission;
}

void AdmissionQueue::take(const Account& account, const Share& share) {
  std::lock_guard lock(mutex_);
  take_places(account, share);
}

void AdmissionQueue::take_places(const Account& account, const Share& share) {
  requests_.take(account.id, account.weight, share.requests);
  tokens_.take(account.id, account.weight, share.tokens);
  prompts_.take(account.id, account.weight, share.prompt_tokens);
}

void AdmissionQueue::leave(TenantId tenant, const Share& share) {
  std::lock_guard lock(mutex_);
  requests_.give_back(tenant, share.requests);
  tokens_.give_back(tenant, share.tokens);
  prompts_.give_back(tenant, share.prompt_tokens);
}

AdmissionQueue::Admission AdmissionQueue::look(const Account& account, const StartRate& rate) const {
  std::lock_guard lock(mutex_);
  return decide(account, {.requests = 1, .tokens = 1}, rate, {});
}

AdmissionQueue::Admission AdmissionQueue::decide(const Account& account, const Share& share, const StartRate& rate,
                                                 std::optional<double> patience_seconds) const {
  if (share.requests > limits_.requests)
    return {
        invalid_argument("{} answers are asked for at once, more than may wait: {}", share.requests, limits_.requests)};
  if (share.tokens > limits_.tokens)
    return {invalid_argument("prompt and answers may have {} tokens together, more than may wait: {}", share.tokens,
                             limits_.tokens)};
  const double wait = requests_.used() > 0 ? seconds_until(rate, tokens_ahead(account)) : 0;
  Status refusal;
  if (!requests_.fits(account.id, account.weight, share.requests))
    refusal = unavailable("the server is overloaded: {} requests are waiting, at most {} may, {} of them yours",
                          requests_.used(), limits_.requests, requests_.share(account.id, account.weight));
  else if (!tokens_.fits(account.id, account.weight, share.tokens))
    refusal =
        unavailable("the server is overloaded: requests of {} tokens are waiting, at most {} may, {} of them yours",
                    tokens_.used(), limits_.tokens, tokens_.share(account.id, account.weight));
  else if (wait > limits_.wait_seconds)
    refusal = unavailable("the server is overloaded: the wait would be about {:.0f} s, at most {:.0f} s are allowed",
                          wait, limits_.wait_seconds);
  else if (patience_seconds && wait > *patience_seconds)
    refusal = deadline_exceeded("the wait would be about {:.1f} s, longer than the request's timeout of {:.1f} s", wait,
                                *patience_seconds);
  if (refusal.ok()) return {};
  return {std::move(refusal), std::clamp(wait / 2, 1.0, 60.0)};
}

// While a tenant waits for its own, the others are served by their weights, as long as they have something (as
// FairQueue::tokens_ahead, of which this is the view from outside the engine thread).
double AdmissionQueue::tokens_ahead(const Account& account) const {
  const auto all = static_cast<double>(prompts_.used());
  if (!limits_.fair) return all;
  const auto own = static_cast<double>(prompts_.used_by(account.id));
  const double turns = own / account.weight;
  double ahead = own;
  prompts_.for_each([&](TenantId id, int64_t tokens, double weight) {
    if (id != account.id) ahead += std::min(static_cast<double>(tokens), turns * weight);
  });
  return ahead;
}

double AdmissionQueue::wait_seconds(const Account& account, const StartRate& rate) const {
  std::lock_guard lock(mutex_);
  return requests_.used() > 0 ? seconds_until(rate, tokens_ahead(account)) : 0;
}

double AdmissionQueue::longest_wait_seconds(const StartRate& rate) const {
  std::lock_guard lock(mutex_);
  return seconds_until(rate, static_cast<double>(prompts_.used()));
}

AdmissionQueue::Share AdmissionQueue::waiting() const {
  std::lock_guard lock(mutex_);
  return {.requests = requests_.used(), .tokens = tokens_.used(), .prompt_tokens = prompts_.used()};
}

}  // namespace lk
