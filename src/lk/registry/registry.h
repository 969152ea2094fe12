// SPDX-License-Identifier: Apache-2.0
// Registry: what the processes of a fleet agree on: a few thousand small values by name, which outlive every process,
// and of which everybody sees changes within a moment. Nothing of a request's path: when it is away, silent or slow,
// what was seen last goes on being true.
//
// Names are relative to the fleet: "members/a", "adapters/sql/3". Values are JSON texts of a few kilobytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

class Registry {
 public:
  struct Entry {
    std::string value;
    int64_t revision = 0;  // another one after each change
    bool operator==(const Entry&) const = default;
  };
  using Entries = std::map<std::string, Entry>;  // by name

  // All of it happens, or nothing: when one of `unchanged` has another revision by then (0: it must not be there), or
  // something below a prefix of `none_newer` a greater one (0: nothing must be there). So whoever decides by a list
  // says with newest_of() that it still is the list.
  struct Transaction {
    std::vector<std::pair<std::string, int64_t>> unchanged, none_newer;
    std::vector<std::pair<std::string, std::string>> puts;  // name, value
    std::vector<std::string> removals;
  };

  // The greatest revision in a list, 0 of an empty one.
  static int64_t newest_of(const Entries& entries) {
    int64_t newest = 0;
    for (const auto& [name, entry] : entries) newest = std::max(newest, entry.revision);
    return newest;
  }

  // Somebody's place under a name, for as long as it lives.
  struct Announcement {
    std::string name, value;
    // What stands there was not put by this process: whether it may be replaced.
    std::function<bool(const std::string& found)> may_replace;
    // Name and value of what all who announce themselves have in common: put there by the first, for good. Who has
    // another value is not announced. May be empty.
    std::pair<std::string, std::string> agreed;
  };

  // All methods may be called by any thread, but not from a callback of the registry. What is waited for takes a few
  // seconds at most, then kUnavailable: it may have happened all the same.
  virtual ~Registry() = default;

  virtual Result<Entries> list(const std::string& prefix) = 0;
  // False: something had changed. A transaction that was sent twice, because its first answer was lost, says so, too:
  // look before trying again.
  virtual Result<bool> commit(const Transaction& transaction) = 0;
  // `on_change` gets all entries below the prefix when they were first seen and after each change, on a thread of the
  // registry; never because the registry is away. Until the registry goes.
  virtual void watch(const std::string& prefix, std::function<void(const Entries& entries)> on_change) = 0;
  // Keeps the value there, whatever becomes of the registry meanwhile, until withdraw() or until this process has been
  // silent for some seconds. Another value under the same name replaces the first.
  virtual void announce(Announcement announcement) = 0;
  // Takes what is announced away; two seconds at most.
  virtual void withdraw() = 0;
  // Ends everything: whoever waits for it gets kCancelled, and no callback runs any more when this returns.
  virtual void close() = 0;
  // Whether it answered lately.
  virtual bool is_reachable() const = 0;
};

struct RegistryOptions {
  // etcd://HOST:PORT[,HOST:PORT...]/FLEET, or etcds:// for TLS; kubernetes://[HOST:PORT]/NAMESPACE/SERVICE, without a
  // host that of the pod it runs in; kubernetes+http:// without TLS.
  std::string url;
  std::string tls_ca;      // PEM file of authorities instead of the system's
  std::string token_file;  // of an account at Kubernetes; default: the pod's
  // A line for the operator, on any thread.
  std::function<void(std::string_view event, std::string_view detail)> log;
};

// Does not wait for it: one that is away now is there later. kInvalidArgument: the url.
Result<std::unique_ptr<Registry>> open_registry(const RegistryOptions& options);

}  // namespace lk
