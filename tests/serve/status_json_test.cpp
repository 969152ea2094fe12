// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/status_json.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <limits>

namespace lk {
namespace {

namespace json = boost::json;

AdapterSnapshot adapter(std::string name) {
  AdapterSnapshot a;
  a.name = std::move(name), a.version = 3, a.digest = "abc", a.path = "/srv/a", a.tier = "device", a.rank = 16,
  a.targets = {"q_proj", "v_proj"};
  a.host_bytes = 1000, a.device_bytes = 2000, a.pinned = true, a.exact = false, a.running = 2, a.waiting = 1,
  a.requests = 9, a.load_seconds = 0.25;
  return a;
}

TEST(StatusJson, HoldsEveryFieldOfTheSnapshot) {
  ServerSnapshot s;
  // Every number differs, so that a field in the wrong place is seen.
  s.num_running = 1, s.num_waiting = 2, s.num_steps = 3, s.num_computed_tokens = 4, s.num_preemptions = 5,
  s.num_adapter_loads = 6;
  s.num_adapter_evictions = 7, s.prefix_queries_tokens = 8, s.prefix_hit_tokens = 9, s.prompt_tokens = 10,
  s.generation_tokens = 11;
  s.step_seconds = 12.5, s.tokens_per_second = 13.5, s.pages = 14, s.pages_free = 15, s.pages_kv = 16,
  s.pages_cached = 17, s.pages_adapter = 18, s.pages_merged = 40;
  s.page_bytes = 19, s.page_tokens = 20, s.uptime_seconds = 21.5, s.ready = true, s.draining = true,
  s.queued_tokens = 22, s.max_queue = 23;
  s.predicted_wait_seconds = 24.5, s.connections = 25, s.open_streams = 26, s.resident_bytes = 27;
  s.adapter_bytes = 61, s.max_adapter_bytes = 62, s.num_sums = 63, s.sum_bytes = 64, s.grammar_bytes = 65,
  s.max_grammar_bytes = 66;
  s.memory_plan = {.limits = {.total = 90, .available = 91, .source = "memory.max of /x"},
                   .weights = 80,
                   .activations = 81,
                   .pages = 82,
                   .adapters = 83,
                   .grammars = 84,
                   .reserve = 85};
  s.num_fair_preemptions = 74, s.num_prefetches = 69, s.host_reads = 70, s.host_failed_reads = 71, s.host_drops = 72,
  s.host_read_seconds = 73.5;
  s.num_adapter_names = 100;
  s.adapters_changed = 101, s.adapters_unreadable = 102, s.adapters_no_memory = 103, s.adapters_refused = 104;
  s.lora_dirs_ok = 105, s.lora_dirs_empty = 106, s.lora_dirs_unreadable = 107;
  s.heap_used_bytes = 67, s.heap_free_bytes = 68, s.open_files = 28, s.threads = 29;
  s.merging = {.chooser = "cost",
               .adapter = "hot",
               .builds = 41,
               .refused = 42,
               .given_back = 43,
               .merged_steps = 44,
               .exclusive_steps = 45,
               .mode_changes = 46};
  s.fleet = {.is_registry_reachable = true,
             .fetched = 110,
             .failed_fetches = 111,
             .fetched_bytes = 112,
             .wrong_files = 113,
             .fetching = 114,
             .disk_adapters = 115,
             .disk_bytes = 116,
             .max_disk_bytes = 117};
  s.held_bytes = 75, s.max_held_bytes = 76, s.output_bytes = 77, s.max_output_bytes = 78;
  s.work = {{.name = "parse", .waiting = 79, .running = 86}, {.name = "format", .waiting = 87, .running = 88}};
  s.tenants = {{.name = "acme",
                .in_flight = 30,
                .prompt_tokens = 31,
                .output_tokens = 32,
                .requests = 33,
                .refused = 34,
                .weight = 35.5,
                .cached_tokens = 36,
                .waiting = 37,
                .running = 38,
                .service = 39.5}};
  s.adapters = {adapter("a"), adapter("idle")};
  s.adapters[1].tier = "disk", s.adapters[1].running = s.adapters[1].waiting = 0, s.adapters[1].pinned = false;
  EXPECT_EQ(json::parse(format_status(s)),
            json::parse(R"({"object": "status", "ready": true, "draining": true, "uptime_seconds": 21.5,
    "requests": {"running": 1, "waiting": 2, "max_queue": 23, "queued_tokens": 22, "predicted_wait_seconds": 24.5, "preemptions": 5, "fair_preemptions": 74},
    "tokens": {"prompt": 10, "output": 11, "computed": 4, "output_per_second": 13.5, "prefix_queries": 8, "prefix_hits": 9},
    "steps": {"count": 3, "seconds": 12.5},
    "pool": {"pages": 14, "free": 15, "kv": 16, "cached": 17, "adapter": 18, "merged": 40, "page_bytes": 19, "page_tokens": 20},
    "adapters": {"total": 2, "names": 100, "unavailable": {"changed": 101, "unreadable": 102, "no_memory": 103, "refused": 104},
                 "directories": {"ok": 105, "empty": 106, "unreadable": 107}, "device": 1, "loading": 0, "host": 0, "disk": 1, "pinned": 1, "loads": 6, "prefetches": 69, "evictions": 7,
                 "disk_reads": 70, "failed_disk_reads": 71, "host_drops": 72,
                 "active": [{"name": "a", "version": 3, "running": 2, "waiting": 1}]},
    "merging": {"chooser": "cost", "adapter": "hot", "builds": 41, "refused": 42, "given_back": 43, "merged_steps": 44, "exclusive_steps": 45, "mode_changes": 46},
    "http": {"connections": 25, "open_streams": 26, "held_bytes": 75, "max_held_bytes": 76, "output_bytes": 77,
             "max_output_bytes": 78,
             "work": {"parse": {"waiting": 79, "running": 86}, "format": {"waiting": 87, "running": 88}}},
    "memory": {"plan": {"limit": 90, "limit_source": "memory.max of /x", "available_at_start": 91, "weights": 80, "activations": 81,
                        "pages": 82, "adapters": 83, "grammars": 84, "reserve": 85, "total": 495},
               "adapters": 61, "max_adapters": 62, "num_sums": 63, "sums": 64, "grammars": 65, "max_grammars": 66, "heap_used": 67, "heap_free": 68}, "fleet": {"registry_reachable": true, "fetched": 110, "failed_fetches": 111, "fetched_bytes": 112, "wrong_files": 113, "fetching": 114,
              "disk_adapters": 115, "disk_bytes": 116, "max_disk_bytes": 117},
    "process": {"resident_bytes": 27, "open_files": 28, "threads": 29},
    "tenants": [{"name": "acme", "in_flight": 30, "requests": 33, "refused": 34, "prompt_tokens": 31, "cached_tokens": 36, "output_tokens": 32,
                 "weight": 35.5, "waiting": 37, "running": 38, "service": 39.5}]})"));
}

TEST(StatusJson, NumbersThatJsonLacksAreNull) {
  ServerSnapshot s;
  s.predicted_wait_seconds = std::numeric_limits<double>::infinity();
  s.tokens_per_second = std::numeric_limits<double>::quiet_NaN();
  const json::value v = json::parse(format_status(s));
  EXPECT_TRUE(v.at("requests").at("predicted_wait_seconds").is_null());
  EXPECT_TRUE(v.at("tokens").at("output_per_second").is_null());
}

TEST(StatusJson, AdaptersAreListedWithAllFields) {
  EXPECT_EQ(json::parse(format_adapters({adapter("a")}, false,
                                        {{.root = std::make_shared<const std::string>("/srv"),
                                          .state = WatchedDirectory::State::kEmpty,
                                          .reason = "all went",
                                          .num_adapters = 7}})),
            json::parse(R"({"object": "list", "data": [{"id": "a@3", "object": "adapter", "name": "a",
    "version": 3, "digest": "abc", "path": "/srv/a", "tenant": null, "state": "loaded", "reason": null, "tier": "device", "rank": 16, "targets": ["q_proj", "v_proj"], "host_bytes": 1000,
    "device_bytes": 2000, "pinned": true, "exact": false, "running": 2, "waiting": 1, "requests": 9, "load_seconds": 0.25}],
    "first_id": "a@3", "last_id": "a@3", "has_more": false, "directories": [{"path": "/srv", "state": "empty", "reason": "all went", "adapters": 7}]})"));
  EXPECT_EQ(format_adapters({}),
            R"({"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false,"directories":[]})");
  EXPECT_EQ(json::parse(format_adapter(adapter("b"))).at("name"), "b");
}

TEST(StatusJson, BytesThatAreNotTextAreReplaced) {
  AdapterSnapshot a = adapter("x\xff\"\n");
  a.path = "/srv/\xc3(";
  const json::value v = json::parse(format_adapter(a));
  EXPECT_EQ(v.at("name"), "x?\"?");
  EXPECT_EQ(v.at("path"), "/srv/?(");
}

TEST(StatusJson, ActiveAdaptersAreCapped) {
  ServerSnapshot s;
  s.adapters.assign(1000, adapter("a"));
  const json::value v = json::parse(format_status(s));
  EXPECT_EQ(v.at("adapters").at("active").as_array().size(), 256u);
  EXPECT_EQ(v.at("adapters").at("total"), 1000);
}

}  // namespace
}  // namespace lk
