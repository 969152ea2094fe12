// SPDX-License-Identifier: Apache-2.0
// Lists of what the registry offers.
#include <limits>

#include "lk/serve/adapters/adapter_registry.h"

namespace lk {
namespace {

constexpr size_t kListedAtATime = 256;  // entries, under the lock

}  // namespace

AdapterSnapshot AdapterRegistry::describe(const AdapterKey& key, const AdapterTable::Slot& slot,
                                          const EngineService::Snapshot& engine) const {
  if (!slot.lease) {
    const KnownAdapter& known = *slot.known;
    const Trouble* trouble = known.trouble.get();
    return {.name = key.name,
            .version = key.version,
            .digest = known.digest,
            .path = known.directory(key.name),
            .tenant = known.tenant,
            .state = trouble ? "unavailable" : "known",
            .reason = trouble ? fmt::format("{}: {}", to_string(trouble->kind), trouble->reason) : "",
            .tier = "disk",
            .pinned = known.pinned,
            .is_default = table_.is_default(key)};
  }
  const AdapterVersion& version = *slot.lease;
  AdapterSnapshot s{.name = version.name,
                    .version = version.version,
                    .digest = version.digest,
                    .path = version.path,
                    .tenant = version.tenant,
                    .state = "loaded",
                    .tier = version.host()->on_host() ? "host" : "disk",
                    .rank = version.rank,
                    .targets = version.targets,
                    .host_bytes = version.host()->on_host() ? version.host_bytes : 0,
                    .pinned = version.pinned.load(),
                    .is_default = table_.is_default(key),
                    .exact = version.exact,
                    .requests = version.requests.load(),
                    .load_seconds = version.load_seconds};
  const auto it = engine.adapters.find(version.id());
  if (it == engine.adapters.end()) return s;
  if (it->second.state == AdapterState::kResident) s.tier = "device";
  if (it->second.state == AdapterState::kLoading) s.tier = "loading";
  s.device_bytes = it->second.bytes;
  s.running = it->second.running;
  s.waiting = it->second.waiting;
  return s;
}

// Calls visit(key, slot) for each version behind `after` until it returns false. The lock is let go of now and then:
// what is added or taken away meanwhile is seen or not.
template <class Visit>
void AdapterRegistry::walk(const std::string& after, Visit visit) const {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  AdapterKey last = split_version(after);
  if (last.version <= 0 && !last.name.empty()) last.version = kAll;  // all of that name
  for (;;) {
    std::lock_guard lock(mutex_);
    size_t looked = 0;
    auto it = table_.names().lower_bound(last.name);
    for (; it != table_.names().end() && looked < kListedAtATime; ++it) {
      const auto& versions = it->second.versions;
      for (auto slot = it->first == last.name ? versions.upper_bound(last.version) : versions.begin();
           slot != versions.end(); ++slot, ++looked)
        if (!visit(AdapterKey{it->first, slot->first}, slot->second)) return;
      ++looked;
      last = {it->first, kAll};
    }
    if (it == table_.names().end()) return;
  }
}

AdapterRegistry::AdapterPage AdapterRegistry::list(const EngineService::Snapshot& engine, const std::string& after,
                                                   size_t limit, const Shown& shown) const {
  AdapterPage page;
  walk(after, [&](const AdapterKey& key, const AdapterTable::Slot& slot) {
    if (shown && !shown(key.name)) return true;
    page.has_more = page.entries.size() == limit;
    if (!page.has_more) page.entries.push_back(describe(key, slot, engine));
    return !page.has_more;
  });
  return page;
}

std::vector<AdapterSnapshot> AdapterRegistry::list_loaded(const EngineService::Snapshot& engine) const {
  std::vector<AdapterSnapshot> all;
  walk("", [&](const AdapterKey& key, const AdapterTable::Slot& slot) {
    if (slot.lease) all.push_back(describe(key, slot, engine));
    return true;
  });
  return all;
}

AdapterRegistry::NamePage AdapterRegistry::list_names(const std::string& after, size_t limit,
                                                      const Shown& shown) const {
  NamePage page;
  std::string last = after;
  for (;;) {
    std::lock_guard lock(mutex_);
    auto name = table_.names().upper_bound(last);
    auto alias = table_.aliases.upper_bound(last);
    for (size_t looked = 0; looked < kListedAtATime; ++looked) {
      if (name == table_.names().end() && alias == table_.aliases.end()) return page;
      const bool is_alias =
          name == table_.names().end() || (alias != table_.aliases.end() && alias->first < name->first);
      Listed entry;
      bool can_be_asked_for = true;
      if (is_alias) {
        entry = {.name = alias->first, .path = {}, .target = alias->second};
        ++alias;
      } else {
        entry.name = name->first;
        const auto slot = name->second.versions.find(name->second.default_version);
        can_be_asked_for = slot != name->second.versions.end() && (slot->second.lease || !slot->second.known->trouble);
        if (can_be_asked_for) {
          entry.path = slot->second.lease ? slot->second.lease->path : slot->second.known->directory(entry.name);
          entry.created = slot->second.lease ? slot->second.lease->created : 0;
        }
        ++name;
      }
      last = entry.name;
      if (!can_be_asked_for || (shown && !shown(entry.name))) continue;
      if (page.entries.size() == limit) {
        page.has_more = true;
        return page;
      }
      page.entries.push_back(std::move(entry));
    }
  }
}

std::optional<AdapterSnapshot> AdapterRegistry::find(const std::string& name,
                                                     const EngineService::Snapshot& engine) const {
  std::lock_guard lock(mutex_);
  const AdapterTable::Found found = table_.find(name);
  if (!found.slot) return std::nullopt;
  return describe(found.key(), *found.slot, engine);
}

std::vector<AdapterLease> AdapterRegistry::versions() const {
  std::lock_guard lock(mutex_);
  std::vector<AdapterLease> all;
  for (const auto& [name, entry] : table_.names())
    if (const auto slot = entry.versions.find(entry.default_version);
        slot != entry.versions.end() && slot->second.lease)
      all.push_back(slot->second.lease);
  return all;
}

AdapterRegistry::Counts AdapterRegistry::counts() const {
  std::lock_guard lock(mutex_);
  return {.names = std::ssize(table_.names()),
          .changed = table_.num_troubled(Trouble::kChanged),
          .unreadable = table_.num_troubled(Trouble::kUnreadable),
          .no_memory = table_.num_troubled(Trouble::kNoMemory),
          .refused = table_.num_troubled(Trouble::kRefused)};
}

}  // namespace lk
