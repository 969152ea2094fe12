// SPDX-License-Identifier: Apache-2.0
// Health, status, metrics, the API description and the console.
#include <boost/json/serialize.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/http/console.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/observe/status_json.h"

namespace lk {

namespace json = boost::json;

// 200 with an empty body when requests can be served (vLLM); load balancers poll it.
void ServerImpl::health(const std::shared_ptr<Exchange>& exchange) {
  const bool stuck = service_->stalled_seconds() > options_.stuck_seconds;
  exchange->respond(ready_ && !stuck ? 200 : 503, "", "text/plain");
}

void ServerImpl::ready(const std::shared_ptr<Exchange>& exchange) {
  const bool ready = ready_ && !draining_;
  exchange->respond(ready ? 200 : 503, json_text(json::object{{"ready", ready}, {"draining", draining_.load()}}));
}

void ServerImpl::live(const std::shared_ptr<Exchange>& exchange) {
  const double stalled = service_->stalled_seconds();
  const bool live = stalled <= options_.stuck_seconds;
  exchange->respond(live ? 200 : 503, json_text(json::object{{"live", live}, {"seconds_without_progress", stalled}}));
}

void ServerImpl::version(const std::shared_ptr<Exchange>& exchange) {
  exchange->respond(200, json_text(json::object{{"version", options_.version}}));
}

void ServerImpl::status(const std::shared_ptr<Exchange>& exchange) {
  format(exchange, [this, exchange] { exchange->send(200, format_status(snapshot())); });
}

void ServerImpl::metrics(const std::shared_ptr<Exchange>& exchange) {
  format(exchange, [this, exchange] {
    exchange->send(200, metrics_->scrape(snapshot()), "text/plain; version=0.0.4; charset=utf-8");
  });
}

void ServerImpl::fleet_state(const std::shared_ptr<Exchange>& exchange) { feed_->listen(exchange); }

ReplicaReport ServerImpl::report() {
  if (numerics_.empty() && ready_ && Clock::now() >= next_probe_) {
    const bool merging = service_->snapshot().server.merging.chooser != "never";
    const Result<std::string> numerics = numerics_of(*service_, merging, options_.max_answer_bytes);
    if (numerics.ok()) numerics_ = *numerics;
    next_probe_ = Clock::now() + std::chrono::seconds(10);
  }
  const EngineService::Snapshot engine = service_->snapshot();
  const ServerSnapshot& s = engine.server;
  ReplicaReport report{.id = replica_id_,
                       .model = registry_->base_name(),
                       .version = options_.version,
                       .numerics = numerics_.empty() ? "unknown-" + replica_id_ : numerics_,
                       .ready = ready_ && !draining_,
                       .draining = draining_,
                       .weight_bytes = options_.memory.weights,
                       .context = text().context(),
                       .page_tokens = s.page_tokens,
                       .page_bytes = s.page_bytes,
                       .pages = s.pages,
                       .pages_free = s.pages_free + s.pages_cached,
                       .running = s.num_running,
                       .waiting = s.num_waiting,
                       .steps = s.num_steps,
                       .computed_tokens = s.num_computed_tokens,
                       .execute_seconds = s.execute_seconds,
                       .stalled_seconds = service_->stalled_seconds()};
  for (const AdapterSnapshot& adapter : registry_->list_loaded(engine))
    report.adapters[adapter.is_default ? adapter.name : fmt::format("{}@{}", adapter.name, adapter.version)] = {
        .digest = adapter.digest,
        .bytes = adapter.device_bytes,
        .on_device = adapter.tier == "device",
        .in_flight = adapter.running + adapter.waiting};
  return report;
}

void ServerImpl::openapi(const std::shared_ptr<Exchange>& exchange) {
  static const std::string page = openapi_json(options_.version);
  exchange->respond(200, page);
}

void ServerImpl::console(const std::shared_ptr<Exchange>& exchange) {
  const std::optional<ConsoleFile> file = options_.console ? console_file(exchange->request.path) : std::nullopt;
  if (!file) return exchange->fail(not_found("no such page"));
  HttpHeaders headers{{"etag", std::string(file->etag)},
                      {"cache-control", "no-cache"},
                      {"content-security-policy", std::string(console_csp())},
                      {"x-content-type-options", "nosniff"},
                      {"referrer-policy", "no-referrer"}};
  if (etag_matches(exchange->request.header("if-none-match"), file->etag))
    return exchange->respond(304, "", file->content_type, std::move(headers));
  exchange->respond(200, std::string(file->body), file->content_type, std::move(headers));
}

}  // namespace lk
