// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace lk {

AdapterKey split_version(std::string_view text) {
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return {std::string(text), 0};
  int64_t version = -1;
  const std::string_view digits = text.substr(at + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), version);
  // A version has one name: "01" is none of them.
  if (error != std::errc() || end != digits.data() + digits.size() || version <= 0 || digits[0] == '0') version = -1;
  return {std::string(text.substr(0, at)), version};
}

std::string exact_name(const AdapterKey& key) { return fmt::format("{}@{}", key.name, key.version); }

// --- Looking up

const AdapterTable::Name* AdapterTable::name(const std::string& name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : &found->second;
}

const AdapterTable::Slot* AdapterTable::slot(const AdapterKey& key) const {
  const Name* entry = name(key.name);
  if (!entry) return nullptr;
  const auto found = entry->versions.find(key.version);
  return found == entry->versions.end() ? nullptr : &found->second;
}

AdapterTable::Slot* AdapterTable::mutable_slot(const AdapterKey& key) { return const_cast<Slot*>(slot(key)); }

AdapterTable::Found AdapterTable::find(const std::string& text) const {
  const auto alias = aliases.find(text);
  const auto [name, version] = split_version(alias == aliases.end() ? text : alias->second);
  const auto it = names_.find(name);
  if (it == names_.end() || version < 0) return {};
  const int64_t number = version == 0 ? it->second.default_version : version;
  if (const Slot* found = slot({name, number})) return {.name = &it->first, .version = number, .slot = found};
  // Which number its content has is known once it is loaded.
  if (it->second.default_version != 0) return {};
  return {.name = &it->first, .version = 0, .slot = slot({name, 0})};
}

const std::set<AdapterKey>& AdapterTable::owned_by(const std::string& tenant) const {
  static const std::set<AdapterKey> none;
  const auto found = owned_.find(tenant);
  return found == owned_.end() ? none : found->second;
}

bool AdapterTable::is_default(const AdapterKey& key) const {
  const Name* entry = name(key.name);
  return entry && entry->default_version == key.version;
}

// --- Changing

void AdapterTable::note_owner(const AdapterKey& key, const Slot& slot, bool there) {
  if (!slot.lease && !slot.known) return;
  const std::string& tenant = slot.tenant();
  if (tenant.empty()) return;
  if (there) {
    owned_[tenant].insert(key);
  } else if (const auto owned = owned_.find(tenant); owned != owned_.end()) {
    owned->second.erase(key);
    if (owned->second.empty()) owned_.erase(owned);
  }
}

void AdapterTable::clear_trouble(const AdapterKey& key, Slot& slot) {
  if (!slot.known || !slot.known->trouble) return;
  --num_troubled_[slot.known->trouble->kind];
  slot.known->trouble = nullptr;
  troubled_.erase(key);
}

void AdapterTable::know(const AdapterKey& key, std::unique_ptr<KnownAdapter> known) {
  Name& entry = names_[key.name];
  Slot& slot = entry.versions[key.version];
  note_owner(key, slot, false);
  clear_trouble(key, slot);
  slot.known = std::move(known);
  if (slot.lease) idle_.insert(key);
  note_owner(key, slot, true);
  entry.default_version = std::max(entry.default_version, key.version);
}

void AdapterTable::put(const AdapterKey& key, AdapterLease lease) {
  Name& entry = names_[key.name];
  Slot& slot = entry.versions[key.version];
  note_owner(key, slot, false);
  clear_trouble(key, slot);
  slot.lease = std::move(lease);
  if (slot.known) idle_.insert(key);
  note_owner(key, slot, true);
  entry.default_version = std::max(entry.default_version, key.version);
}

AdapterLease AdapterTable::take_lease(const AdapterKey& key) {
  Slot* slot = mutable_slot(key);
  idle_.erase(key);
  return std::exchange(slot->lease, nullptr);
}

void AdapterTable::set_trouble(const AdapterKey& key, Trouble trouble) {
  Slot* slot = mutable_slot(key);
  clear_trouble(key, *slot);
  ++num_troubled_[trouble.kind];
  slot->known->trouble = std::make_unique<Trouble>(std::move(trouble));
  troubled_.insert(key);
}

void AdapterTable::postpone(const AdapterKey& key, std::chrono::steady_clock::time_point retry_at) {
  mutable_slot(key)->known->trouble->retry_at = retry_at;
}

void AdapterTable::unpin(const AdapterKey& key) {
  if (Slot* slot = mutable_slot(key); slot && slot->known) slot->known->pinned = false;
}

void AdapterTable::set_root(const AdapterKey& key, std::shared_ptr<const std::string> root) {
  mutable_slot(key)->known->root = std::move(root);
}

void AdapterTable::set_content(const AdapterKey& key, const std::string& digest, bool proved) {
  KnownAdapter& known = *mutable_slot(key)->known;
  known.digest = digest;
  known.proved = proved;
}

void AdapterTable::erase(const AdapterKey& key) {
  const auto entry = names_.find(key.name);
  if (entry == names_.end()) return;
  auto& [versions, default_version] = entry->second;
  const auto found = versions.find(key.version);
  if (found == versions.end()) return;
  note_owner(key, found->second, false);
  clear_trouble(key, found->second);
  idle_.erase(key);
  versions.erase(found);
  if (versions.empty())
    names_.erase(entry);
  else if (!versions.contains(default_version))
    default_version = versions.rbegin()->first;
}

}  // namespace lk
