// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/fleet/fleet_adapters.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>
#include <filesystem>

#include <boost/json/object.hpp>

#include "lk/base/file.h"
#include "lk/base/guarded.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/names.h"
#include "lk/base/sha256.h"
#include "lk/registry/drain.h"
#include "lk/serve/adapters/adapter_stat.h"
#include "lk/serve/adapters/path_guard.h"

namespace lk {
namespace {

constexpr int64_t kMaxTasks = 256;  // changes of the registry that wait or are under way
constexpr int kTaskThreads = 2;
constexpr int kReserveTries = 8;     // others may publish the same name at the same time
constexpr size_t kOperations = 100;  // of one transaction; etcd takes 128
constexpr int64_t kForm = 1;
constexpr size_t kTasks = 0, kCatalog = 1;  // benches
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

}  // namespace

// A version on its way into the registry, and how far it has come: what give_up() takes back.
struct FleetAdapters::Publication {
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

std::vector<std::string> adapter_file_names(const std::string& directory) {
  std::vector<std::string> names(std::begin(kAdapterFiles), std::end(kAdapterFiles));
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(join_path(directory, kChatTemplateDirectory), error))
    if (const std::string name = item.path().filename().string(); name.ends_with(".jinja") && is_valid_name(name))
      names.push_back(join_path(kChatTemplateDirectory, name));
  return names;
}

// --- Life

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
  self->tasks_bench_ = std::make_unique<Workshop>(std::vector<Workshop::Bench>{
      {.name = "lk-fleet-ops", .num_threads = kTaskThreads}, {.name = "lk-catalog", .num_threads = 1}});
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
  tasks_bench_.reset();  // who waits hears of the end
  if (fetcher_) fetcher_->stop();
  bool unsaved = false;
  {
    std::lock_guard lock(mutex_);
    unsaved = save_waits_;
  }
  if (unsaved) write_catalog();
}

FleetAdapters::Slot FleetAdapters::take_slot() {
  Slot slot(this, [this](void*) { --slots_; });  // not null: it says that there was one
  return ++slots_ <= kMaxTasks ? slot : nullptr;
}

bool FleetAdapters::run(Slot slot, std::function<void()> task, std::function<void(const Status&)> failed) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  tasks_bench_->submit(kTasks, [this, slot = std::move(slot), task = std::move(task),
                                failed = std::move(failed)](const std::stop_token&) {
    const Status status = guarded("a change of the fleet", task);
    if (!status.ok()) {
      warn("exception", status.message());
      failed(status);
    }
    return Workshop::Finish();
  });
  return true;
}

void FleetAdapters::change(std::function<Status()> task, std::function<void(const Status&)> done) {
  const auto answer = std::make_shared<Answer<const Status&>>(std::move(done));
  Slot slot = take_slot();
  if (!slot) return answer->give(unavailable("too many changes of the fleet wait"));
  (void)run(
      std::move(slot), [task = std::move(task), answer] { answer->give(task()); },
      [answer](const Status& status) { answer->give(status); });
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
  Registry::Entries news;
  bool changed = false;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, entry] : entries) {
      const auto known = entries_.find(key);
      const bool is_known = known != entries_.end() && known->second.value == entry.value;
      changed |= !is_known;
      if (!is_known || refused_.contains(key)) news.emplace(key, entry);  // its name may be free by now
    }
  }
  apply(news);
  apply_aliases();
  if (changed) save();
}

void FleetAdapters::apply(const Registry::Entries& entries) {
  for (const auto& [key, entry] : entries) {
    Result<AdapterRecord> record = parse_adapter(key, entry.value);
    if (record.ok() && record->state == AdapterRecord::State::kReady)
      if (const Status files = check_files(*record); !files.ok()) record = files;
    std::string ignored = record.ok() ? "" : record.status().message();
    bool refused = false;
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
        refused = true;
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
      if (refused)
        refused_.insert(key);
      else
        refused_.erase(key);
      news = !ignored.empty() && std::exchange(told_[key], entry.revision + 1) != entry.revision + 1;
    }
    if (news) warn("adapter_ignored", fmt::format("{}: {}", key, ignored));
  }
}

void FleetAdapters::on_aliases(const Registry::Entries& entries) {
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

// For a restart while the registry is away. However many changes come meanwhile, they are one more writing of it.
void FleetAdapters::save() {
  std::lock_guard lock(mutex_);
  if (std::exchange(save_waits_, true) || stopped_) return;
  tasks_bench_->submit(kCatalog, [this](const std::stop_token&) {
    const Status status = guarded("the fleet's catalog", [this] { write_catalog(); });
    if (!status.ok()) warn("catalog_not_written", status.message());
    return Workshop::Finish();
  });
}

void FleetAdapters::write_catalog() {
  boost::json::object catalog;
  {
    std::lock_guard lock(mutex_);
    save_waits_ = false;
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
  {
    std::lock_guard lock(mutex_);
    const auto found = contents_.find(std::filesystem::path(path).filename().string());
    if (found != contents_.end()) record = found->second.record;
  }
  if (!record) return done(not_found("the fleet's registry does not know it"));
  fetcher_->fetch(*record, std::move(done));
}

// --- Changes

// The answer to a transaction may be lost, and what is sent again says that something had changed: what stands there
// tells. Equal values that somebody else put are as good.
bool FleetAdapters::has_happened(const Registry::Transaction& transaction) {
  for (const auto& [key, value] : transaction.puts) {
    const Result<Registry::Entries> now = registry_->list(key);
    if (!now.ok() || !now->contains(key) || now->at(key).value != value) return false;
  }
  return true;
}

Status FleetAdapters::commit(const Registry::Transaction& transaction, std::string_view what) {
  const Result<bool> done = registry_->commit(transaction);
  if ((done.ok() && *done) || has_happened(transaction)) return Status();
  if (!done.ok())
    return unavailable("the fleet's registry does not answer; {} may not have happened: {}", what,
                       done.status().message());
  return unavailable("{}: somebody else changed it at the same moment; try again", what);
}

void FleetAdapters::publish(AdapterRegistry::LoadRequest request, AdapterRegistry::Loaded done) {
  const auto publication = std::make_shared<Publication>(std::move(request), std::move(done), take_slot());
  if (!publication->slot) return publication->answer.give(unavailable("too many changes of the fleet wait"));
  (void)run(
      publication->slot, [this, publication] { publish_now(publication); },
      [this, publication](const Status& status) { give_up(*publication, status); });
}

void FleetAdapters::publish_now(const std::shared_ptr<Publication>& publication) {
  AdapterRegistry::LoadRequest& request = publication->request;
  AdapterRecord& record = publication->record;
  const Status reserved = [&]() -> Status {
    LK_RETURN_IF_ERROR(check_adapter_name("adapter name", request.name));
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
      record.publisher = self_.id;
    }
    LK_ASSIGN_OR_RETURN(record.files, cache_->add(request.path, adapter_file_names(request.path)));
    publication->content = record.content();
    if (const Status complete = check_files(record); !complete.ok())
      return not_found("{}: {}", request.path, complete.message());
    LK_ASSIGN_OR_RETURN(const Reserved number, reserve(record, request.replace));
    record.version = number.version;
    publication->revision = number.revision;
    return Status();
  }();
  if (!reserved.ok()) return give_up(*publication, reserved);
  request.path = cache_->path(publication->content);
  request.trusted_path = true;
  request.files = cache_->hold(publication->content);
  request.replace = true;
  request.keep_previous = true;
  request.persist = false;
  request.version = record.version;
  adapters_->load(request, [this, publication](Result<AdapterLease> loaded) {
    publication->is_loaded = loaded.ok();
    // The registry may take seconds: not on a loader's thread.
    if (!run(
            publication->slot, [this, publication, loaded] { conclude(*publication, loaded); },
            [this, publication](const Status& status) { give_up(*publication, status); }))
      give_up(*publication, cancelled("the server is shutting down"));
  });
}

// Whatever ends a publication, nothing of it stays: here, in the cache or in the registry.
void FleetAdapters::give_up(Publication& publication, const Status& status) {
  const AdapterRecord& record = publication.record;
  bool stopped = false;
  {
    std::lock_guard lock(mutex_);
    stopped = stopped_;
  }
  if (std::exchange(publication.is_loaded, false) && !stopped)
    (void)adapters_->unload(fmt::format("{}@{}", record.name, record.version), nullptr);
  if (const int64_t revision = std::exchange(publication.revision, 0); revision != 0) {
    const std::string key = adapter_key(record.name, record.version);
    const AdapterRecord gone{.name = record.name, .version = record.version, .state = AdapterRecord::State::kDeleted};
    (void)registry_->commit({.unchanged = {{key, revision}}, .puts = {{key, format_adapter(gone)}}});
  }
  if (const std::string content = std::exchange(publication.content, ""); !content.empty()) release(content);
  publication.answer.give(status);
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
    const std::string value = format_adapter(record);
    const Result<bool> taken = registry_->commit({.unchanged = {{key, 0}}, .puts = {{key, value}}});
    const Result<Registry::Entries> own = registry_->list(key);  // which revision; and whether, if its answer was lost
    if (!own.ok()) return unavailable("the fleet's registry does not answer: {}", own.status().message());
    if (const auto found = own->find(key); found != own->end() && found->second.value == value)
      return Reserved{.version = last + 1, .revision = found->second.revision};
    if (!taken.ok()) return unavailable("the fleet's registry does not answer: {}", taken.status().message());
  }
  return unavailable("others publish \"{}\" at the same time; try again", record.name);
}

void FleetAdapters::conclude(Publication& publication, Result<AdapterLease> loaded) {
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

void FleetAdapters::remove(const std::string& target, std::function<void(const Status&)> done) {
  change([this, target] { return remove_now(target); }, std::move(done));
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

void FleetAdapters::set_alias(const std::string& alias, const std::string& target,
                              std::function<void(const Status&)> done) {
  change([this, alias, target] { return set_alias_now(alias, target); }, std::move(done));
}

Status FleetAdapters::set_alias_now(const std::string& alias, const std::string& target) {
  LK_RETURN_IF_ERROR(check_adapter_name("alias", alias));
  // As the registry has it now, not as this server last heard: no adapter of that name, and one that the alias means.
  const AdapterKey wanted = split_version(target);
  Registry::Transaction change{.puts = {{alias_key(alias), format_alias(target)}}};
  for (const bool of_target : {false, true}) {
    const Result<Registry::Entries> versions = registry_->list(versions_key(of_target ? wanted.name : alias));
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

bool FleetAdapters::has_alias(const std::string& alias) const {
  std::lock_guard lock(mutex_);
  const auto found = aliases_.find(alias_key(alias));
  const Result<std::string> target =
      found == aliases_.end() ? Result<std::string>(std::string()) : parse_alias(found->first, found->second.value);
  return target.ok() && !target->empty();
}

}  // namespace lk
