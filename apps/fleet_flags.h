// SPDX-License-Identifier: Apache-2.0
// --fleet: the part of `serve` and `route` that speaks with the registry.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "lk/cluster/router.h"
#include "lk/registry/member.h"
#include "lk/serve/fleet/fleet_adapters.h"

namespace lk::apps {

using OperatorLog = std::function<void(std::string_view event, std::string_view detail)>;

// What names the registry; for all who speak with it.
struct RegistryFlags {
  std::string url, tls_ca;
  void add_to(CLI::App& command, const char* help);
  bool given() const { return !url.empty(); }
  Result<std::unique_ptr<Registry>> open(OperatorLog log) const;
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

// A key on one line: of the file, or of the variable; "" when neither is given.
Result<std::string> read_key(const std::string& file, const char* variable);

}  // namespace lk::apps
