// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/admit.h"

#include <cstring>

#include "lk/base/sha256.h"

namespace lk {

uint64_t salt_of(const Tenant& tenant, const std::string& text) {
  if (text.empty()) return tenant.cache_salt;
  Sha256 sha;
  sha.update(&tenant.cache_salt, sizeof tenant.cache_salt);
  sha.update(text.data(), text.size());
  const auto digest = sha.finish();
  uint64_t salt;
  std::memcpy(&salt, digest.data(), sizeof salt);
  return salt;
}

ApiError prompt_error(const Status& status, std::string_view field, std::string_view prompt, const std::string& id) {
  ApiError error = api_error(status, id);
  error.param = field == "prompt" ? prompt : field == "output_so_far" ? "lorikeet_resume" : field;
  return error;
}

bool is_too_long(std::string_view field, const TextSequence& sequence, const TextModel& model) {
  return field == "prompt" && static_cast<int64_t>(sequence.asked.prompt.size()) >= model.context();
}

ApiError prepare_error(const Status& status, std::string_view field, std::string_view prompt, const Exchange& exchange,
                       const TextSequence& sequence) {
  ApiError error = prompt_error(status, field, prompt, exchange.id);
  // Clients act on this code: they shorten the conversation.
  if (is_too_long(field, sequence, exchange.server->text())) error.code = "context_length_exceeded";
  return error;
}

std::optional<Admitted> admit(const std::shared_ptr<Exchange>& exchange, const EngineService::Share& share,
                              int64_t held_bytes, bool goes_on) {
  ServerImpl& server = *exchange->server;
  const auto refuse = [&](ApiError error) {
    exchange->refuse(std::move(error));
    return std::nullopt;
  };
  const ApiResult<double> timeout = timeout_of(*exchange);
  if (!timeout.ok()) return refuse(timeout.error);
  if (server.aborting()) return refuse(api_error(unavailable("the server is shutting down")));
  if (exchange->place.was_let_in() && !goes_on)
    return refuse({.message = "x-lorikeet-goes-on is for answers that have begun", .param = "lorikeet_resume"});
  if (share.requests > 0) {  // else all its choices were complete elsewhere
    const TenantLimiter::Decision decision = exchange->place.admit(share.tokens, share.requests);
    if (!decision.admitted) return refuse(rate_limited(decision));
  }
  // The body is gone; what is left of it waits among the engine's tokens.
  if (!exchange->place.hold(held_bytes))
    return refuse(overloaded(1, "too much is held for answers that are not written yet, try again later"));
  const Tenant& tenant = *exchange->principal.tenant;
  const EngineService::Account account = server.engine().account(tenant.name, tenant.weight);
  const EngineService::Admission admission =
      goes_on ? server.engine().admit_anyway(account, share) : server.engine().admit(account, share, *timeout.value);
  if (admission.status.code() == StatusCode::kInvalidArgument)
    return refuse({.message = admission.status.message(), .code = "request_too_large"});
  if (!admission.status.ok()) return refuse(overloaded(admission.retry_after_seconds, admission.status.message()));
  return Admitted(
      server.engine(), account, share,
      exchange->arrival + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*timeout.value)));
}

void watch(const std::shared_ptr<Answer>& answer, Exchange& exchange) {
  exchange.on_gone = [weak = std::weak_ptr<Answer>(answer)] {
    if (const auto alive = weak.lock()) alive->close();
  };
}

}  // namespace lk
