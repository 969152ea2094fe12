// SPDX-License-Identifier: Apache-2.0
// Health, status, metrics, the API description and the console.
#include <boost/json/serialize.hpp>

#include "lk/base/json_text.h"
#include "lk/serve/http/console.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/observe/process_stats.h"
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

ServerSnapshot ServerImpl::snapshot() const {
  EngineService::Snapshot engine = service_->snapshot();
  ServerSnapshot s = std::move(engine.server);
  s.adapters = registry_->list_loaded(engine);
  const AdapterRegistry::Counts counts = registry_->counts();
  s.num_adapter_names = counts.names;
  s.adapters_changed = counts.changed;
  s.adapters_unreadable = counts.unreadable;
  s.adapters_no_memory = counts.no_memory;
  s.adapters_refused = counts.refused;
  for (const WatchedDirectory& directory : registry_->directories())
    ++(directory.state == WatchedDirectory::State::kOk      ? s.lora_dirs_ok
       : directory.state == WatchedDirectory::State::kEmpty ? s.lora_dirs_empty
                                                            : s.lora_dirs_unreadable);
  for (const auto& [name, usage] : limiter_.usage()) {
    const TenantService& service = engine.tenants[name];
    s.tenants.push_back({.name = name,
                         .in_flight = usage.in_flight,
                         .prompt_tokens = service.prompt_tokens,
                         .output_tokens = service.output_tokens,
                         .requests = usage.requests,
                         .refused = usage.refused,
                         .weight = service.weight,
                         .cached_tokens = service.cached_tokens,
                         .waiting = service.waiting,
                         .running = service.running,
                         .service = static_cast<double>(service.service) / 1000});
  }
  s.uptime_seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  s.ready = ready_ && !draining_;
  s.draining = draining_;
  const HttpStats http = http_->stats();
  s.connections = http.open_connections;
  s.output_bytes = http.output_bytes;
  s.max_output_bytes = limits_of(options_).max_total_output_bytes;
  s.cut_slow_readers = http.cut_slow_readers;
  s.cut_slow_writers = http.cut_slow_writers;
  s.refused_outputs = http.refused_outputs;
  s.refused_connections = http.refused_connections;
  s.open_streams = open_streams_;
  s.held_bytes = limiter_.held_bytes();
  s.max_held_bytes = limiter_.max_held_bytes();
  for (const auto& [name, queue] : {std::pair("parse", workers_.get()), std::pair("grammar", compilers_.get()),
                                    std::pair("format", formatters_.get())}) {
    const WorkQueue::Stats stats = queue->stats();
    s.work.push_back({.name = name, .waiting = stats.waiting, .running = stats.running});
  }
  s.log_lines_dropped = static_cast<int64_t>(log_->num_dropped());
  if (fleet_) {
    const AdapterFetcher::Stats fetches = fleet_->fetch_stats();
    const AdapterCache::Stats disk = fleet_->cache_stats();
    s.fleet = {.is_registry_reachable = fleet_->is_reachable(),
               .fetched = fetches.fetched,
               .failed_fetches = fetches.failed,
               .fetched_bytes = fetches.bytes,
               .wrong_files = fetches.wrong,
               .fetching = fetches.waiting,
               .disk_adapters = disk.adapters,
               .disk_bytes = disk.bytes,
               .max_disk_bytes = disk.max_bytes};
  }
  const ProcessStats process = read_process_stats();
  s.resident_bytes = process.resident_bytes;
  const HostTier::Stats host = registry_->host_stats();
  s.adapter_bytes = host.bytes;
  s.max_adapter_bytes = host.max_bytes;
  s.host_reads = host.num_reads;
  s.host_failed_reads = host.num_failed_reads;
  s.host_drops = host.num_drops;
  s.host_read_seconds = host.read_seconds;
  const AdapterSums::Stats sums = registry_->sum_stats();
  s.num_sums = sums.count;
  s.sum_bytes = sums.bytes;
  s.grammar_bytes = grammars_ ? grammars_->bytes() : 0;
  s.max_grammar_bytes = options_.max_grammar_bytes;
  s.memory_plan = options_.memory;
  const HeapStats heap = read_heap_stats();
  s.heap_used_bytes = heap.used_bytes;
  s.heap_free_bytes = heap.free_bytes;
  s.open_files = process.open_files;
  s.threads = process.threads;
  return s;
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
    const Result<std::string> numerics =
        numerics_of(*service_, merging, options_.max_answer_bytes, options_.tool_format + "/" + options_.reasoning);
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
                       .max_running = s.max_running,
                       .host_bytes = s.max_adapter_bytes,
                       .steps = s.num_steps,
                       .computed_tokens = s.num_computed_tokens,
                       .execute_seconds = s.execute_seconds,
                       .stalled_seconds = service_->stalled_seconds()};
  for (const AdapterSnapshot& adapter : registry_->list_loaded(engine))
    report.adapters[adapter.is_default ? adapter.name : fmt::format("{}@{}", adapter.name, adapter.version)] = {
        .digest = adapter.digest,
        .bytes = adapter.device_bytes,
        .on_device = adapter.tier == "device",
        .on_host = adapter.tier == "host",
        .in_flight = adapter.running + adapter.waiting};
  return report;
}

void ServerImpl::openapi(const std::shared_ptr<Exchange>& exchange) {
  static const std::string page = openapi_json(options_.version);
  exchange->respond(200, page);
}

void ServerImpl::console(const std::shared_ptr<Exchange>& exchange) {
  std::optional<HttpResponse> page = options_.console ? console_response(exchange->request) : std::nullopt;
  if (!page) return exchange->fail(not_found("no such page"));
  exchange->respond(std::move(*page));
}

}  // namespace lk
