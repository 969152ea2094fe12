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
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kMaxTasks = 256;  // changes that wait or are under way
constexpr int kTaskThreads = 2;
constexpr int kReserveTries = 8;      // others may publish the same name at the same time
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

// The answer to a transaction may be lost, and what is sent again says that something had changed: what stands there
// tells. Equal values that somebody else put are as good.
bool FleetChanges::has_happened(const Registry::Transaction& transaction) {
  for (const auto& [key, value] : transaction.puts) {
    const Result<Registry::Entries> now = parts_.registry.list(key);
    if (!now.ok() || !now->contains(key) || now->at(key).value != value) return false;
  }
  return true;
}

Status FleetChanges::commit(const Registry::Transaction& transaction, std::string_view what) {
  const Result<bool> done = parts_.registry.commit(transaction);
  if ((done.ok() && *done) || has_happened(transaction)) return Status();
  if (!done.ok())
    return unavailable("the fleet's registry does not answer; {} may not have happened: {}", what,
                       done.status().message());
  return unavailable("{}: somebody else changed it at the same moment; try again", what);
}

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
  if (const auto known = adapters_->find(request.name, {}); known && !adapters_->is_fleet(request.name))
    return already_exists("\"{}\" is an adapter of this server alone: the fleet's go by other names", request.name);
  if (!request.trusted_path) {
    LK_ASSIGN_OR_RETURN(request.path, resolve_adapter_directory(roots_of(roots_, request.tenant), request.path));
  }
  record = {.name = request.name, .tenant = request.tenant, .created = std::time(nullptr)};
  record.state = AdapterRecord::State::kPending;
  record.digest = random_word();  // until it has one: tells this try from any other
  {
    std::lock_guard lock(mutex_);
    record.publisher = publisher_;
  }
  LK_ASSIGN_OR_RETURN(record.files, parts_.cache.add(request.path, adapter_file_names(request.path)));
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
    const AdapterRecord gone{.name = record.name, .version = record.version, .state = AdapterRecord::State::kDeleted};
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

// Takes a number that nobody had before and nobody will have again.
Result<FleetChanges::Reserved> FleetChanges::reserve(const AdapterRecord& record, bool replace) {
  const std::string prefix = versions_key(record.name);
  for (int tries = 0; tries < kReserveTries; ++tries) {
    const Result<Registry::Entries> entries = parts_.registry.list(prefix);
    if (!entries.ok()) return unavailable("the fleet's registry does not answer: {}", entries.status().message());
    Registry::Transaction change;
    // A registry that lost its data has forgotten numbers that this server has not.
    int64_t last = parts_.catalog.last_version(record.name);
    for (const auto& [key, entry] : *entries) {
      last = std::max(last, version_in(key));
      const Result<AdapterRecord> known = parse_adapter(key, entry.value);
      if (!replace && known.ok() && known->state == AdapterRecord::State::kReady) return already_loaded(record.name);
      if (known.ok() && known->state == AdapterRecord::State::kPending &&
          known->created < record.created - kAbandoned && change.removals.size() < kOperations) {
        change.unchanged.emplace_back(key, entry.revision);
        change.removals.push_back(key);
      }
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
  const Status published =
      commit({.unchanged = {{key, publication.revision}}, .puts = {{key, format_adapter(record)}}}, "the publication");
  if (!published.ok()) return give_up(publication, published);
  publication.is_loaded = false;  // it is everybody's from here on: nothing is taken back
  publication.revision = 0;
  publication.content.clear();
  publication.answer.give(std::move(loaded));
}

void FleetChanges::remove(const std::string& target, std::function<void(const Status&)> done) {
  change([this, target] { return remove_now(target); }, std::move(done));
}

Status FleetChanges::remove_now(const std::string& target) {
  Registry::Transaction change;
  const AdapterKey wanted = split_version(target);
  const auto away = [](const Status& status) {
    return unavailable("the fleet's registry does not answer: {}", status.message());
  };
  const Result<Registry::Entries> aliases = parts_.registry.list(std::string(kAliases));
  if (!aliases.ok()) return away(aliases.status());
  const Result<Registry::Entries> versions = parts_.registry.list(versions_key(wanted.name));
  if (!versions.ok()) return away(versions.status());
  const auto alias = aliases->find(alias_key(target));
  const bool is_alias = alias != aliases->end() && parse_alias(alias->first, alias->second.value).ok() &&
                        !parse_alias(alias->first, alias->second.value)->empty();
  std::pair<std::string, int64_t> stays;  // one that is not meant
  for (const auto& [key, entry] : *versions) {
    const Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (is_alias || !record.ok() || record->state != AdapterRecord::State::kReady) continue;
    if (wanted.version != 0 && record->version != wanted.version) {
      stays = {key, entry.revision};
      continue;
    }
    AdapterRecord gone{.name = record->name, .version = record->version, .state = AdapterRecord::State::kDeleted};
    change.unchanged.emplace_back(key, entry.revision);
    change.puts.emplace_back(key, format_adapter(gone));
  }
  if (change.puts.empty() && !is_alias) return not_found("The lora adapter '{}' cannot be found.", target);
  // With the last version go the aliases of the name: they must not mean what somebody publishes later.
  const bool is_last = !is_alias && stays.first.empty();
  for (const auto& [key, entry] : *aliases) {
    const Result<std::string> meaning = parse_alias(key, entry.value);
    const bool goes =
        is_alias ? key == alias->first
                 : meaning.ok() && (*meaning == target || (is_last && split_version(*meaning).name == wanted.name));
    if (!goes) continue;
    change.unchanged.emplace_back(key, entry.revision);
    change.puts.emplace_back(key, format_alias(""));
  }
  for (size_t first = 0; first < change.puts.size(); first += kOperations) {
    const auto end = static_cast<ptrdiff_t>(std::min(change.puts.size(), first + kOperations));
    const auto begin = static_cast<ptrdiff_t>(first);
    Registry::Transaction part{.unchanged = {change.unchanged.begin() + begin, change.unchanged.begin() + end},
                               .puts = {change.puts.begin() + begin, change.puts.begin() + end}};
    // Two who take the last two at the same time would each leave the aliases to the other.
    if (!stays.first.empty()) part.unchanged.push_back(stays);
    LK_RETURN_IF_ERROR(commit(part, "the deletion"));
  }
  return Status();
}

void FleetChanges::set_alias(const std::string& alias, const std::string& target,
                             std::function<void(const Status&)> done) {
  change([this, alias, target] { return set_alias_now(alias, target); }, std::move(done));
}

Status FleetChanges::set_alias_now(const std::string& alias, const std::string& target) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  // As the registry has it now, not as this server last heard: no adapter of that name, and one that the alias means.
  const AdapterKey wanted = split_version(target);
  Registry::Transaction change{.puts = {{alias_key(alias), format_alias(target)}}};
  for (const bool of_target : {false, true}) {
    const Result<Registry::Entries> versions = parts_.registry.list(versions_key(of_target ? wanted.name : alias));
    if (!versions.ok()) return unavailable("the fleet's registry does not answer: {}", versions.status().message());
    for (const auto& [key, entry] : *versions) {
      const Result<AdapterRecord> record = parse_adapter(key, entry.value);
      if (!record.ok() || record->state == AdapterRecord::State::kDeleted) continue;
      if (!of_target) return already_exists("\"{}\" is the name of a model", alias);
      if (record->state == AdapterRecord::State::kReady && (wanted.version == 0 || wanted.version == record->version))
        change.unchanged = {{key, entry.revision}};  // the newest of them: it is still there when the alias comes
    }
  }
  if (change.unchanged.empty()) return not_found("The lora adapter '{}' cannot be found.", target);
  return commit(change, "the alias");
}

}  // namespace lk
