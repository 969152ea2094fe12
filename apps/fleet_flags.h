// SPDX-License-Identifier: Apache-2.0
// --fleet: the part of `serve` and `route` that speaks with the registry.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "lk/base/workshop.h"
#include "lk/cluster/router.h"
#include "lk/registry/member.h"
#include "lk/serve/access/account_store.h"
#include "lk/serve/fleet/fleet_adapters.h"

namespace lk::apps {

using OperatorLog = std::function<void(std::string_view event, std::string_view detail)>;

// What names the registry; for all who speak with it.
struct RegistryFlags {
  std::string url, tls_ca, keys_file;
  void add_to(CLI::App& command, const char* help);
  bool given() const { return !url.empty(); }
  Result<std::unique_ptr<Registry>> open(OperatorLog log) const;
  // --fleet-keys: of who judges keys by the registry.
  void add_keys_to(CLI::App& command, const char* group);
  bool has_keys() const { return !keys_file.empty(); }
  Result<std::unique_ptr<AccountStore>> open_accounts() const;
};

// Of a replica.
struct MemberFlags {
  RegistryFlags registry;
  std::string advertise, id, key_file, directory, disk = "16GiB", replica_ca;
  void add_to(CLI::App& command);
  // `listening`: "HOST:PORT", as the server says it.
  Result<Member> member(const std::string& listening, bool tls) const;
  // What can be said before the server listens; nothing without --fleet. `state`: the file of the server's state, or
  // "".
  Result<std::optional<FleetAdaptersOptions>> options(const std::string& host, const std::string& state) const;
};

// From now on the router's replicas are those of the registry, too.
void follow_members(Registry& registry, Router& router, OperatorLog log);

// Who of a fleet's routers leads, and what that one has planned, in the registry: leader/planner is a place of one,
// which goes with its lease; a plan is written only while its writer still has the place, so that of two that think
// they lead one is heard. Must outlive the router, whose thread publishes.
class PlanBoard {
 public:
  PlanBoard(Registry& registry, OperatorLog log) : registry_(registry), log_(std::move(log)) {}
  // `may_lead`: the router makes plans.
  void follow(Router& router, bool may_lead);
  void publish(const FleetPlan& plan);  // any thread; returns at once

 private:
  void write(const std::string& value);

  Registry& registry_;
  const OperatorLog log_;
  std::mutex mutex_;
  int64_t place_ = 0;  // guarded by mutex_: revision of the place this router has; 0 = it does not lead
  Workshop writer_{std::vector<Workshop::Bench>{{.name = "lk-route-plans"}}};  // last: its jobs use the others
};

// A key on one line: of the file, or of the variable; "" when neither is given.
Result<std::string> read_key(const std::string& file, const char* variable);

}  // namespace lk::apps
