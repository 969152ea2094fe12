// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/status_json.h"

#include <boost/json.hpp>

#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr size_t kMaxNameBytes = 256, kMaxPathBytes = 4096, kMaxActiveAdapters = 256;

json::object adapter_json(const AdapterSnapshot& a) {
  const std::string name = clean_text(a.name, kMaxNameBytes);
  json::array targets;
  for (const std::string& target : a.targets) targets.emplace_back(clean_text(target, kMaxNameBytes));
  return {{"id", a.version > 0 ? name + "@" + std::to_string(a.version) : name},
          {"object", "adapter"},
          {"name", name},
          {"version", a.version},
          {"digest", clean_text(a.digest, kMaxNameBytes)},
          {"path", clean_text(a.path, kMaxPathBytes)},
          {"tenant", a.tenant.empty() ? json::value(nullptr) : json::value(clean_text(a.tenant, kMaxNameBytes))},
          {"state", clean_text(a.state, kMaxNameBytes)},
          {"reason", a.reason.empty() ? json::value(nullptr) : json::value(clean_text(a.reason, kMaxPathBytes))},
          {"tier", clean_text(a.tier, kMaxNameBytes)},
          {"rank", a.rank},
          {"targets", std::move(targets)},
          {"host_bytes", a.host_bytes},
          {"device_bytes", a.device_bytes},
          {"pinned", a.pinned},
          {"exact", a.exact},
          {"running", a.running},
          {"waiting", a.waiting},
          {"requests", a.requests},
          {"load_seconds", a.load_seconds}};
}

json::object count_adapters(const ServerSnapshot& s) {
  int64_t device = 0, loading = 0, host = 0, disk = 0, pinned = 0;
  json::array active;
  for (const AdapterSnapshot& a : s.adapters) {
    device += a.tier == "device", loading += a.tier == "loading", host += a.tier == "host", disk += a.tier == "disk";
    pinned += a.pinned ? 1 : 0;
    if ((a.running > 0 || a.waiting > 0) && active.size() < kMaxActiveAdapters)
      active.push_back(json::object{{"name", clean_text(a.name, kMaxNameBytes)},
                                    {"version", a.version},
                                    {"running", a.running},
                                    {"waiting", a.waiting}});
  }
  return {
      {"total", s.adapters.size()},
      {"names", s.num_adapter_names},
      {"unavailable",
       {{"changed", s.adapters_changed},
        {"unreadable", s.adapters_unreadable},
        {"no_memory", s.adapters_no_memory},
        {"refused", s.adapters_refused}}},
      {"directories", {{"ok", s.lora_dirs_ok}, {"empty", s.lora_dirs_empty}, {"unreadable", s.lora_dirs_unreadable}}},
      {"device", device},
      {"loading", loading},
      {"host", host},
      {"disk", disk},
      {"pinned", pinned},
      {"loads", s.num_adapter_loads},
      {"prefetches", s.num_prefetches},
      {"evictions", s.num_adapter_evictions},
      {"disk_reads", s.host_reads},
      {"failed_disk_reads", s.host_failed_reads},
      {"host_drops", s.host_drops},
      {"active", std::move(active)}};
}

json::value fleet_json(const std::optional<ServerSnapshot::Fleet>& fleet) {
  if (!fleet) return nullptr;
  return json::object{{"registry_reachable", fleet->is_registry_reachable},
                      {"fetched", fleet->fetched},
                      {"failed_fetches", fleet->failed_fetches},
                      {"fetched_bytes", fleet->fetched_bytes},
                      {"wrong_files", fleet->wrong_files},
                      {"fetching", fleet->fetching},
                      {"disk_adapters", fleet->disk_adapters},
                      {"disk_bytes", fleet->disk_bytes},
                      {"max_disk_bytes", fleet->max_disk_bytes}};
}

json::object merging_json(const ServerSnapshot::Merging& m) {
  return {{"chooser", m.chooser},
          {"adapter", m.adapter.empty() ? json::value(nullptr) : json::value(clean_text(m.adapter, kMaxNameBytes))},
          {"builds", m.builds},
          {"refused", m.refused},
          {"given_back", m.given_back},
          {"merged_steps", m.merged_steps},
          {"exclusive_steps", m.exclusive_steps},
          {"mode_changes", m.mode_changes}};
}

json::object memory_plan_json(const MemoryPlan& plan) {
  return {{"limit", plan.limits.total},
          {"limit_source", clean_text(plan.limits.source, kMaxNameBytes)},
          {"available_at_start", plan.limits.available},
          {"weights", plan.weights},
          {"activations", plan.activations},
          {"pages", plan.pages},
          {"adapters", plan.adapters},
          {"grammars", plan.grammars},
          {"reserve", plan.reserve},
          {"total", plan.total()}};
}

json::object work_json(const ServerSnapshot& s) {
  json::object all;
  for (const ServerSnapshot::Work& work : s.work)
    all[work.name] = json::object{{"waiting", work.waiting}, {"running", work.running}};
  return all;
}

json::array tenants_json(const ServerSnapshot& s) {
  json::array tenants;
  for (const ServerSnapshot::TenantSnapshot& t : s.tenants)
    tenants.push_back(json::object{{"name", clean_text(t.name, kMaxNameBytes)},
                                   {"in_flight", t.in_flight},
                                   {"requests", t.requests},
                                   {"refused", t.refused},
                                   {"prompt_tokens", t.prompt_tokens},
                                   {"cached_tokens", t.cached_tokens},
                                   {"output_tokens", t.output_tokens},
                                   {"weight", t.weight},
                                   {"waiting", t.waiting},
                                   {"running", t.running},
                                   {"service", t.service}});
  return tenants;
}

}  // namespace

std::string format_status(const ServerSnapshot& s) {
  return json_text(json::object{
      {"object", "status"},
      {"ready", s.ready},
      {"draining", s.draining},
      {"uptime_seconds", s.uptime_seconds},
      {"requests",
       {{"running", s.num_running},
        {"waiting", s.num_waiting},
        {"max_queue", s.max_queue},
        {"queued_tokens", s.queued_tokens},
        {"predicted_wait_seconds", s.predicted_wait_seconds},
        {"preemptions", s.num_preemptions},
        {"fair_preemptions", s.num_fair_preemptions}}},
      {"tokens",
       {{"prompt", s.prompt_tokens},
        {"output", s.generation_tokens},
        {"computed", s.num_computed_tokens},
        {"output_per_second", s.tokens_per_second},
        {"prefix_queries", s.prefix_queries_tokens},
        {"prefix_hits", s.prefix_hit_tokens}}},
      {"steps", {{"count", s.num_steps}, {"seconds", s.step_seconds}}},
      {"pool",
       {{"pages", s.pages},
        {"free", s.pages_free},
        {"kv", s.pages_kv},
        {"cached", s.pages_cached},
        {"adapter", s.pages_adapter},
        {"merged", s.pages_merged},
        {"page_bytes", s.page_bytes},
        {"page_tokens", s.page_tokens}}},
      {"adapters", count_adapters(s)},
      {"merging", merging_json(s.merging)},
      {"http",
       {{"connections", s.connections},
        {"open_streams", s.open_streams},
        {"held_bytes", s.held_bytes},
        {"max_held_bytes", s.max_held_bytes},
        {"output_bytes", s.output_bytes},
        {"max_output_bytes", s.max_output_bytes},
        {"work", work_json(s)}}},
      {"memory",
       {{"plan", memory_plan_json(s.memory_plan)},
        {"adapters", s.adapter_bytes},
        {"max_adapters", s.max_adapter_bytes},
        {"num_sums", s.num_sums},
        {"sums", s.sum_bytes},
        {"grammars", s.grammar_bytes},
        {"max_grammars", s.max_grammar_bytes},
        {"heap_used", s.heap_used_bytes},
        {"heap_free", s.heap_free_bytes}}},
      {"fleet", fleet_json(s.fleet)},
      {"process", {{"resident_bytes", s.resident_bytes}, {"open_files", s.open_files}, {"threads", s.threads}}},
      {"tenants", tenants_json(s)}});
}

std::string format_adapter(const AdapterSnapshot& adapter) { return json_text(adapter_json(adapter)); }

std::string format_adapters(const std::vector<AdapterSnapshot>& adapters, bool has_more,
                            const std::vector<WatchedDirectory>& directories) {
  json::array data;
  data.reserve(adapters.size());
  for (const AdapterSnapshot& adapter : adapters) data.push_back(adapter_json(adapter));
  json::array watched;
  for (const WatchedDirectory& directory : directories)
    watched.push_back(
        json::object{{"path", clean_text(*directory.root, kMaxPathBytes)},
                     {"state", to_string(directory.state)},
                     {"reason", directory.reason.empty() ? json::value(nullptr)
                                                         : json::value(clean_text(directory.reason, kMaxPathBytes))},
                     {"adapters", directory.num_adapters}});
  const json::value first = data.empty() ? json::value(nullptr) : data.front().as_object().at("id");
  const json::value last = data.empty() ? json::value(nullptr) : data.back().as_object().at("id");
  return json_text(json::object{{"object", "list"},
                                {"data", std::move(data)},
                                {"first_id", first},
                                {"last_id", last},
                                {"has_more", has_more},
                                {"directories", std::move(watched)}});
}

}  // namespace lk
