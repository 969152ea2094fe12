// SPDX-License-Identifier: Apache-2.0
// Keys, tenants and what was used: /v1/keys and /v1/tenants for those who administrate, /v1/usage for everybody's own.
#include <ctime>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/http/access_api.h"
#include "lk/serve/http/server_impl.h"

namespace lk {

namespace json = boost::json;

// Runs on the state thread, which is where the store is read and written. What changed holds before it is answered.
void ServerImpl::administrate(const std::shared_ptr<Exchange>& exchange) {
  if (!accounts()) return exchange->fail(no_access_state("the server"));
  const HttpRequest& request = exchange->request;
  ApiResult<AccessJob> read = read_access_job(*accounts(), request.method, exchange->route->path, exchange->parameter,
                                              request.body, [exchange] { return exchange->gone.load(); });
  if (!read.ok()) return exchange->fail(read.error);
  const AccessAudit tell = [this, exchange](const char* action, std::string_view target, const Status& outcome) {
    audit(*exchange, action, target, outcome);
    if (outcome.ok()) own_change_ = target;
  };
  change(exchange, [this, exchange, tell, job = std::move(*read.value)] {
    const Result<std::string> body = job.run(tell);
    if (!body.ok()) return exchange->refuse(access_error(body.status(), exchange->id));
    if (job.changes) {
      if (const Status status = apply_access(access_->refresh()); !status.ok())
        log_->write(LogLevel::kError, "keys_not_readable", {{"reason", status.message()}});
    }
    exchange->post([this, exchange, tell, job, body = *body] {
      const auto undo = [this, tell, job](const Status&) {
        job.undo(tell);
        (void)apply_access(access_->refresh());
      };
      if (!exchange->gone || !job.undo) {
        exchange->respond(job.success, body, "application/json", {{"cache-control", "no-store"}});
      } else if (!state_->try_post(undo)) {  // also when nothing else has a turn any more
        log_->write(LogLevel::kError, "change_not_undone", {{"id", exchange->id}});
      }
    });
  });
}

// --- Usage

// Since the start, by key. Admin sees all keys, everybody else the own one.
void ServerImpl::usage(const std::shared_ptr<Exchange>& exchange) {
  const Principal& who = exchange->principal;
  json::array data;
  for (const auto& [key, entry] : usage_.all()) {
    if (!who.has(Scope::kAdmin) && key != who.key_id) continue;
    data.push_back(json::object{{"key", key.empty() ? json::value(nullptr) : json::value(key)},
                                {"tenant", entry.tenant},
                                {"requests", entry.usage.requests},
                                {"prompt_tokens", entry.usage.prompt_tokens},
                                {"cached_tokens", entry.usage.cached_tokens},
                                {"output_tokens", entry.usage.output_tokens}});
  }
  const auto since =
      std::time(nullptr) - static_cast<int64_t>(std::chrono::duration<double>(Clock::now() - started_).count());
  exchange->respond(200, json_text(json::object{{"object", "list"}, {"since", since}, {"data", std::move(data)}}));
}

}  // namespace lk
