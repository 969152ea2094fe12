// SPDX-License-Identifier: Apache-2.0
// AdapterVersion: one immutable version of an adapter (or one weighted sum of adapters), registered with the engine.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/serve/http/engine_service.h"

namespace lk {

// The last reference frees it in the engine.
class AdapterVersion {
 public:
  AdapterVersion(EngineService& service, const Adapter& content, Engine::PreparedAdapter prepared);
  ~AdapterVersion();
  AdapterVersion(const AdapterVersion&) = delete;
  AdapterVersion& operator=(const AdapterVersion&) = delete;

  std::string name;
  int64_t version = 0;
  std::string path, digest;
  int64_t rank = 0, file_bytes = 0;
  int64_t host_bytes = 0;  // of its copy in host memory, while it has one
  std::vector<std::string> targets, warnings;
  std::vector<int32_t> invocation_tokens;  // of an activated adapter
  std::shared_ptr<const void> files;       // keeps its directory as it is; or null
  std::shared_ptr<const TextSide> text;    // its own or the base's; null: the base's
  double load_seconds = 0;
  int64_t created = 0;               // Unix seconds
  float probe_shift = 0;             // largest change of a log-probability of the probe prompt against the base
  std::string tenant;                // whose key loaded it; "" = nobody's
  bool persisted = false;            // in the state store
  int64_t replaced = 0;              // what its name meant before it came; 0 = nothing
  std::atomic<uint64_t> stamp{0};    // of its files before they were read (adapter_stat.h)
  std::atomic<int64_t> last_use{0};  // count of the registry's uses
  std::atomic<bool> pinned{false};
  std::atomic<int64_t> requests{0};
  bool exact = true;  // never merged
  // Lets it run merged; before it is published. A probe that was run before changes nothing for anybody else.
  void allow_merging();
  AdapterId id() const { return id_; }
  const std::shared_ptr<HostAdapter>& host() const { return host_; }
  // Called once the engine has freed it, with the bytes of pages; on the engine thread.
  void on_freed(std::function<void(int64_t page_bytes)> callback) { on_freed_ = std::move(callback); }

 private:
  std::shared_ptr<HostAdapter> host_;
  EngineService& service_;
  AdapterId id_;
  std::function<void(int64_t)> on_freed_;
};
using AdapterLease = std::shared_ptr<AdapterVersion>;

}  // namespace lk
