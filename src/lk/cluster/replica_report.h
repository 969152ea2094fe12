// SPDX-License-Identifier: Apache-2.0
// ReplicaReport: what a replica tells routers about itself, several times a second, as server-sent events of
// GET /v1/fleet/state. Load report and sign of life in one.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct ReplicaReport {
  struct Adapter {
    std::string digest;                       // SHA-256 of its files, hex
    int64_t bytes = 0;                        // on the device
    bool on_device = false, on_host = false;  // in its memory: in pages, or as a copy from which pages are filled
    int64_t in_flight = 0;                    // requests, running or waiting
    bool operator==(const Adapter&) const = default;
  };

  std::string id;       // of the process, random: another one after each start
  std::string model;    // what it calls the base model
  std::string version;  // of the program
  // Of the bits that its base model computes. Replicas with equal ones go on with each other's answers bit for bit.
  std::string numerics;
  bool ready = false, draining = false;
  int64_t weight_bytes = 0;                             // of the base model, which every step reads
  int64_t context = 0;                                  // tokens
  int64_t page_tokens = 16, page_bytes = 0, pages = 0;  // of its pool
  int64_t pages_free = 0;                               // or kept only for the prefix cache
  int64_t running = 0, waiting = 0;                     // requests
  int64_t max_running = 0;                              // that run at once; 0 = it does not say
  int64_t host_bytes = 0;                               // most that copies of adapters may have; 0 = it does not say
  int64_t steps = 0, computed_tokens = 0;               // totals since its start
  double execute_seconds = 0;                           // likewise, in the model
  double stalled_seconds = 0;                           // since its engine last showed life, 0 when idle
  std::vector<std::string> routers;                     // that listen to it, by the name each gave itself; sorted
  // That can be asked for; by name, those that no name means any more by name@version.
  std::map<std::string, Adapter> adapters;
};

// One event's data. Of the adapters only those that differ from `before` are in it: null = all.
std::string format_report(const ReplicaReport& report, const ReplicaReport* before);
// Brings `report` up to date with an event's data. kDataLoss when it is none; the report is as before then.
Status apply_report(std::string_view json, ReplicaReport& report);

}  // namespace lk
