// SPDX-License-Identifier: Apache-2.0
// AdapterTable: what names, versions and aliases mean: which versions are loaded, and what is known of those that are
// not. Plain data: the registry holds a lock around it.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "lk/serve/adapters/adapter_version.h"
#include "lk/serve/adapters/known_adapter.h"

namespace lk {

// One version of a name. Version 0: the name is known, its number depends on the content and is decided by a load.
struct AdapterKey {
  std::string name;
  int64_t version = 0;
  friend auto operator<=>(const AdapterKey&, const AdapterKey&) = default;
};

// "name@3" -> ("name", 3); version 0 when none is given, -1 when it is not a number.
AdapterKey split_version(std::string_view text);
std::string exact_name(const AdapterKey& key);  // "name@3"

class AdapterTable {
 public:
  // Without a lease it is loaded when somebody asks.
  struct Slot {
    AdapterLease lease;
    std::unique_ptr<KnownAdapter> known;  // null: loaded by hand, not to be loaded again

    const std::string& tenant() const { return lease ? lease->tenant : known->tenant; }
    bool persisted() const { return lease ? lease->persisted : known->stored(); }
    bool is_watched() const { return known && known->watched(); }
    bool is_fleet() const { return known && known->fleet; }
  };
  struct Name {
    std::map<int64_t, Slot> versions;
    int64_t default_version = 0;
  };
  struct Found {
    const std::string* name = nullptr;
    int64_t version = 0;
    const Slot* slot = nullptr;  // null: not there
    AdapterKey key() const { return {*name, version}; }
  };

  // --- Looking up
  Found find(const std::string& text) const;  // name, name@version or alias
  const Name* name(const std::string& name) const;
  const Slot* slot(const AdapterKey& key) const;
  const std::map<std::string, Name>& names() const { return names_; }
  const std::set<AdapterKey>& troubled() const { return troubled_; }
  // Loaded, and could be loaded again.
  const std::set<AdapterKey>& idle() const { return idle_; }
  // Of one tenant.
  const std::set<AdapterKey>& owned_by(const std::string& tenant) const;
  // Versions that cannot be loaded, by reason.
  int64_t num_troubled(Trouble::Kind kind) const { return num_troubled_[kind]; }
  bool is_default(const AdapterKey& key) const;

  // --- Changing
  // What is known of a version, loaded or not. A new name means its highest version.
  void know(const AdapterKey& key, std::unique_ptr<KnownAdapter> known);
  // Loaded: it becomes what the name means unless a higher version is there.
  void put(const AdapterKey& key, AdapterLease lease);
  // It is known, and not loaded any more.
  AdapterLease take_lease(const AdapterKey& key);
  // Of one that is known and not loaded.
  void set_trouble(const AdapterKey& key, Trouble trouble);
  void postpone(const AdapterKey& key, std::chrono::steady_clock::time_point retry_at);
  void unpin(const AdapterKey& key);
  void set_root(const AdapterKey& key, std::shared_ptr<const std::string> root);
  void set_content(const AdapterKey& key, const std::string& digest, bool proved);
  // The name means its highest version then; it is gone with its last.
  void erase(const AdapterKey& key);

  std::map<std::string, std::string> aliases;  // alias -> name or name@version
  struct Last {
    int64_t version = 0;
    std::string digest;
  };
  std::map<std::string, Last> last_version;  // of names that are here, or that no store remembers

 private:
  Slot* mutable_slot(const AdapterKey& key);
  void note_owner(const AdapterKey& key, const Slot& slot, bool there);
  void clear_trouble(const AdapterKey& key, Slot& slot);

  std::map<std::string, Name> names_;
  std::set<AdapterKey> troubled_, idle_;
  std::map<std::string, std::set<AdapterKey>> owned_;  // by tenant; none is empty
  int64_t num_troubled_[Trouble::kNumKinds] = {};
};

}  // namespace lk
