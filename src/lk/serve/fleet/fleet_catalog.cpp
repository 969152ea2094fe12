// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_catalog.h"

#include <algorithm>
#include <utility>

#include <boost/json/object.hpp>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/serve/adapters/adapter_stat.h"

namespace lk {
namespace {

constexpr size_t kMaxCatalog = size_t{256} << 20;

bool is_known_file(const std::string& name) {
  if (std::ranges::find(kAdapterFiles, name) != std::end(kAdapterFiles)) return true;
  const size_t slash = name.find('/');
  return slash != std::string::npos && name.substr(0, slash) == kChatTemplateDirectory && name.ends_with(".jinja");
}

}  // namespace

Status check_adapter_files(const AdapterRecord& record) {
  for (const AdapterRecord::File& file : record.files)
    if (!is_known_file(file.name)) return unsupported("it has a file {}, which no adapter has here", file.name);
  for (int i = 0; i < kNumNeededAdapterFiles; ++i)
    if (std::ranges::find(record.files, kAdapterFiles[i], &AdapterRecord::File::name) == record.files.end())
      return data_loss("it has no {}", kAdapterFiles[i]);
  return Status();
}

FleetCatalog::FleetCatalog(std::string directory, AdapterCache& cache, Warn warn)
    : directory_(std::move(directory)),
      cache_(cache),
      warn_(std::move(warn)),
      bench_(std::make_unique<Workshop>(std::vector<Workshop::Bench>{{.name = "lk-catalog", .num_threads = 1}})) {}

void FleetCatalog::load() {
  const Result<std::string> text = read_file(join_path(directory_, "catalog.json"), kMaxCatalog);
  if (text.status().code() == StatusCode::kNotFound) return;
  Result<boost::json::object> catalog = text.ok() ? parse_json_object(*text, "catalog.json") : text.status();
  if (!catalog.ok()) return warn_("catalog_not_readable", catalog.status().message());
  Registry::Entries adapters_then, aliases_then;
  for (const auto& [name, value] : *catalog)
    if (value.is_string())
      (std::string_view(name).starts_with(kAliases) ? aliases_then : adapters_then)[name].value = value.get_string();
  on_adapters(adapters_then);
  on_aliases(aliases_then);
}

void FleetCatalog::stop() {
  std::unique_ptr<Workshop> bench;
  {
    std::lock_guard lock(mutex_);
    bench = std::move(bench_);
  }
  bench.reset();  // what it is writing is finished
  bool unsaved = false;
  {
    std::lock_guard lock(mutex_);
    unsaved = !is_saved_;
  }
  if (unsaved) write();
}

// --- Adapters

void FleetCatalog::on_adapters(const Registry::Entries& entries) {
  Registry::Entries news;
  bool changed = false;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries) {
      const auto known = entries_.find(key);
      const bool is_known = known != entries_.end() && known->second.value == entry.value;
      if (!is_known || refused_.contains(key)) news.emplace(key, entry);  // its name may be free by now
    }
  }
  for (const auto& [key, entry] : news) changed |= apply(key, entry);
  apply_aliases();
  if (changed) save();
}

bool FleetCatalog::apply(const std::string& key, const Registry::Entry& entry) {
  Result<AdapterRecord> record = parse_adapter(key, entry.value);
  // What is being proved is nothing yet, and may never be: nobody keeps it.
  if (record.ok() && record->state == AdapterRecord::State::kPending) return false;
  const bool is_ready = record.ok() && record->state == AdapterRecord::State::kReady;
  if (is_ready)
    if (const Status files = check_adapter_files(*record); !files.ok()) record = files;
  std::string ignored = record.ok() ? "" : record.status().message();
  bool refused = false;
  if (record.ok() && is_ready) {
    const std::string content = record->content();
    {
      std::lock_guard lock(mutex_);
      contents_[content].record = *record;
      contents_[content].keys.insert(key);
    }
    if (adapters_->offer_fleet({.name = record->name,
                                .path = cache_.path(content),
                                .digest = record->digest,
                                .tenant = record->tenant,
                                .version = record->version})) {
      std::lock_guard lock(mutex_);
      offered_.insert(key);
    } else {
      refused = true;
      ignored = "this server has an adapter or an alias of its own under that name";
    }
  } else if (record.ok()) {
    take_away(key, *record);
  }
  bool changed = false;
  {
    std::lock_guard lock(mutex_);
    const auto [known, is_new] = entries_.try_emplace(key);
    if (is_new && record.ok()) ++versions_of_[record->tenant];
    changed = std::exchange(known->second, entry).value != entry.value;
    if (refused)
      refused_.insert(key);
    else
      refused_.erase(key);
  }
  if (!ignored.empty() && is_news(key, entry)) warn_("adapter_ignored", fmt::format("{}: {}", key, ignored));
  return changed;
}

void FleetCatalog::take_away(const std::string& key, const AdapterRecord& deleted) {
  bool offered = false;
  Registry::Entry before;
  {
    std::lock_guard lock(mutex_);
    offered = offered_.erase(key) > 0;
    if (const auto known = entries_.find(key); known != entries_.end()) before = known->second;
  }
  if (offered) (void)adapters_->unload(fmt::format("{}@{}", deleted.name, deleted.version), nullptr);
  const Result<AdapterRecord> old = parse_adapter(key, before.value);
  if (!old.ok() || old->files.empty()) return;
  {
    std::lock_guard lock(mutex_);
    if (const auto content = contents_.find(old->content()); content != contents_.end()) {
      content->second.keys.erase(key);
      if (content->second.keys.empty()) contents_.erase(content);
    }
  }
  release(old->content());
}

bool FleetCatalog::is_news(const std::string& key, const Registry::Entry& entry) {
  std::lock_guard lock(mutex_);
  return std::exchange(told_[key], entry.revision + 1) != entry.revision + 1;
}

std::optional<AdapterRecord> FleetCatalog::record_of(const std::string& content) const {
  std::lock_guard lock(mutex_);
  const auto found = contents_.find(content);
  return found == contents_.end() ? std::nullopt : std::optional(found->second.record);
}

int64_t FleetCatalog::num_versions(const std::string& tenant) const {
  std::lock_guard lock(mutex_);
  const auto found = versions_of_.find(tenant);
  return found == versions_of_.end() ? 0 : found->second;
}

int64_t FleetCatalog::last_version(const std::string& name) const {
  const std::string prefix = versions_key(name);
  std::lock_guard lock(mutex_);
  int64_t last = 0;
  for (auto known = entries_.lower_bound(prefix); known != entries_.end() && known->first.starts_with(prefix); ++known)
    last = std::max(last, version_in(known->first));
  return last;
}

void FleetCatalog::release(const std::string& content) {
  if (!record_of(content)) cache_.release(content);
}

// --- Aliases

void FleetCatalog::on_aliases(const Registry::Entries& entries) {
  bool changed = false;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries) {
      Registry::Entry& known = aliases_[key];
      changed |= known.value != entry.value;
      known = entry;
    }
  }
  apply_aliases();
  if (changed) save();
}

void FleetCatalog::apply_aliases() {
  Registry::Entries wanted;
  {
    std::lock_guard lock(mutex_);
    wanted = aliases_;
  }
  const std::map<std::string, std::string> now = adapters_->aliases();
  for (const auto& [key, entry] : wanted) {
    const Result<std::string> target = parse_alias(key, entry.value);
    const std::string alias = alias_in(key);
    const auto known = now.find(alias);
    Status status = target.ok() ? Status() : target.status();
    if (status.ok() && target->empty()) {
      if (known != now.end()) (void)adapters_->remove_alias(alias);
    } else if (status.ok() && (known == now.end() || known->second != *target)) {
      status = adapters_->set_alias(alias, *target);
    }
    if (!status.ok() && is_news(key, entry)) warn_("alias_ignored", fmt::format("{}: {}", key, status.message()));
  }
}

bool FleetCatalog::has_alias(const std::string& alias) const {
  std::lock_guard lock(mutex_);
  const auto found = aliases_.find(alias_key(alias));
  const Result<std::string> target =
      found == aliases_.end() ? Result<std::string>(std::string()) : parse_alias(found->first, found->second.value);
  return target.ok() && !target->empty();
}

// --- The file

// However many changes come meanwhile, they are one more writing of it.
void FleetCatalog::save() {
  std::lock_guard lock(mutex_);
  is_saved_ = false;
  if (std::exchange(save_waits_, true) || !bench_) return;
  bench_->submit(0, [this](const std::stop_token&) {
    const Status status = guarded("the fleet's catalog", [this] { write(); });
    if (!status.ok()) warn_("catalog_not_written", status.message());
    return Workshop::Finish();
  });
}

void FleetCatalog::write() {
  boost::json::object catalog;
  {
    std::lock_guard lock(mutex_);
    save_waits_ = false;
    is_saved_ = true;
    for (const Registry::Entries* entries : {&entries_, &aliases_})
      for (const auto& [key, entry] : *entries) catalog[key] = entry.value;
  }
  const Status status = write_file_atomic(join_path(directory_, "catalog.json"), json_text(catalog));
  if (status.ok()) return;
  warn_("catalog_not_written", status.message());
  std::lock_guard lock(mutex_);
  is_saved_ = false;  // with the next change, or at the end
}

}  // namespace lk
