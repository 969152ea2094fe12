// SPDX-License-Identifier: Apache-2.0
// ServerSnapshot: gauges and totals of one moment, published by the engine thread and the server for /metrics and the
// console.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lk/infer/memory_plan.h"

namespace lk {

struct AdapterSnapshot {
  std::string name;
  int64_t version = 0;
  std::string digest;  // SHA-256, hex
  std::string path;
  std::string tenant;            // whose key loaded it; "" = nobody's, or not for who asks
  std::string state = "loaded";  // "known": loaded when somebody asks; "unavailable": that failed
  std::string reason;            // why it is unavailable
  std::string tier;              // "device", "loading", "host", "disk"
  int64_t rank = 0;
  std::vector<std::string> targets;
  int64_t host_bytes = 0, device_bytes = 0;
  bool pinned = false;
  bool is_default = true;            // what the bare name means
  bool exact = true;                 // never merged into the base: merging is off, or not allowed for it
  int64_t running = 0, waiting = 0;  // requests in flight
  int64_t requests = 0;              // since it was loaded
  double load_seconds = 0;
};

struct ServerSnapshot {
  // Scheduler
  int64_t num_running = 0, num_waiting = 0, max_running = 0;
  int64_t num_steps = 0, num_computed_tokens = 0, num_preemptions = 0, num_adapter_loads = 0, num_adapter_evictions = 0;
  int64_t num_fair_preemptions = 0;   // of the preemptions, those for a tenant that fell too far behind
  int64_t num_sampling_failures = 0;  // requests ended because no token could be sampled or scored
  int64_t num_prefetches = 0;  // of the loads, those that began while the request was still on its way to the queue
  int64_t prefix_queries_tokens = 0, prefix_hit_tokens = 0;  // prompt tokens looked up, found
  int64_t prompt_tokens = 0, generation_tokens = 0;          // totals
  double step_seconds = 0;                                   // total time spent in steps
  double busy_seconds = 0;                                   // total time that the engine thread did not wait
  double execute_seconds = 0;                                // of these in the model
  double tokens_per_second = 0;                              // output, over the last seconds
  // Pool, pages. Each page is one of free, kv (read by a running sequence), cached (kept only for the prefix cache),
  // adapter (loading or resident, pinned or not) and merged (of merged weights, whole or being built): the five add up
  // to `pages`.
  int64_t pages = 0, pages_free = 0, pages_kv = 0, pages_cached = 0, pages_adapter = 0, pages_merged = 0;
  int64_t page_bytes = 0, page_tokens = 16;
  int64_t pages_checked = 0;  // by the audit of the pool, since the start
  // Dynamic merging (docs/design/merging.md). Totals of steps and builds.
  struct Merging {
    std::string chooser = "never", adapter;  // whose merged weights can be used now; "" = nobody's
    int64_t builds = 0, refused = 0, given_back = 0, merged_steps = 0, exclusive_steps = 0, mode_changes = 0;
  };
  Merging merging;
  // Server
  double uptime_seconds = 0;
  bool ready = false, draining = false;
  int64_t queued_tokens = 0, max_queue = 0;
  double predicted_wait_seconds = 0;
  int64_t connections = 0, open_streams = 0;
  int64_t output_bytes = 0, max_output_bytes = 0;      // waiting for readers; the bound
  int64_t cut_slow_readers = 0, cut_slow_writers = 0;  // connections, since the start
  int64_t refused_outputs = 0;                         // answers that had no room to wait for their reader
  int64_t held_bytes = 0, max_held_bytes = 0;          // of bodies and of what answers are made of; the bound
  struct Work {                                        // threads beside the io threads
    const char* name = "";                             // parse, grammar, format
    int64_t waiting = 0, running = 0;                  // tasks
  };
  std::vector<Work> work;
  int64_t refused_connections = 0;                   // beyond the limits
  int64_t log_lines_dropped = 0;                     // total
  int64_t resident_bytes = 0;                        // of the process
  int64_t adapter_bytes = 0, max_adapter_bytes = 0;  // host copies of adapters, cached sums among them; the budget
  int64_t host_reads = 0, host_failed_reads = 0, host_drops = 0;  // copies read again from disk, in vain, and dropped
  double host_read_seconds = 0;                                   // total time of these reads
  int64_t num_sums = 0, sum_bytes = 0;                            // cached weighted sums
  int64_t grammar_bytes = 0, max_grammar_bytes = 0;               // cached grammars with their masks; the bound
  MemoryPlan memory_plan;                                         // made at start
  int64_t heap_used_bytes = 0, heap_free_bytes = 0;               // of the C library; free pages may be resident or not
  int64_t open_files = 0, threads = 0;
  std::vector<AdapterSnapshot> adapters;  // loaded ones
  int64_t num_adapter_names = 0;          // loaded or not
  // Versions that are known and cannot be loaded now, by reason.
  int64_t adapters_changed = 0, adapters_unreadable = 0, adapters_no_memory = 0, adapters_refused = 0;
  int64_t lora_dirs_ok = 0, lora_dirs_empty = 0, lora_dirs_unreadable = 0;  // watched directories by state
  struct TenantSnapshot {
    std::string name;
    int64_t in_flight = 0;
    int64_t prompt_tokens = 0, output_tokens = 0, requests = 0,
            refused = 0;  // tokens computed; those of the prefix cache are apart
    double weight = 1;
    int64_t cached_tokens = 0, waiting = 0, running = 0;
    double service = 0;  // its price, in that of prompt tokens
  };
  std::vector<TenantSnapshot> tenants;
  // Of a member of a fleet with a registry; totals since the start.
  struct Fleet {
    bool is_registry_reachable = false;
    int64_t fetched = 0, failed_fetches = 0, fetched_bytes = 0;  // adapters brought from other replicas
    int64_t wrong_files = 0;                                     // that others sent with other bytes
    int64_t fetching = 0;                                        // adapters, or waiting to be
    int64_t disk_adapters = 0, disk_bytes = 0, max_disk_bytes = 0;
  };
  std::optional<Fleet> fleet;
};

}  // namespace lk
