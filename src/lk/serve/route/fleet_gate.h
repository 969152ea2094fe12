// SPDX-License-Identifier: Apache-2.0
// FleetGate: the door of `lorikeet route`. It goes by the server's own table of routes, and either
//   judges keys itself, from the same state file (or fleet's registry) and plain keys as a server (AccessControl):
//     wrong keys are refused before a replica hears of them, tenants' limits hold here for the whole fleet, and
//     replicas are told whose request it is (serve/access/principal_json.h);
//   or, with a fleet key and no keys of its own, passes clients' keys on for replicas to judge;
//   or, with neither, stands in front of replicas without keys and keeps web pages out.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "lk/cluster/router_gate.h"
#include "lk/serve/access/access_control.h"
#include "lk/serve/access/account_store.h"

namespace lk {

struct FleetGateOptions {
  bool judges = false;  // by `store` and `access`
  AccessOptions access;
  std::string fleet_key;  // of scope fleet, at every replica; "" = replicas without keys
  bool insecure = false;  // any name of this machine is answered to, also without keys
  int64_t max_body_bytes = 8 << 20;
  std::string version;
  std::function<void(std::string_view event, std::string_view detail)> log;  // any thread
};

class FleetGate : public RouterGate {
 public:
  // `store` may be null.
  static Result<std::unique_ptr<FleetGate>> create(const FleetGateOptions& options,
                                                   std::unique_ptr<AccountStore> store);
  virtual bool open() const = 0;  // everybody is let in
};

}  // namespace lk
