// SPDX-License-Identifier: Apache-2.0
// Our own names (lorikeet_*) and the process metrics that every Prometheus dashboard knows.
#include "lk/serve/observe/metrics_state.h"

namespace lk::metrics_detail {
namespace {

double number(int64_t n) { return static_cast<double>(n); }

void write_usage(MetricFamilies& out, const std::string& label, const ByLabel<Usage>& usage) {
  const auto family = [&](const char* suffix, const char* what, int64_t Usage::*field) {
    out.counter("lorikeet_" + label + suffix,
                std::string(what) + " by " + label + "; \"other\" is all beyond the cap of names.");
    for (const auto& [name, entry] : usage) out.add(number(entry.*field), {{label, name}});
  };
  family("_requests_total", "Finished requests", &Usage::requests);
  family("_prompt_tokens_total", "Prompt tokens", &Usage::prompt_tokens);
  family("_output_tokens_total", "Output tokens", &Usage::output_tokens);
  out.histogram("lorikeet_" + label + "_time_to_first_token_seconds", "Arrival to first token by " + label + ".");
  for (const auto& [name, entry] : usage) out.add(entry.first_token, {{label, name}});
}

void write_keys(MetricFamilies& out, const ByLabel<KeyUsage>& usage) {
  const auto family = [&](const char* name, const char* what, int64_t KeyUsage::*field) {
    out.counter(name, std::string(what) + " by API key's id; \"other\" is all beyond the cap of names.");
    for (const auto& [key, entry] : usage) out.add(number(entry.*field), {{"key", key}});
  };
  family("lorikeet_key_requests_total", "Finished requests", &KeyUsage::requests);
  family("lorikeet_key_prompt_tokens_total", "Prompt tokens", &KeyUsage::prompt_tokens);
  family("lorikeet_key_cached_tokens_total", "Of these, tokens from the prefix cache", &KeyUsage::cached_tokens);
  family("lorikeet_key_output_tokens_total", "Output tokens", &KeyUsage::output_tokens);
}

void write_server(MetricFamilies& out, const ServerSnapshot& s) {
  const auto gauge = [&](const char* name, const char* help, double value) { out.gauge(name, help).add(value); };
  gauge("lorikeet_ready", "1 when requests are accepted.", s.ready ? 1 : 0);
  gauge("lorikeet_draining", "1 while the server shuts down.", s.draining ? 1 : 0);
  gauge("lorikeet_uptime_seconds", "Since the start.", s.uptime_seconds);
  gauge("lorikeet_connections", "Open HTTP connections.", number(s.connections));
  gauge("lorikeet_output_bytes", "Bytes of answers that wait for their readers.", number(s.output_bytes));
  gauge("lorikeet_output_limit_bytes", "Beyond it answers of those who hold most of them are refused.",
        number(s.max_output_bytes));
  gauge("lorikeet_held_bytes", "Bytes of bodies that are being read and of log-probabilities that answers are made of.",
        number(s.held_bytes));
  gauge("lorikeet_held_limit_bytes", "Beyond it requests of those who hold most of them are refused.",
        number(s.max_held_bytes));
  out.gauge("lorikeet_work_waiting",
            "Tasks that wait for a thread: bodies to parse, grammars to compile, answers to write.");
  for (const ServerSnapshot::Work& work : s.work) out.add(number(work.waiting), {{"work", work.name}});
  out.gauge("lorikeet_work_running", "Tasks that such a thread has in hand.");
  for (const ServerSnapshot::Work& work : s.work) out.add(number(work.running), {{"work", work.name}});
  gauge("lorikeet_open_streams", "Event streams being sent.", number(s.open_streams));
  gauge("lorikeet_queue_requests", "Requests that wait for their first step.", number(s.num_waiting));
  gauge("lorikeet_queue_limit_requests", "Waiting requests beyond which new ones are refused.", number(s.max_queue));
  gauge("lorikeet_queue_tokens", "Tokens of waiting requests.", number(s.queued_tokens));
  gauge("lorikeet_predicted_wait_seconds", "How long a request that came now would wait for its first step.",
        s.predicted_wait_seconds);
  gauge("lorikeet_output_tokens_per_second", "Output tokens a second, over the last seconds.", s.tokens_per_second);
  gauge("process_resident_memory_bytes", "Resident memory.", number(s.resident_bytes));
  gauge("lorikeet_host_tier_limit_bytes", "Host memory that copies of adapters may take.", number(s.max_adapter_bytes));
  out.gauge("lorikeet_cache_bytes", "Host memory of adapters and of what is cached; sums are part of adapters.")
      .add(number(s.adapter_bytes), {{"cache", "adapters"}})
      .add(number(s.sum_bytes), {{"cache", "sums"}})
      .add(number(s.grammar_bytes), {{"cache", "grammars"}});
  out.gauge("lorikeet_heap_bytes", "The C library's heap; free pages may have been given back to the system.")
      .add(number(s.heap_used_bytes), {{"state", "used"}})
      .add(number(s.heap_free_bytes), {{"state", "free"}});
  gauge("process_open_fds", "Open file descriptors.", number(s.open_files));
  gauge("process_threads", "Threads.", number(s.threads));
}

void write_pool(MetricFamilies& out, const ServerSnapshot& s) {
  out.gauge("lorikeet_pool_pages", "Pages by use; cached ones only keep prefixes.")
      .add(number(s.pages_free), {{"use", "free"}})
      .add(number(s.pages_kv), {{"use", "kv"}})
      .add(number(s.pages_cached), {{"use", "cached"}})
      .add(number(s.pages_adapter), {{"use", "adapter"}})
      .add(number(s.pages_merged), {{"use", "merged"}});
  out.gauge("lorikeet_pool_page_bytes", "Size of a page.").add(number(s.page_bytes));
}

void write_adapters(MetricFamilies& out, const ServerSnapshot& s) {
  std::map<std::string_view, int64_t> tiers{{"device", 0}, {"loading", 0}, {"host", 0}, {"disk", 0}};
  int64_t num_pinned = 0;
  for (const AdapterSnapshot& adapter : s.adapters) {
    if (const auto it = tiers.find(adapter.tier); it != tiers.end()) ++it->second;
    num_pinned += adapter.pinned ? 1 : 0;
  }
  out.gauge("lorikeet_adapters", "Adapter versions by the tier they are in.");
  for (const auto& [tier, count] : tiers) out.add(number(count), {{"tier", tier}});
  out.gauge("lorikeet_adapter_names", "Names of adapters, loaded or to be loaded when somebody asks.")
      .add(number(s.num_adapter_names));
  out.gauge("lorikeet_adapters_unavailable",
            "Adapter versions that cannot be loaded: files changed, unreadable or refused, or no memory.")
      .add(number(s.adapters_changed), {{"reason", "changed"}})
      .add(number(s.adapters_unreadable), {{"reason", "unreadable"}})
      .add(number(s.adapters_no_memory), {{"reason", "no_memory"}})
      .add(number(s.adapters_refused), {{"reason", "refused"}});
  out.gauge("lorikeet_adapter_directories", "Directories given by --lora-dir, by what the last look found.")
      .add(number(s.lora_dirs_ok), {{"state", "ok"}})
      .add(number(s.lora_dirs_empty), {{"state", "empty"}})
      .add(number(s.lora_dirs_unreadable), {{"state", "unreadable"}});
  out.gauge("lorikeet_adapters_pinned", "Adapter versions that are never evicted.").add(number(num_pinned));
}

void write_http(MetricFamilies& out, const State& state) {
  out.counter("lorikeet_http_requests_total", "HTTP requests by route and status.");
  for (const auto& [route, entry] : state.routes)
    for (const auto& [status, count] : entry.by_status) {
      const std::string code = status == 0 ? "invalid" : std::to_string(status);
      out.add(number(count), {{"route", route}, {"status", code}});
    }
  out.histogram("lorikeet_http_request_seconds", "Time to answer a HTTP request, streams to their end.");
  for (const auto& [route, entry] : state.routes) out.add(entry.seconds, {{"route", route}});
  out.counter("lorikeet_cut_connections_total", "Connections that were cut, by what their peer did.")
      .add(state.mirrored.at("cut_slow_readers"), {{"reason", "slow_reader"}})
      .add(state.mirrored.at("cut_slow_writers"), {{"reason", "slow_writer"}});
  out.counter("lorikeet_refused_connections_total", "Connections refused because there were too many.")
      .add(state.mirrored.at("refused_connections"));
  out.counter("lorikeet_refused_outputs_total", "Answers refused because too many bytes waited for their readers.")
      .add(state.mirrored.at("refused_outputs"));
}

void write_io(MetricFamilies& out, const Exposition& e) {
  out.histogram("lorikeet_io_turn_seconds",
                "For how long an io thread served one connection, or one thing else, and nobody else.")
      .add(e.io_turn);
  out.gauge("lorikeet_io_longest_turn_seconds",
            "The longest since the start: by the clock, and the time worked, without waiting for a core.")
      .add(e.longest_turn, {{"time", "clock"}})
      .add(e.longest_turn_cpu, {{"time", "cpu"}});
}

void write_fleet(MetricFamilies& out, const ServerSnapshot::Fleet& fleet) {
  const auto gauge = [&](const char* name, const char* help, int64_t value) {
    out.gauge(name, help).add(number(value));
  };
  gauge("lorikeet_fleet_registry_reachable", "1 when the fleet's registry answered lately.",
        fleet.is_registry_reachable ? 1 : 0);
  out.counter("lorikeet_fleet_fetches_total", "Adapters that were to be brought from other replicas, by result.")
      .add(number(fleet.fetched), {{"result", "ok"}})
      .add(number(fleet.failed_fetches), {{"result", "failed"}});
  out.counter("lorikeet_fleet_fetched_bytes_total", "Bytes of adapters that other replicas sent.")
      .add(number(fleet.fetched_bytes));
  out.counter("lorikeet_fleet_wrong_files_total",
              "Files that other replicas sent with other bytes than the registry has.")
      .add(number(fleet.wrong_files));
  gauge("lorikeet_fleet_fetching_adapters", "Adapters that are being brought, or wait for it.", fleet.fetching);
  gauge("lorikeet_fleet_disk_adapters", "The fleet's adapters on this server's disk.", fleet.disk_adapters);
  gauge("lorikeet_fleet_disk_bytes", "Bytes of these.", fleet.disk_bytes);
  gauge("lorikeet_fleet_disk_limit_bytes", "What they may have (--fleet-disk).", fleet.max_disk_bytes);
}

}  // namespace

void Exposition::write_own(MetricFamilies& out) const {
  const ServerSnapshot& s = snapshot;
  const auto total = [&](const char* name, const char* help, const char* mirrored) {
    out.counter(name, help).add(state.mirrored.at(mirrored));
  };
  out.gauge("lorikeet_build_info", "The program and its base model.")
      .add(1, {{"version", options.version}, {"model_name", options.model_name}});
  write_server(out, s);
  write_pool(out, s);
  if (s.fleet) write_fleet(out, *s.fleet);

  total("lorikeet_steps_total", "Engine steps.", "steps");
  total("lorikeet_busy_seconds_total", "Time that the engine thread did not wait for work.", "busy_seconds");
  total("lorikeet_step_seconds_total", "Time spent in steps.", "step_seconds");
  total("lorikeet_execute_seconds_total", "Of the steps the model itself; the rest is scheduling and text.",
        "execute_seconds");
  total("lorikeet_computed_tokens_total", "Tokens computed, prompt and output.", "computed_tokens");
  out.histogram("lorikeet_step_seconds", "Time of one step.").add(state.step_seconds);
  out.histogram("lorikeet_event_delay_seconds",
                "From the end of a step until all its events were sent to their sockets.")
      .add(state.event_delay);

  total("lorikeet_pool_checked_pages_total", "Pages whose bookkeeping was checked while the engine was idle.",
        "pages_checked");
  out.gauge("lorikeet_merge_info", "How an adapter to merge is chosen, and whose merged weights can be used now.")
      .add(1, {{"chooser", s.merging.chooser}, {"adapter", s.merging.adapter}});
  total("lorikeet_merge_builds_total", "Builds of merged weights begun.", "merge_builds");
  total("lorikeet_merge_refused_total", "Merges given up because rounding lost too much.", "merge_refused");
  total("lorikeet_merge_given_back_total", "Merged weights, whole or not, given up because their pages were needed.",
        "merge_given_back");
  total("lorikeet_merge_steps_total", "Steps in which an adapter ran merged.", "merge_steps");
  total("lorikeet_merge_exclusive_steps_total", "Of these, steps that kept everybody else out.",
        "merge_exclusive_steps");
  total("lorikeet_merge_mode_changes_total", "Changes of who runs merged, from one step to the next.",
        "merge_mode_changes");

  out.counter("lorikeet_requests_total", "Finished requests by how they ended.");
  for (const auto& [word, count] : state.finished) out.add(number(count), {{"finish", word}});
  out.counter("lorikeet_endpoint_requests_total", "Finished requests by endpoint.");
  for (const auto& [endpoint, count] : state.endpoints) out.add(number(count), {{"endpoint", endpoint}});
  out.counter("lorikeet_requests_refused_total", "Requests refused, by reason.");
  for (const auto& [reason, count] : state.refused) out.add(number(count), {{"reason", reason}});
  out.counter("lorikeet_request_fields_ignored_total",
              "Fields of requests that were ignored, by name; \"other\" is all beyond the cap of names.");
  for (const auto& [field, count] : state.ignored_fields) out.add(number(count), {{"field", field}});
  out.histogram("lorikeet_abandoned_seconds", "From the loss of a client until all its request held was free.")
      .add(state.abandoned);
  out.counter("lorikeet_cached_prompt_tokens_total",
              "Prompt tokens of finished requests that came from the prefix cache.")
      .add(number(state.cached_tokens));

  total("lorikeet_fair_preemptions_total",
        "Preemptions for a tenant that fell too far behind the one that held the memory.", "fair_preemptions");
  total("lorikeet_sampling_failures_total",
        "Requests ended with an error because their logits were not finite or their grammar allowed no token.",
        "sampling_failures");
  write_adapters(out, s);
  out.histogram("lorikeet_adapter_load_seconds", "Time to load an adapter, successes only.").add(state.load_seconds);
  out.counter("lorikeet_adapter_load_failures_total", "Adapters that could not be loaded.")
      .add(number(state.failed_loads));
  total("lorikeet_adapter_device_loads_total", "Adapters copied into the device tier.", "adapter_loads");
  total("lorikeet_adapter_prefetches_total", "Of these, those begun while the request was on its way to the queue.",
        "adapter_prefetches");
  total("lorikeet_adapter_evictions_total", "Adapters that left the device tier to make room.", "adapter_evictions");
  total("lorikeet_host_tier_reads_total",
        "Adapters read again from disk, whose copies had been dropped from host memory.", "host_reads");
  total("lorikeet_host_tier_read_failures_total", "Such reads in vain: the files are gone or not what they were.",
        "host_failed_reads");
  total("lorikeet_host_tier_read_seconds_total", "Time of these reads.", "host_read_seconds");
  total("lorikeet_host_tier_drops_total", "Copies of adapters dropped from host memory to make room.", "host_drops");
  write_usage(out, "adapter", state.adapters);

  write_usage(out, "tenant", state.tenants);
  out.counter("lorikeet_tenant_refused_total", "Requests refused, by tenant.");
  for (const auto& [name, entry] : state.tenants) out.add(number(entry.refused), {{"tenant", name}});
  out.gauge("lorikeet_tenant_in_flight", "Requests in flight by tenant.");
  ByLabel<int64_t> in_flight;
  for (const ServerSnapshot::TenantSnapshot& tenant : s.tenants)
    if (!tenant.name.empty()) in_flight(tenant.name, options.max_label_values) += tenant.in_flight;
  for (const auto& [name, count] : in_flight) out.add(number(count), {{"tenant", name}});
  struct Fairness {
    int64_t waiting = 0;
    double service = 0;
  };
  ByLabel<Fairness> fairness;
  for (const ServerSnapshot::TenantSnapshot& tenant : s.tenants) {
    if (tenant.name.empty()) continue;
    Fairness& entry = fairness(tenant.name, options.max_label_values);
    entry.waiting += tenant.waiting;
    entry.service += tenant.service;
  }
  out.gauge("lorikeet_tenant_waiting", "Requests that wait, by tenant.");
  for (const auto& [name, entry] : fairness) out.add(number(entry.waiting), {{"tenant", name}});
  out.counter("lorikeet_tenant_service_total",
              "Weighted tokens computed (--service-cost), by tenant: what fairness is measured in.");
  for (const auto& [name, entry] : fairness) out.add(number(entry.service), {{"tenant", name}});
  write_keys(out, state.keys);
  out.counter("lorikeet_state_write_failures_total", "Changes that could not be stored, and are not in effect.")
      .add(number(state.failed_state_writes));
  total("lorikeet_log_dropped_lines_total", "Log lines lost to a full queue, or that could not be written.",
        "log_lines_dropped");
  write_http(out, state);
  write_io(out, *this);
}

}  // namespace lk::metrics_detail
