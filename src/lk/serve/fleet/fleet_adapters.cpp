// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_adapters.h"

#include <algorithm>
#include <filesystem>

#include "lk/registry/drain.h"

namespace lk {

Result<std::unique_ptr<FleetAdapters>> FleetAdapters::open(const FleetAdaptersOptions& options, Log* log,
                                                           std::unique_ptr<Registry> registry) {
  std::unique_ptr<FleetAdapters> self(new FleetAdapters(options, log));
  FleetAdapters* raw = self.get();
  LK_ASSIGN_OR_RETURN(self->cache_, AdapterCache::open(options.directory, options.max_bytes));
  self->registry_ = std::move(registry);
  if (!self->registry_) {
    LK_ASSIGN_OR_RETURN(
        self->registry_,
        open_registry({.url = options.registry,
                       .tls_ca = options.registry_ca,
                       .log = [raw](std::string_view what, std::string_view why) { raw->warn(what, why); }}));
  }
  LK_ASSIGN_OR_RETURN(self->fetcher_,
                      AdapterFetcher::create({.fleet_key = options.key, .tls_ca = options.replica_ca}, *self->cache_,
                                             [raw](const AdapterRecord& record) { return raw->holders(record); }));
  self->catalog_ = std::make_unique<FleetCatalog>(
      options.directory, *self->cache_, [raw](std::string_view what, std::string_view why) { raw->warn(what, why); });
  self->changes_ = std::make_unique<FleetChanges>(
      FleetChanges::Parts{.registry = *self->registry_,
                          .cache = *self->cache_,
                          .catalog = *self->catalog_,
                          .warn = [raw](std::string_view what, std::string_view why) { raw->warn(what, why); }});
  self->member_reader_ =
      std::make_unique<MemberReader>([raw](std::string_view what, std::string_view why) { raw->warn(what, why); });
  return Result<std::unique_ptr<FleetAdapters>>(std::move(self));
}

FleetAdapters::~FleetAdapters() { stop(); }

void FleetAdapters::warn(std::string_view what, std::string_view reason) const {
  if (log_) log_->write(LogLevel::kWarning, "registry", {{"what", what}, {"reason", reason}});
}

void FleetAdapters::attach(AdapterRegistry& adapters, std::vector<std::string> roots) {
  catalog_->attach(adapters);
  changes_->attach(adapters, std::move(roots));
}

void FleetAdapters::join(const Member& member) {
  {
    std::lock_guard lock(mutex_);
    self_ = member;
  }
  changes_->set_publisher(member.id);
  catalog_->load();
  registry_->announce(announcement_of(member));
  registry_->watch(std::string(kMembers), [this](const Registry::Entries& entries) { on_members(entries); });
  registry_->watch(std::string(kAdapters),
                   [this](const Registry::Entries& entries) { catalog_->on_adapters(entries); });
  registry_->watch(std::string(kAliases), [this](const Registry::Entries& entries) { catalog_->on_aliases(entries); });
  registry_->watch(std::string(kDrains), [this, member, asked = false](const Registry::Entries& entries) mutable {
    const auto own = entries.find(std::string(kDrains) + member.id);
    const bool is_meant = own != entries.end() && own->second.value == format_drain(member.incarnation);
    if (is_meant && !std::exchange(asked, true) && options_.on_drain) options_.on_drain();
  });
}

void FleetAdapters::leave() { registry_->withdraw(); }

void FleetAdapters::stop() {
  if (registry_) registry_->close();
  if (changes_) changes_->stop();
  if (fetcher_) fetcher_->stop();
  if (catalog_) catalog_->stop();
}

void FleetAdapters::on_members(const Registry::Entries& entries) {
  std::vector<Member> members = member_reader_->read(entries);
  std::lock_guard lock(mutex_);
  // One that left for a moment still has what it had: it is asked last.
  std::erase_if(members, [this](const Member& member) {
    return member.incarnation == self_.incarnation || member.base != self_.base;
  });
  members_ = std::move(members);
}

// Whoever published it has it for sure; among the others each adapter has its own order.
std::vector<std::string> FleetAdapters::holders(const AdapterRecord& record) const {
  std::lock_guard lock(mutex_);
  std::vector<std::pair<size_t, std::string>> order;
  for (const Member& member : members_)
    order.emplace_back(member.id == record.publisher ? 0 : std::hash<std::string>()(member.url + record.digest) | 1,
                       member.url);
  std::ranges::sort(order);
  std::vector<std::string> urls;
  for (auto& [rank, url] : order) urls.push_back(std::move(url));
  return urls;
}

// --- AdapterSupply

std::shared_ptr<const void> FleetAdapters::hold(const std::string& path) {
  return cache_->hold(std::filesystem::path(path).filename().string());
}

void FleetAdapters::fetch(const std::string& path, std::function<void(const Status&)> done) {
  const std::optional<AdapterRecord> record = catalog_->record_of(std::filesystem::path(path).filename().string());
  if (!record) return done(not_found("the fleet's registry does not know it"));
  fetcher_->fetch(*record, std::move(done));
}

}  // namespace lk
