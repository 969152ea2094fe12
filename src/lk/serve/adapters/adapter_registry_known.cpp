// SPDX-License-Identifier: Apache-2.0
// What the registry knows without having loaded it: stored adapters after a restart, directories that are watched, and
// what was let go of because nobody used it.
#include <algorithm>
#include <future>

#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/adapters/adapter_stat.h"

namespace lk {
namespace {

constexpr Clock::duration kFirstRetry = std::chrono::seconds(1), kLastRetry = std::chrono::seconds(60);

}  // namespace

void AdapterRegistry::restore(const StoredAdapter& stored, bool load_now) {
  auto known = std::make_unique<KnownAdapter>();
  known->path = stored.path;
  known->digest = stored.digest;
  known->tenant = stored.tenant;
  known->pinned = stored.pinned;
  known->load_now = load_now;
  std::lock_guard lock(mutex_);
  const AdapterKey key{stored.name, stored.version};
  if (!table_.slot(key)) table_.know(key, std::move(known));
}

bool AdapterRegistry::offer_fleet(const FleetVersion& version) {
  if (is_base(version.name)) return false;
  std::lock_guard lock(mutex_);
  if (table_.aliases.contains(version.name)) return false;
  const AdapterKey key{version.name, version.version};
  if (const AdapterTable::Name* name = table_.name(version.name)) {
    // One that is being published here is loaded, and known a moment later.
    for (const auto& [number, slot] : name->versions)
      if (!slot.is_fleet()) return false;
    if (name->versions.contains(version.version)) return true;
  }
  auto known = std::make_unique<KnownAdapter>();
  known->fleet = true;
  known->path = version.path;
  known->digest = version.digest;
  known->tenant = version.tenant;
  table_.know(key, std::move(known));
  return true;
}

bool AdapterRegistry::is_fleet(const std::string& text) const {
  std::lock_guard lock(mutex_);
  const AdapterTable::Found found = table_.find(text);
  return found.slot && found.slot->is_fleet();
}

void AdapterRegistry::load_restored() {
  std::vector<AdapterKey> keys;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, entry] : table_.names())
      for (const auto& [number, slot] : entry.versions)
        if (!slot.lease && slot.known->stored() && slot.known->load_now) keys.push_back({name, number});
  }
  std::vector<std::future<void>> loads;
  for (const AdapterKey& key : keys) {
    auto done = std::make_shared<std::promise<void>>();
    loads.push_back(done->get_future());
    load_known(key, "", [done] { done->set_value(); });
  }
  for (std::future<void>& load : loads) load.wait();
}

// --- Watched directories

bool AdapterRegistry::offer(const std::string& text, std::shared_ptr<const std::string> root, bool load_now) {
  std::lock_guard lock(mutex_);
  if (is_base(text) || table_.aliases.contains(text)) return false;
  if (const AdapterTable::Name* existing = table_.name(text)) {
    for (const auto& [number, slot] : existing->versions)
      if (!slot.lease && slot.is_watched()) {
        table_.set_root({text, number}, std::move(root));
        return true;
      }
    return false;
  }
  auto known = std::make_unique<KnownAdapter>();
  known->root = std::move(root);
  known->load_now = load_now;
  table_.know({text, 0}, std::move(known));
  return true;
}

AdapterRegistry::Watched AdapterRegistry::watched(const std::string& text) const {
  std::lock_guard lock(mutex_);
  const AdapterTable::Name* name = table_.name(text);
  if (!name) return {};
  Watched found{.state = Watched::kOthers};
  for (const auto& [number, slot] : name->versions) {
    if (!slot.is_watched()) continue;
    if (slot.lease)
      found = {.state = Watched::kLoaded, .stamp = slot.lease->stamp};
    else if (found.state != Watched::kLoaded)
      found = {.state = Watched::kOffered};
  }
  return found;
}

void AdapterRegistry::withdraw(const std::string& text) {
  std::vector<AdapterKey> ours;
  bool is_default = false;
  {
    std::lock_guard lock(mutex_);
    const AdapterTable::Name* name = table_.name(text);
    if (!name) return;
    for (const auto& [number, slot] : name->versions)
      if (slot.is_watched()) {
        ours.push_back({text, number});
        is_default |= number == name->default_version;
      }
    if (ours.empty()) return;
    if (!is_default) table_.erase({text, 0});
  }
  bool known = false;
  if (is_default)
    known = unload(text, nullptr).ok();
  else
    for (const AdapterKey& key : ours)
      if (key.version > 0) known |= unload(exact_name(key), nullptr).ok();
  if (options_.log)
    options_.log->write(LogLevel::kInfo, "adapter_unloaded",
                        {{"adapter", text}, {"version", ours.back().version}, {"known", known}});
}

void AdapterRegistry::set_directories(std::vector<WatchedDirectory> directories) {
  std::lock_guard lock(mutex_);
  directories_ = std::move(directories);
}

std::vector<WatchedDirectory> AdapterRegistry::directories() const {
  std::lock_guard lock(mutex_);
  return directories_;
}

// --- Loading what is known

// Queues the load of a version that is known; whoever waits for it hears of it.
void AdapterRegistry::load_known(const AdapterKey& key, const std::string& asker, std::function<void()> then) {
  std::string absent;  // the directory, which has to come from elsewhere
  if (options_.supply) {
    std::lock_guard lock(mutex_);
    const AdapterTable::Slot* slot = table_.slot(key);
    if (slot && !slot->lease && slot->is_fleet()) absent = slot->known->path;
  }
  if (!absent.empty() && !options_.supply->hold(absent)) {
    // No loader waits for other machines.
    options_.supply->fetch(absent, [this, key, asker, then = std::move(then)](const Status& status) {
      if (status.ok()) return queue_load(key, asker, then);
      note_failure({.name = key.name, .version = key.version},
                   status.code() == StatusCode::kResourceExhausted ? Trouble::kNoMemory : Trouble::kUnreadable, status);
      finish_waiting(key, status);
      if (then) then();
    });
    return;
  }
  queue_load(key, asker, std::move(then));
}

void AdapterRegistry::queue_load(const AdapterKey& key, const std::string& asker, std::function<void()> then) {
  auto result = std::make_shared<Result<AdapterLease>>(unavailable("the load did not end"));
  queue_.push(asker, {.name = key.name,
                      .load = [this, key, result] { *result = run_known_load(key); },
                      .done =
                          [this, key, result, then = std::move(then)](const Status& ended) {
                            finish_waiting(key, ended.ok() ? *result : Result<AdapterLease>(ended));
                            if (then) then();
                          }});
}

Result<AdapterLease> AdapterRegistry::run_known_load(const AdapterKey& key) {
  LoadRequest request;
  std::optional<Trouble> before;
  bool is_fleet = false;
  {
    std::lock_guard lock(mutex_);
    const AdapterTable::Slot* slot = table_.slot(key);
    if (!slot) return no_such_model(key.name);
    if (slot->lease) return slot->lease;
    const KnownAdapter& known = *slot->known;
    request = {.name = key.name,
               .path = known.directory(key.name),
               .trusted_path = known.fleet,  // this server's own directory
               .replace = true,
               .keep_previous = !known.watched(),
               .pinned = known.pinned,
               .persist = known.stored(),
               .tenant = known.tenant,
               .by_content = known.watched(),
               .root = known.root,
               .version = key.version,
               .digest = known.digest};
    if (known.trouble) before = *known.trouble;
    is_fleet = known.fleet;
  }
  if (is_fleet && !(request.files = options_.supply->hold(request.path))) {
    const Status gone = unavailable("its files are not here any more");
    note_failure(request, Trouble::kUnreadable, gone);
    return gone;
  }
  // Bad files do not get better by being read again.
  if (before && before->is_about_content() && stat_adapter(request.path).stamp == before->stamp) {
    const Status same = data_loss("{}", before->reason);
    note_failure(request, before->kind, same);
    return same;
  }
  return run_load_guarded(request);
}

void AdapterRegistry::load_cold(const std::string& cold, const std::string& tenant, Clock::time_point deadline,
                                Loaded done) {
  std::optional<Result<AdapterLease>> now;
  bool is_first = false;
  AdapterKey key;
  {
    std::lock_guard lock(mutex_);
    const AdapterTable::Found found = table_.find(cold);
    if (!found.slot) {
      now = no_such_model(cold);
    } else if (found.slot->lease) {
      now = found.slot->lease;
    } else {
      key = found.key();
      if (!waiters_.add(key, {.tenant = tenant, .deadline = deadline, .done = done}, is_first))
        now = unavailable("the server is overloaded: too many requests wait for adapters to be loaded");
    }
  }
  if (now) return done(std::move(*now));
  if (is_first) load_known(key, tenant);
}

void AdapterRegistry::finish_waiting(const AdapterKey& key, const Result<AdapterLease>& loaded) {
  std::vector<LoadWaiter> waiters;
  {
    std::lock_guard lock(mutex_);
    waiters = waiters_.take(key);
  }
  for (const LoadWaiter& waiter : waiters) waiter.done(loaded);
}

void AdapterRegistry::tick(Clock::time_point now) {
  std::vector<LoadWaiter> late;
  std::vector<AdapterKey> due;
  {
    std::lock_guard lock(mutex_);
    late = waiters_.take_late(now);
    for (const AdapterKey& key : table_.troubled()) {
      const KnownAdapter& known = *table_.slot(key)->known;
      if (!known.load_now || known.trouble->retry_at > now || waiters_.contains(key)) continue;
      due.push_back(key);
    }
    for (const AdapterKey& key : due) table_.postpone(key, now + kLastRetry);  // until this try says another time
  }
  for (const LoadWaiter& waiter : late)
    waiter.done(deadline_exceeded("the request's timeout passed while its adapter was being loaded"));
  for (const AdapterKey& key : due) load_known(key, "");
}

// An adapter that is known stays known: requests for it are told, and it is tried again later.
void AdapterRegistry::note_failure(const LoadRequest& request, Trouble::Kind kind, const Status& status) {
  if (!request.version && !request.root) return;  // whoever asked for it hears of it
  const AdapterStat files = stat_adapter(request.path);
  const AdapterKey key{request.name, request.version.value_or(0)};
  bool is_news = true;
  {
    std::lock_guard lock(mutex_);
    // The replacement of one that is loaded: what is loaded stays, and this is tried again beside it.
    if (request.root && !table_.slot(key) && table_.name(request.name)) {
      auto known = std::make_unique<KnownAdapter>();
      known->root = request.root;
      known->load_now = true;
      table_.know(key, std::move(known));
    }
    const AdapterTable::Slot* slot = table_.slot(key);
    if (slot && slot->known && !slot->lease) {
      const Trouble* before = slot->known->trouble.get();
      const int attempts = before ? before->attempts : 0;
      is_news = !before || before->kind != kind;
      const auto delay = std::min<Clock::duration>(kFirstRetry * (int64_t{1} << std::min(attempts, 10)), kLastRetry);
      table_.set_trouble(key, {.kind = kind,
                               .reason = status.message(),
                               .attempts = attempts + 1,
                               .stamp = files.stamp,
                               .retry_at = Clock::now() + delay});
    }
  }
  if (!options_.log) return;
  const LogLevel level = is_news ? LogLevel::kWarning : LogLevel::kDebug;
  if (kind == Trouble::kChanged)
    options_.log->write(level, "adapter_changed_on_disk",
                        {{"adapter", key.name}, {"version", key.version}, {"reason", status.message()}});
  else
    options_.log->write(level, "adapter_failed",
                        {{"adapter", key.name},
                         {"version", key.version},
                         {"retried", kind != Trouble::kRefused},
                         {"reason", status.message()}});
}

// Of what could be loaded again only so many stay registered with nothing but their files: the least recently used are
// known by name again, with the version and the digest they have. One that is in pages or in host memory stays.
void AdapterRegistry::make_room_for_known() {
  {
    std::lock_guard lock(mutex_);
    if (std::ssize(table_.idle()) <= options_.max_idle) return;
  }
  // As things are now: what just left the pages has left, what a probe just brought there is there.
  const EngineService::Snapshot engine = service_.fresh_snapshot();
  std::vector<Retired> dropped;
  {
    std::lock_guard lock(mutex_);
    std::vector<std::pair<int64_t, AdapterKey>> candidates;
    for (const AdapterKey& key : table_.idle()) {
      const AdapterLease& lease = table_.slot(key)->lease;
      const auto state = engine.adapters.find(lease->id());
      const bool absent = state == engine.adapters.end() || state->second.state == AdapterState::kAbsent;
      if (lease.use_count() == 1 && !lease->pinned && !lease->host()->on_host() && absent)
        candidates.emplace_back(lease->last_use, key);
    }
    const auto excess = std::max<int64_t>(std::ssize(table_.idle()) - options_.max_idle, 0);
    std::ranges::sort(candidates);
    if (std::ssize(candidates) > excess) candidates.resize(static_cast<size_t>(excess));
    for (const auto& [use, key] : candidates) {
      dropped.emplace_back(key, *table_.slot(key));
      (void)table_.take_lease(key);
    }
  }
  let_go(dropped, nullptr);
}

}  // namespace lk
