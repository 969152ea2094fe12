// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_changes.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>
#include <utility>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/names.h"
#include "lk/base/sha256.h"
#include "lk/registry/decision.h"
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kMaxTasks = 256;  // changes that wait or are under way
constexpr int kTaskThreads = 2;
constexpr int kTries = 8;             // others may change the same at the same time
constexpr size_t kOperations = 100;   // of one transaction; etcd takes 128
constexpr int64_t kAbandoned = 3600;  // seconds: a publication that old has no process any more

// Somebody who waits hears once, whatever happens: at the latest when nobody is left who could tell.
template <class Value>
class Answer {
 public:
  explicit Answer(std::function<void(Value)> done) : done_(std::move(done)) {}
  ~Answer() { give(cancelled("the server is shutting down")); }
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;
  void give(Value value) {
    if (const auto done = std::exchange(done_, nullptr)) done(std::move(value));
  }

 private:
  std::function<void(Value)> done_;
};

std::string random_word() {
  std::array<unsigned char, 16> bytes{};
  (void)::getentropy(bytes.data(), bytes.size());
  return to_hex(bytes);
}

// Files of an adapter's directory that are read, as they are called there.
std::vector<std::string> adapter_file_names(const std::string& directory) {
  std::vector<std::string> names(std::begin(kAdapterFiles), std::end(kAdapterFiles));
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(join_path(directory, kChatTemplateDirectory), error))
    if (const std::string name = item.path().filename().string(); name.ends_with(".jinja") && is_valid_name(name))
      names.push_back(join_path(kChatTemplateDirectory, name));
  return names;
}

bool is_abandoned(const AdapterRecord& record) {
  return record.state == AdapterRecord::State::kPending && record.created < std::time(nullptr) - kAbandoned;
}

void take_away(const std::string& key, const Registry::Entry& entry, Registry::Transaction& change) {
  change.unchanged.emplace_back(key, entry.revision);
  change.removals.push_back(key);
}

bool is_set(const Registry::Entries& aliases, std::string_view alias) {
  const auto found = aliases.find(alias_key(alias));
  if (found == aliases.end()) return false;
  const Result<std::string> target = parse_alias(found->first, found->second.value);
  return target.ok() && !target->empty();
}

}  // namespace

// A version on its way into the registry, and how far it has come: what give_up() takes back.
struct FleetChanges::Publication {
  Publication(AdapterRegistry::LoadRequest what, AdapterRegistry::Loaded done, Slot place)
      : request(std::move(what)), answer(std::move(done)), slot(std::move(place)) {}
  AdapterRegistry::LoadRequest request;
  AdapterRecord record;
  std::string content;   // kept in the cache for it; "" = nothing
  int64_t revision = 0;  // of its number in the registry; 0: it has none
  bool is_loaded = false;
  Answer<Result<AdapterLease>> answer;
  const Slot slot;  // for all of it
};

FleetChanges::FleetChanges(Parts parts)
    : parts_(std::move(parts)),
      bench_(std::make_unique<Workshop>(
          std::vector<Workshop::Bench>{{.name = "lk-fleet-ops", .num_threads = kTaskThreads}})) {}

void FleetChanges::attach(AdapterRegistry& adapters, std::vector<std::string> roots) {
  adapters_ = &adapters;
  roots_ = std::move(roots);
}

void FleetChanges::set_publisher(const std::string& id) {
  std::lock_guard lock(mutex_);
  publisher_ = id;
}

void FleetChanges::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  bench_.reset();
}

FleetChanges::Slot FleetChanges::take_slot() {
  Slot slot(this, [this](void*) { --slots_; });  // not null: it says that there was one
  return ++slots_ <= kMaxTasks ? slot : nullptr;
}

bool FleetChanges::run(Slot slot, std::function<void()> task, std::function<void(const Status&)> failed) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  bench_->submit(
      0, [this, slot = std::move(slot), task = std::move(task), failed = std::move(failed)](const std::stop_token&) {
        const Status status = guarded("a change of the fleet", task);
        if (!status.ok()) {
          parts_.warn("exception", status.message());
          failed(status);
        }
        return Workshop::Finish();
      });
  return true;
}

void FleetChanges::change(std::function<Status()> task, std::function<void(const Status&)> done) {
  const auto answer = std::make_shared<Answer<const Status&>>(std::move(done));
  Slot slot = take_slot();
  if (!slot) return answer->give(unavailable("too many changes of the fleet wait"));
  (void)run(
      std::move(slot), [task = std::move(task), answer] { answer->give(task()); },
      [answer](const Status& status) { answer->give(status); });
}

// --- Changes

void FleetChanges::publish(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  const auto publication = std::make_shared<Publication>(std::move(request), std::move(done), take_slot());
  if (!publication->slot) return publication->answer.give(unavailable("too many changes of the fleet wait"));
  (void)run(
      publication->slot, [this, publication] { publish_now(publication); },
      [this, publication](const Status& status) { give_up(*publication, status); });
}

// The files are here and its number is its own.
Status FleetChanges::prepare(Publication& publication) {
  AdapterRegistry::LoadRequest& request = publication.request;
  AdapterRecord& record = publication.record;
  const bool may_be_there = std::exchange(request.replace, true);
  request.keep_previous = true;
  request.persist = false;
  // Before anything is copied or written anywhere.
  LK_RETURN_IF_ERROR(adapters_->check_free(request));
  {
    std::lock_guard lock(mutex_);
    LK_RETURN_IF_ERROR(pace_.enter(request.tenant, std::chrono::steady_clock::now()));
  }
  if (!request.tenant.empty() && parts_.catalog.num_versions(request.tenant) >= kMostVersionsOfTenant)
    return resource_exhausted("tenant {} has published {} versions in this fleet, and no number comes back",
                              request.tenant, kMostVersionsOfTenant);
  if (const auto known = adapters_->find(request.name, {}); known && !adapters_->is_fleet(request.name))
    return already_exists("\"{}\" is an adapter of this server alone: the fleet's go by other names", request.name);
  const std::vector<std::string> roots =
      request.trusted_path ? std::vector<std::string>() : roots_of(roots_, request.tenant);
  if (!request.trusted_path) {
    LK_ASSIGN_OR_RETURN(request.path, resolve_adapter_directory(roots, request.path));
  }
  record = {.name = request.name, .tenant = request.tenant, .created = std::time(nullptr)};
  record.state = AdapterRecord::State::kPending;
  record.digest = random_word();  // until it has one: tells this try from any other
  {
    std::lock_guard lock(mutex_);
    record.publisher = publisher_;
  }
  LK_ASSIGN_OR_RETURN(record.files, parts_.cache.add(request.path, adapter_file_names(request.path), roots));
  publication.content = record.content();
  if (const Status complete = check_adapter_files(record); !complete.ok())
    return not_found("{}: {}", request.path, complete.message());
  LK_ASSIGN_OR_RETURN(const Reserved number, reserve(record, may_be_there));
  record.version = number.version;
  publication.revision = number.revision;
  return Status();
}

void FleetChanges::publish_now(const std::shared_ptr<Publication>& publication) {
  if (const Status prepared = prepare(*publication); !prepared.ok()) return give_up(*publication, prepared);
  AdapterRegistry::LoadRequest& request = publication->request;
  request.path = parts_.cache.path(publication->content);
  request.trusted_path = true;
  request.files = parts_.cache.hold(publication->content);
  request.version = publication->record.version;
  adapters_->load(request, [this, publication](Result<AdapterLease> loaded) {
    publication->is_loaded = loaded.ok();
    // The registry may take seconds: not on a loader's thread.
    if (!run(
            publication->slot, [this, publication, loaded] { conclude(*publication, loaded); },
            [this, publication](const Status& status) { give_up(*publication, status); }))
      give_up(*publication, cancelled("the server is shutting down"));
  });
}

// Whatever ends a publication, nothing of it stays: here, in the cache or in the registry. Only a number under which
// somebody may have been answered is used up.
void FleetChanges::give_up(Publication& publication, const Status& status) {
  const AdapterRecord& record = publication.record;
  bool stopped = false;
  {
    std::lock_guard lock(mutex_);
    stopped = stopped_;
  }
  const bool was_loaded = std::exchange(publication.is_loaded, false);
  if (was_loaded && !stopped) (void)adapters_->unload(fmt::format("{}@{}", record.name, record.version), nullptr);
  if (const int64_t revision = std::exchange(publication.revision, 0); revision != 0) {
    const std::string key = adapter_key(record.name, record.version);
    const AdapterRecord gone{.name = record.name,
                             .version = record.version,
                             .state = AdapterRecord::State::kDeleted,
                             .tenant = record.tenant};
    Registry::Transaction change{.unchanged = {{key, revision}}};
    if (was_loaded)
      change.puts = {{key, format_adapter(gone)}};
    else
      change.removals = {key};
    (void)parts_.registry.commit(change);
  }
  if (const std::string content = std::exchange(publication.content, ""); !content.empty())
    parts_.catalog.release(content);
  publication.answer.give(status);
}

// Takes a number that nobody had before and nobody will have again, for a name that is no alias.
Result<FleetChanges::Reserved> FleetChanges::reserve(const AdapterRecord& record, bool replace) {
  const std::string prefix = versions_key(record.name);
  for (int tries = 0; tries < kTries; ++tries) {
    LK_ASSIGN_OR_RETURN(const Registry::Entries entries, list_for_change(parts_.registry, prefix));
    Registry::Transaction change;
    // set_alias_now() looks for versions as this looks for an alias: of two at one moment one is refused.
    LK_ASSIGN_OR_RETURN(const Registry::Entries aliases, list_for_change(parts_.registry, alias_key(record.name)));
    const auto alias = aliases.find(alias_key(record.name));
    if (is_set(aliases, record.name)) return already_exists("\"{}\" is an alias", record.name);
    change.unchanged.emplace_back(alias_key(record.name), alias == aliases.end() ? 0 : alias->second.revision);
    // A registry that lost its data has forgotten numbers that this server has not.
    int64_t last = parts_.catalog.last_version(record.name);
    for (const auto& [key, entry] : entries) {
      last = std::max(last, version_in(key));
      const Result<AdapterRecord> known = parse_adapter(key, entry.value);
      if (!replace && known.ok() && known->state == AdapterRecord::State::kReady) return already_loaded(record.name);
      if (known.ok() && is_abandoned(*known) && change.removals.size() < kOperations) take_away(key, entry, change);
    }
    if (last >= kMaxAdapterVersion) return resource_exhausted("\"{}\" has no version left", record.name);
    const std::string key = adapter_key(record.name, last + 1);
    const std::string value = format_adapter(record);
    change.unchanged.emplace_back(key, 0);
    change.puts.emplace_back(key, value);
    const Result<bool> taken = parts_.registry.commit(change);
    const Result<Registry::Entries> own =
        parts_.registry.list(key);  // which revision; and whether, if its answer was lost
    if (!own.ok()) return unavailable("the fleet's registry does not answer: {}", own.status().message());
    if (const auto found = own->find(key); found != own->end() && found->second.value == value)
      return Reserved{.version = last + 1, .revision = found->second.revision};
    if (!taken.ok()) return unavailable("the fleet's registry does not answer: {}", taken.status().message());
  }
  return unavailable("others publish \"{}\" at the same time; try again", record.name);
}

void FleetChanges::conclude(Publication& publication, Result<AdapterLease> loaded) {
  if (!loaded.ok()) return give_up(publication, loaded.status());
  AdapterRecord& record = publication.record;
  const std::string key = adapter_key(record.name, record.version);
  record.state = AdapterRecord::State::kReady;
  record.digest = (*loaded)->digest;
  const Result<bool> published =
      try_commit(parts_.registry, {.unchanged = {{key, publication.revision}}, .puts = {{key, format_adapter(record)}}},
                 "the publication");
  if (!published.ok()) return give_up(publication, published.status());
  if (!*published) return give_up(publication, unavailable("{} was taken away at the same moment; try again", key));
  publication.is_loaded = false;  // it is everybody's from here on: nothing is taken back
  publication.revision = 0;
  publication.content.clear();
  publication.answer.give(std::move(loaded));
}

void FleetChanges::remove(const std::string& target, std::function<void(const Status&)> done) {
  change([this, target] { return remove_now(target); }, std::move(done));
}

Status FleetChanges::remove_now(const std::string& target) {
  return decide(parts_.registry, "the deletion",
                [&](Registry::Transaction& change, bool& is_all) { return make_removal(target, change, is_all); });
}

Status FleetChanges::make_removal(const std::string& target, Registry::Transaction& change, bool& is_all) {
  const AdapterKey wanted = split_version(target);
  const std::string versions_prefix = versions_key(wanted.name);
  LK_ASSIGN_OR_RETURN(const Registry::Entries aliases, list_for_change(parts_.registry, kAliases));
  const auto remove_alias = [&](const std::string& key, const Registry::Entry& entry) {
    change.unchanged.emplace_back(key, entry.revision);
    change.puts.emplace_back(key, format_alias(""));
  };
  if (is_set(aliases, target)) {
    const auto alias = aliases.find(alias_key(target));
    remove_alias(alias->first, alias->second);
    return Status();
  }
  LK_ASSIGN_OR_RETURN(const Registry::Entries versions, list_for_change(parts_.registry, versions_prefix));
  std::vector<std::pair<AdapterRecord, const Registry::Entry*>> going;
  bool is_last = true;  // no version stays
  for (const auto& [key, entry] : versions) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (!record.ok() || record->state != AdapterRecord::State::kReady) continue;
    if (wanted.version == 0 || record->version == wanted.version)
      going.emplace_back(*record, &entry);
    else
      is_last = false;
  }
  if (going.empty()) return not_found("The lora adapter '{}' cannot be found.", target);
  // With the last version go the aliases of the name: they must not mean what somebody publishes later.
  for (const auto& [key, entry] : aliases) {
    const Result<std::string> meaning = parse_alias(key, entry.value);
    if (meaning.ok() && (*meaning == target || (is_last && split_version(*meaning).name == wanted.name)))
      remove_alias(key, entry);
  }
  std::ranges::sort(going, {}, [](const auto& version) { return version.first.version; });
  for (const auto& [record, entry] : going) {
    const std::string key = adapter_key(record.name, record.version);
    change.unchanged.emplace_back(key, entry->revision);
    change.puts.emplace_back(key, format_adapter({.name = record.name,
                                                  .version = record.version,
                                                  .state = AdapterRecord::State::kDeleted,
                                                  .tenant = record.tenant}));  // whose number it was
  }
  if (change.puts.size() > kOperations) {  // the newest version in the last part
    is_all = false;
    change.unchanged.resize(kOperations);
    change.puts.resize(kOperations);
    return Status();
  }
  // Whoever publishes the name or gives it an alias meanwhile would be overlooked, and of two who take the last two
  // versions each would leave the aliases to the other.
  change.none_newer = {{versions_prefix, Registry::newest_of(versions)},
                       {std::string(kAliases), Registry::newest_of(aliases)}};
  return Status();
}

void FleetChanges::set_alias(const std::string& alias, const std::string& target,
                             std::function<void(const Status&)> done) {
  change([this, alias, target] { return set_alias_now(alias, target); }, std::move(done));
}

Status FleetChanges::set_alias_now(const std::string& alias, const std::string& target) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  return decide(parts_.registry, "the alias",
                [&](Registry::Transaction& change, bool&) { return make_alias(alias, target, change); });
}

// As the registry has it now, not as this server last heard: no adapter of that name, and one that the alias means.
Status FleetChanges::make_alias(const std::string& alias, const std::string& target, Registry::Transaction& change) {
  LK_ASSIGN_OR_RETURN(const Registry::Entries of_alias, list_for_change(parts_.registry, versions_key(alias)));
  for (const auto& [key, entry] : of_alias) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (!record.ok() || record->state == AdapterRecord::State::kDeleted) continue;
    if (!is_abandoned(*record)) return already_exists("\"{}\" is the name of a model", alias);
    if (change.removals.size() < kOperations) take_away(key, entry, change);
  }
  const AdapterKey wanted = split_version(target);
  LK_ASSIGN_OR_RETURN(const Registry::Entries of_target, list_for_change(parts_.registry, versions_key(wanted.name)));
  std::pair<std::string, int64_t> meant;
  for (const auto& [key, entry] : of_target) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (record.ok() && record->state == AdapterRecord::State::kReady &&
        (wanted.version == 0 || wanted.version == record->version))
      meant = {key, entry.revision};
  }
  if (meant.first.empty()) return not_found("The lora adapter '{}' cannot be found.", target);
  change.unchanged.push_back(meant);  // it is still there when the alias comes
  change.none_newer = {{versions_key(alias), Registry::newest_of(of_alias)}};
  change.puts = {{alias_key(alias), format_alias(target)}};
  return Status();
}

}  // namespace lk
