// SPDX-License-Identifier: Apache-2.0
// AdmissionQueue: who may wait for the engine. Requests and tokens that wait are bounded, their places shared by weight
// among the tenants that have something waiting; a request that would wait too long, at the rate at which prompts
// started lately and behind what its own tenant has waiting, is refused at once. Thread safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "lk/base/shared_bound.h"
#include "lk/base/status.h"
#include "lk/sched/wait_forecast.h"

namespace lk {

class AdmissionQueue {
 public:
  struct Limits {
    int64_t requests = 1024;   // that wait
    int64_t tokens = 0;        // prompt + max_tokens of these
    double wait_seconds = 60;  // predicted
    bool fair = true;          // the scheduler serves tenants by weight: what others have waiting is not all ahead
  };
  struct Account {
    TenantId id = 0;
    double weight = 1;
  };
  // What requests take of the queue together.
  struct Share {
    int64_t requests = 1;
    int64_t tokens = 0;
    int64_t prompt_tokens = 0;  // by which waits are predicted
    Share& operator+=(const Share& other) {
      requests += other.requests, tokens += other.tokens, prompt_tokens += other.prompt_tokens;
      return *this;
    }
  };
  struct Admission {
    Status status;  // kInvalidArgument: larger than a bound; kUnavailable, kDeadlineExceeded: not now
    double retry_after_seconds = 0;
  };

  explicit AdmissionQueue(const Limits& limits)
      : limits_(limits), requests_(limits.requests), tokens_(limits.tokens), prompts_(INT64_MAX / 4) {}

  // Takes places, or says why not. `patience_seconds`: longer than this it would not want to wait.
  Admission admit(const Account& account, const Share& share, const StartRate& rate,
                  std::optional<double> patience_seconds = {});
  void take(const Account& account, const Share& share);  // whatever the limits say
  void leave(TenantId tenant, const Share& share);
  // Whether a request of which nothing else is known would be refused, and when it is worth trying again.
  Admission look(const Account& account, const StartRate& rate) const;

  double wait_seconds(const Account& account, const StartRate& rate) const;
  double longest_wait_seconds(const StartRate& rate) const;  // behind everything
  const Limits& limits() const { return limits_; }
  Share waiting() const;

 private:
  Admission decide(const Account& account, const Share& share, const StartRate& rate,
                   std::optional<double> patience_seconds) const;
  void take_places(const Account& account, const Share& share);
  double tokens_ahead(const Account& account) const;

  const Limits limits_;
  mutable std::mutex mutex_;
  SharedBound<TenantId> requests_, tokens_, prompts_;
};

}  // namespace lk
