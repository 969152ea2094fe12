// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_adapters.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <filesystem>

#include <boost/json/object.hpp>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/registry/drain.h"
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kMaxTasks = 256;  // changes of the registry that wait
constexpr int kTaskThreads = 2;
constexpr int kReserveTries = 8;     // others may publish the same name at the same time
constexpr size_t kOperations = 100;  // of one transaction; etcd takes 128
constexpr int64_t kForm = 1;
constexpr size_t kMaxCatalog = size_t{256} << 20;

bool is_known_file(const std::string& name) {
  if (std::ranges::find(kAdapterFiles, name) != std::end(kAdapterFiles)) return true;
  const size_t slash = name.find('/');
  return slash != std::string::npos && name.substr(0, slash) == kChatTemplateDirectory && name.ends_with(".jinja");
}

// Nothing is fetched that no loader would read.
Status check_files(const AdapterRecord& record) {
  for (const AdapterRecord::File& file : record.files)
    if (!is_known_file(file.name)) return unsupported("it has a file {}, which no adapter has here", file.name);
  for (int i = 0; i < kNumNeededAdapterFiles; ++i)
    if (std::ranges::find(record.files, kAdapterFiles[i], &AdapterRecord::File::name) == record.files.end())
      return data_loss("it has no {}", kAdapterFiles[i]);
  return Status();
}

int64_t version_in(std::string_view key) {
  int64_t version = 0;
  const std::string_view digits = key.substr(key.rfind('/') + 1);
  (void)std::from_chars(digits.data(), digits.data() + digits.size(), version);
  return version;
}

}  // namespace

std::vector<std::string> adapter_file_names(const std::string& directory) {
  std::vector<std::string> names(std::begin(kAdapterFiles), std::end(kAdapterFiles));
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(join_path(directory, kChatTemplateDirectory), error))
    if (const std::string name = item.path().filename().string(); name.ends_with(".jinja") && is_valid_name(name))
      names.push_back(join_path(kChatTemplateDirectory, name));
  return names;
}

// --- Life

Result<std::unique_ptr<FleetAdapters>> FleetAdapters::open(const FleetAdaptersOptions& options, Log* log) {
  std::unique_ptr<FleetAdapters> self(new FleetAdapters(options, log));
  FleetAdapters* raw = self.get();
  LK_ASSIGN_OR_RETURN(self->cache_, AdapterCache::open(options.directory, options.max_bytes));
  LK_ASSIGN_OR_RETURN(
      self->registry_,
      open_registry({.url = options.registry,
                     .tls_ca = options.registry_ca,
                     .log = [raw](std::string_view what, std::string_view why) { raw->warn(what, why); }}));
  LK_ASSIGN_OR_RETURN(self->fetcher_,
                      AdapterFetcher::create({.fleet_key = options.key, .tls_ca = options.replica_ca}, *self->cache_,
                                             [raw](const AdapterRecord& record) { return raw->holders(record); }));
  self->tasks_bench_ =
      std::make_unique<Workshop>(std::vector<Workshop::Bench>{{.name = "lk-fleet-ops", .num_threads = kTaskThreads}});
  self->member_reader_ =
      std::make_unique<MemberReader>([raw](std::string_view what, std::string_view why) { raw->warn(what, why); });
  return Result<std::unique_ptr<FleetAdapters>>(std::move(self));
}

FleetAdapters::~FleetAdapters() { stop(); }

void FleetAdapters::warn(std::string_view what, std::string_view reason) const {
  if (log_) log_->write(LogLevel::kWarning, "registry", {{"what", what}, {"reason", reason}});
}

void FleetAdapters::attach(AdapterRegistry& adapters, std::vector<std::string> roots) {
  adapters_ = &adapters;
  roots_ = std::move(roots);
}

void FleetAdapters::load_catalog() {
  const Result<std::string> text = read_file(join_path(options_.directory, "catalog.json"), kMaxCatalog);
  if (text.status().code() == StatusCode::kNotFound) return;
  Result<boost::json::object> catalog = text.ok() ? parse_json_object(*text, "catalog.json") : text.status();
  if (!catalog.ok()) return warn("catalog_not_readable", catalog.status().message());
  Registry::Entries adapters_then, aliases_then;
  for (const auto& [name, value] : *catalog)
    if (value.is_string())
      (std::string_view(name).starts_with(kAliases) ? aliases_then : adapters_then)[name].value = value.get_string();
  on_adapters(adapters_then);
  on_aliases(aliases_then);
}

void FleetAdapters::join(const Member& member) {
  {
    std::lock_guard lock(mutex_);
    self_ = member;
  }
  load_catalog();
  registry_->announce(announcement_of(member));
  registry_->watch(std::string(kMembers), [this](const Registry::Entries& entries) { on_members(entries); });
  registry_->watch(std::string(kAdapters), [this](const Registry::Entries& entries) { on_adapters(entries); });
  registry_->watch(std::string(kAliases), [this](const Registry::Entries& entries) { on_aliases(entries); });
  registry_->watch(std::string(kDrains), [this, member, asked = false](const Registry::Entries& entries) mutable {
    const auto own = entries.find(std::string(kDrains) + member.id);
    const bool is_meant = own != entries.end() && own->second.value == format_drain(member.incarnation);
    if (is_meant && !std::exchange(asked, true) && options_.on_drain) options_.on_drain();
  });
}

void FleetAdapters::leave() { registry_->withdraw(); }

void FleetAdapters::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  if (registry_) registry_->close();
  tasks_bench_.reset();
  fetcher_.reset();
}

bool FleetAdapters::run(std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopped_ || tasks_ >= kMaxTasks) return false;
  ++tasks_;
  tasks_bench_->submit(0, [this, task = std::move(task)](const std::stop_token&) {
    const Status status = guarded("a change of the fleet", task);
    if (!status.ok()) warn("exception", status.message());
    std::lock_guard inner(mutex_);
    --tasks_;
    return Workshop::Finish();
  });
  return true;
}

// --- What others say

void FleetAdapters::on_members(const Registry::Entries& entries) {
  std::vector<Member> members = member_reader_->read(entries);
  std::lock_guard lock(mutex_);
  // One that left for a moment still has what it had: it is asked last.
  std::erase_if(members, [this](const Member& member) { return member.id == self_.id || member.base != self_.base; });
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

void FleetAdapters::on_adapters(const Registry::Entries& entries) {
  apply(entries);
  apply_aliases();
  save();
}

void FleetAdapters::apply(const Registry::Entries& entries) {
  for (const auto& [key, entry] : entries) {
    {
      std::lock_guard lock(mutex_);
      const auto known = entries_.find(key);
      if (known != entries_.end() && known->second.value == entry.value && offered_.contains(key)) continue;
    }
    Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (record.ok() && record->state == AdapterRecord::State::kReady)
      if (const Status files = check_files(*record); !files.ok()) record = files;
    std::string ignored = record.ok() ? "" : record.status().message();
    if (record.ok() && record->state == AdapterRecord::State::kReady) {
      const std::string content = record->content();
      {
        std::lock_guard lock(mutex_);
        contents_[content].record = *record;
        contents_[content].keys.insert(key);
      }
      if (adapters_->offer_fleet({.name = record->name,
                                  .path = cache_->path(content),
                                  .digest = record->digest,
                                  .tenant = record->tenant,
                                  .version = record->version})) {
        std::lock_guard lock(mutex_);
        offered_.insert(key);
      } else {
        ignored = "this server has an adapter or an alias of its own under that name";
      }
    }
    if (record.ok() && record->state == AdapterRecord::State::kDeleted) {
      bool offered = false;
      Registry::Entry before;
      {
        std::lock_guard lock(mutex_);
        offered = offered_.erase(key) > 0;
        if (const auto known = entries_.find(key); known != entries_.end()) before = known->second;
      }
      if (offered) (void)adapters_->unload(fmt::format("{}@{}", record->name, record->version), nullptr);
      if (const Result<AdapterRecord> old = parse_adapter(key, before.value); old.ok() && !old->files.empty()) {
        {
          std::lock_guard lock(mutex_);
          if (const auto content = contents_.find(old->content()); content != contents_.end()) {
            content->second.keys.erase(key);
            if (content->second.keys.empty()) contents_.erase(content);
          }
        }
        release(old->content());
      }
    }
    bool news = false;
    {
      std::lock_guard lock(mutex_);
      entries_[key] = entry;
      news = !ignored.empty() && std::exchange(told_[key], entry.revision + 1) != entry.revision + 1;
    }
    if (news) warn("adapter_ignored", fmt::format("{}: {}", key, ignored));
  }
}

void FleetAdapters::on_aliases(const Registry::Entries& entries) {
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries) aliases_[key] = entry;
  }
  apply_aliases();
  save();
}

void FleetAdapters::apply_aliases() {
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
    bool news = false;
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      news = std::exchange(told_[key], entry.revision + 1) != entry.revision + 1;
    }
    if (news) warn("alias_ignored", fmt::format("{}: {}", key, status.message()));
  }
}

void FleetAdapters::release(const std::string& content) {
  {
    std::lock_guard lock(mutex_);
    if (contents_.contains(content)) return;
  }
  cache_->release(content);
}

// For a restart while the registry is away.
void FleetAdapters::save() {
  std::lock_guard saving(save_mutex_);
  boost::json::object catalog;
  {
    std::lock_guard lock(mutex_);
    for (const Registry::Entries* entries : {&entries_, &aliases_})
      for (const auto& [key, entry] : *entries) catalog[key] = entry.value;
  }
  if (const Status status = write_file_atomic(join_path(options_.directory, "catalog.json"), json_text(catalog));
      !status.ok())
    warn("catalog_not_written", status.message());
}

// --- AdapterSupply

std::shared_ptr<const void> FleetAdapters::hold(const std::string& path) {
  return cache_->hold(std::filesystem::path(path).filename().string());
}

void FleetAdapters::fetch(const std::string& path, std::function<void(const Status&)> done) {
  std::optional<AdapterRecord> record;
  AdapterFetcher* fetcher = nullptr;
  {
    std::lock_guard lock(mutex_);
    const auto found = contents_.find(std::filesystem::path(path).filename().string());
    if (found != contents_.end()) record = found->second.record;
    if (!stopped_) fetcher = fetcher_.get();
  }
  if (!record) return done(not_found("the fleet's registry does not know it"));
  if (fetcher == nullptr) return done(cancelled("the server is shutting down"));
  fetcher->fetch(*record, std::move(done));
}

// --- Changes

Status FleetAdapters::commit(const Registry::Transaction& transaction, std::string_view what) {
  const Result<bool> done = registry_->commit(transaction);
  if (!done.ok())
    return unavailable("the fleet's registry does not answer; {} may not have happened: {}", what,
                       done.status().message());
  if (!*done) return unavailable("{}: somebody else changed it at the same moment; try again", what);
  return Status();
}

void FleetAdapters::publish(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  const bool taken = run([this, request = std::move(request), done] { publish_now(request, done); });
  if (!taken) done(unavailable("too many changes of the fleet wait"));
}

void FleetAdapters::publish_now(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  const auto prepared = [&]() -> Result<AdapterRecord> {
    LK_RETURN_IF_ERROR(check_adapter_name("adapter name", request.name));
    if (const auto known = adapters_->find(request.name, {}); known && !adapters_->is_fleet(request.name))
      return already_exists("\"{}\" is an adapter of this server alone: the fleet's go by other names", request.name);
    if (!request.trusted_path) {
      LK_ASSIGN_OR_RETURN(request.path, resolve_adapter_directory(roots_of(roots_, request.tenant), request.path));
    }
    AdapterRecord record{.name = request.name, .tenant = request.tenant, .created = std::time(nullptr)};
    record.state = AdapterRecord::State::kPending;
    LK_ASSIGN_OR_RETURN(record.files, cache_->add(request.path, adapter_file_names(request.path)));
    std::lock_guard lock(mutex_);
    record.publisher = self_.id;
    return record;
  }();
  if (!prepared.ok()) return done(prepared.status());
  AdapterRecord record = *prepared;
  const std::string content = record.content();
  const Status complete = check_files(record);
  Result<Reserved> reserved = complete.ok() ? reserve(record, request.replace) : complete;
  if (!reserved.ok()) {
    release(content);
    return done(complete.ok() ? reserved.status() : not_found("{}: {}", request.path, complete.message()));
  }
  record.version = reserved->version;
  request.path = cache_->path(content);
  request.trusted_path = true;
  request.files = cache_->hold(content);
  request.replace = true;
  request.keep_previous = true;
  request.persist = false;
  request.version = record.version;
  adapters_->load(std::move(request), [this, record, revision = reserved->revision, done](Result<AdapterLease> loaded) {
    // The registry may take seconds: not on a loader's thread.
    if (!run([this, record, revision, loaded, done] { conclude(record, revision, loaded, done); }))
      done(unavailable("the server is shutting down, or too many changes of the fleet wait"));
  });
}

// Takes a number that nobody had before and nobody will have again.
Result<FleetAdapters::Reserved> FleetAdapters::reserve(const AdapterRecord& record, bool replace) {
  const std::string prefix = versions_key(record.name);
  for (int tries = 0; tries < kReserveTries; ++tries) {
    const Result<Registry::Entries> entries = registry_->list(prefix);
    if (!entries.ok()) return unavailable("the fleet's registry does not answer: {}", entries.status().message());
    int64_t last = 0;
    for (const auto& [key, entry] : *entries) {
      last = std::max(last, version_in(key));
      const Result<AdapterRecord> known = parse_adapter(key, entry.value);
      if (!replace && known.ok() && known->state == AdapterRecord::State::kReady)
        return already_exists("The lora adapter '{}' has already been loaded.", record.name);
    }
    {
      // A registry that lost its data has forgotten numbers that this server has not.
      std::lock_guard lock(mutex_);
      for (auto known = entries_.lower_bound(prefix); known != entries_.end() && known->first.starts_with(prefix);
           ++known)
        last = std::max(last, version_in(known->first));
    }
    const std::string key = adapter_key(record.name, last + 1);
    const Result<bool> taken = registry_->commit({.unchanged = {{key, 0}}, .puts = {{key, format_adapter(record)}}});
    if (!taken.ok()) return unavailable("the fleet's registry does not answer: {}", taken.status().message());
    if (!*taken) continue;
    const Result<Registry::Entries> own = registry_->list(key);
    if (!own.ok() || !own->contains(key)) return unavailable("the fleet's registry does not answer");
    return Reserved{.version = last + 1, .revision = own->at(key).revision};
  }
  return unavailable("others publish \"{}\" at the same time; try again", record.name);
}

void FleetAdapters::conclude(AdapterRecord record, int64_t revision, Result<AdapterLease> loaded,
                             const AdapterRegistry::Loaded& done) {
  const std::string key = adapter_key(record.name, record.version), content = record.content();
  const auto give_up = [&](const Status& status) {
    AdapterRecord gone{.name = record.name, .version = record.version, .state = AdapterRecord::State::kDeleted};
    (void)registry_->commit({.unchanged = {{key, revision}}, .puts = {{key, format_adapter(gone)}}});
    release(content);
    done(status);
  };
  if (!loaded.ok()) return give_up(loaded.status());
  record.state = AdapterRecord::State::kReady;
  record.digest = (*loaded)->digest;
  const std::string value = format_adapter(record);
  Status published = commit({.unchanged = {{key, revision}}, .puts = {{key, value}}}, "the publication");
  if (!published.ok())  // its answer may have been lost
    if (const auto now = registry_->list(key); now.ok() && now->contains(key) && now->at(key).value == value)
      published = Status();
  if (!published.ok()) {
    (void)adapters_->unload(fmt::format("{}@{}", record.name, record.version), nullptr);
    return give_up(published);
  }
  done(std::move(loaded));
}

void FleetAdapters::remove(const std::string& target, std::function<void(const Status&)> done) {
  if (!run([this, target, done] { done(remove_now(target)); })) done(unavailable("too many changes of the fleet wait"));
}

Status FleetAdapters::remove_now(const std::string& target) {
  Registry::Transaction change;
  const AdapterKey wanted = split_version(target);
  const auto away = [](const Status& status) {
    return unavailable("the fleet's registry does not answer: {}", status.message());
  };
  const Result<Registry::Entries> aliases = registry_->list(std::string(kAliases));
  if (!aliases.ok()) return away(aliases.status());
  const Result<Registry::Entries> versions = registry_->list(versions_key(wanted.name));
  if (!versions.ok()) return away(versions.status());
  const auto alias = aliases->find(alias_key(target));
  const bool is_alias = alias != aliases->end() && parse_alias(alias->first, alias->second.value).ok() &&
                        !parse_alias(alias->first, alias->second.value)->empty();
  for (const auto& [key, entry] : *versions) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (is_alias || !record.ok() || record->state != AdapterRecord::State::kReady) continue;
    if (wanted.version != 0 && record->version != wanted.version) continue;
    AdapterRecord gone{.name = record->name, .version = record->version, .state = AdapterRecord::State::kDeleted};
    change.unchanged.emplace_back(key, entry.revision);
    change.puts.emplace_back(key, format_adapter(gone));
  }
  if (change.puts.empty() && !is_alias) return not_found("The lora adapter '{}' cannot be found.", target);
  for (const auto& [key, entry] : *aliases) {
    const Result<std::string> meaning = parse_alias(key, entry.value);
    const bool goes = is_alias ? key == alias->first
                               : meaning.ok() && (*meaning == target ||
                                                  (wanted.version == 0 && split_version(*meaning).name == wanted.name));
    if (!goes) continue;
    change.unchanged.emplace_back(key, entry.revision);
    change.puts.emplace_back(key, format_alias(""));
  }
  for (size_t first = 0; first < change.puts.size(); first += kOperations) {
    const auto end = static_cast<ptrdiff_t>(std::min(change.puts.size(), first + kOperations));
    const auto begin = static_cast<ptrdiff_t>(first);
    LK_RETURN_IF_ERROR(commit({.unchanged = {change.unchanged.begin() + begin, change.unchanged.begin() + end},
                               .puts = {change.puts.begin() + begin, change.puts.begin() + end}},
                              "the deletion"));
  }
  return Status();
}

void FleetAdapters::set_alias(const std::string& alias, const std::string& target,
                              std::function<void(const Status&)> done) {
  if (!run([this, alias, target, done] { done(set_alias_now(alias, target)); }))
    done(unavailable("too many changes of the fleet wait"));
}

Status FleetAdapters::set_alias_now(const std::string& alias, const std::string& target) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  return commit({.puts = {{alias_key(alias), format_alias(target)}}}, "the alias");
}

bool FleetAdapters::has_alias(const std::string& alias) const {
  std::lock_guard lock(mutex_);
  const auto found = aliases_.find(alias_key(alias));
  const Result<std::string> target =
      found == aliases_.end() ? Result<std::string>(std::string()) : parse_alias(found->first, found->second.value);
  return target.ok() && !target->empty();
}

}  // namespace lk
