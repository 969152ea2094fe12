// SPDX-License-Identifier: Apache-2.0
// The model that a request asks for, which may have to be loaded first.
#include <charconv>
#include <cmath>

#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

constexpr size_t kMaxColdRounds = 9;  // a sum's terms, and one more

}  // namespace

ApiResult<double> timeout_of(const Exchange& exchange) {
  const std::string_view text = exchange.request.header("x-request-timeout");
  if (text.empty()) return exchange.server->options().default_timeout_seconds;
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(seconds) || seconds <= 0 ||
      seconds > 86'400)
    return ApiError{.message = "x-request-timeout must be a number of seconds in (0, 86400]",
                    .param = "x-request-timeout"};
  return seconds;
}

ApiError model_error(const Status& status, const std::string& id) {
  ApiError error = api_error(status, id);
  if (status.code() == StatusCode::kNotFound) error.code = "model_not_found";
  if (status.code() == StatusCode::kUnavailable) {
    error.code = "adapter_unavailable";
    error.retry_after_seconds = 5;
  }
  error.param = "model";
  return error;
}

void ServerImpl::with_model(const std::shared_ptr<Exchange>& exchange, const std::string& model, ModelTask task,
                            std::vector<AdapterLease> held) {
  const Tenant& tenant = *exchange->principal.tenant;
  std::string cold;
  Result<AdapterRegistry::Resolved> found = registry_->resolve(model, tenant, &cold);
  if (found.ok()) return task(std::move(found).value());
  // Each round loads one; a sum has several, which are held until it is made.
  if (cold.empty() || held.size() >= kMaxColdRounds) return exchange->refuse(model_error(found.status(), exchange->id));
  const ApiResult<double> timeout = timeout_of(*exchange);
  if (!timeout.ok()) return exchange->refuse(timeout.error);
  const auto deadline =
      exchange->arrival + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*timeout.value));
  // The request keeps its place among what its tenant may have in flight, and no thread waits for the load.
  registry_->load_cold(
      cold, tenant.name, deadline,
      [this, exchange, model, task = std::move(task), held = std::move(held)](Result<AdapterLease> loaded) mutable {
        if (loaded.ok()) held.push_back(*loaded);
        work(exchange, [this, exchange, model, task = std::move(task), held = std::move(held),
                        failure = loaded.ok() ? Status() : loaded.status()] {
          if (failure.ok()) return with_model(exchange, model, task, held);
          // Why it failed is said by who looks again, in words for the client.
          std::string cold;
          const auto again = registry_->resolve(model, *exchange->principal.tenant, &cold);
          if (again.ok()) return task(*again);
          const bool waited =
              failure.code() == StatusCode::kUnavailable || failure.code() == StatusCode::kDeadlineExceeded;
          exchange->refuse(model_error(waited ? failure : again.status(), exchange->id));
        });
      });
}

}  // namespace lk
