// SPDX-License-Identifier: Apache-2.0
// UsageLedger: what each API key has used since the start, exactly and for every key (metrics keep a bounded number of
// names). Bounded by the keys there are. Thread safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace lk {

struct KeyUsage {
  int64_t requests = 0, prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // cached ones are among the prompt's

  void add(const KeyUsage& other) {
    requests += other.requests;
    prompt_tokens += other.prompt_tokens;
    cached_tokens += other.cached_tokens;
    output_tokens += other.output_tokens;
  }
};

class UsageLedger {
 public:
  struct Entry {
    std::string tenant;  // which a key keeps
    KeyUsage usage;
  };
  void add(const std::string& key, const std::string& tenant, const KeyUsage& used) {
    const std::lock_guard lock(mutex_);
    Entry& entry = keys_[key];
    entry.tenant = tenant;
    entry.usage.add(used);
  }
  std::map<std::string, Entry> all() const {
    const std::lock_guard lock(mutex_);
    return keys_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Entry> keys_;
};

}  // namespace lk
