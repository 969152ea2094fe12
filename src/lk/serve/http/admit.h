// SPDX-License-Identifier: Apache-2.0
// What every request to the engine passes: its prompts are prepared or refused, it is admitted to its tenant's limits
// and to the queue. Private to server_generate.cpp and server_score.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lk/serve/http/answer.h"
#include "lk/serve/http/server_impl.h"

namespace lk {

// Of cached prompts: those of a tenant, and of what its client chose.
uint64_t salt_of(const Tenant& tenant, const std::string& text);
// What is wrong with a field that may be the prompt: it has another name in each kind of request.
ApiError prompt_error(const Status& status, std::string_view field, std::string_view prompt, const std::string& id);
bool is_too_long(std::string_view field, const TextSequence& sequence, const TextModel& model);
// What prepare() refuses.
ApiError prepare_error(const Status& status, std::string_view field, std::string_view prompt, const Exchange& exchange,
                       const TextSequence& sequence);

// Places in the engine's queue; given back when they are not used, whatever is thrown.
class Admitted {
 public:
  Admitted(EngineService& engine, const EngineService::Account& account, const EngineService::Share& share,
           Clock::time_point deadline)
      : deadline(deadline), engine_(&engine), account_(account), share_(share) {}
  Admitted(Admitted&& other) noexcept
      : deadline(other.deadline),
        engine_(std::exchange(other.engine_, nullptr)),
        account_(other.account_),
        share_(other.share_) {}
  Admitted& operator=(Admitted&&) = delete;
  ~Admitted() {
    if (engine_) engine_->abandon(account_, share_);
  }
  // The sequences of this tenant have them from now on.
  TenantId use() {
    engine_ = nullptr;
    return account_.id;
  }
  const Clock::time_point deadline;

 private:
  EngineService* engine_;
  EngineService::Account account_;
  EngineService::Share share_;
};

// Worker: admission to the tenant's limits and the queue. Answers errors itself. `held_bytes`: what its answer will be
// made of. What `goes_on` was admitted elsewhere: limits and places were taken there, and it waits behind nobody.
std::optional<Admitted> admit(const std::shared_ptr<Exchange>& exchange, const EngineService::Share& share,
                              int64_t held_bytes, bool goes_on = false);

// A client that leaves cancels what the engine does for it.
void watch(const std::shared_ptr<Answer>& answer, Exchange& exchange);

}  // namespace lk
