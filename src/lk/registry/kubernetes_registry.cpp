// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/kubernetes_registry.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdlib>

#include <boost/json/array.hpp>

#include "lk/base/bytes.h"
#include "lk/base/json_fields.h"
#include "lk/base/sha256.h"
#include "lk/base/thread_name.h"
#include "lk/registry/member.h"

namespace lk {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGoodbye{2};
constexpr int kTries = 6;  // others write the same object

std::string random_identity() {
  uint8_t bytes[16] = {};
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) std::abort();
  return to_hex(bytes);
}

bool is_of_keys(std::string_view name) { return name.starts_with("tenants/") || name.starts_with("keys/"); }

}  // namespace

// What the io thread tells a watch's thread.
struct KubernetesRegistry::Following {
  std::mutex mutex;
  std::condition_variable news;
  Listing listing;                        // guarded by mutex, like all below
  bool changed = false, unknown = false;  // unknown: history is gone, or it said something strange; list again
  bool stopping = false;
  std::optional<Status> ended;
};

KubernetesRegistry::KubernetesRegistry(std::unique_ptr<KubernetesClient> client, Options options)
    : options_(std::move(options)), client_(std::move(client)), identity_(random_identity()) {
  threads_.emplace_back([this] { hold_until_stopped(); });
}

KubernetesRegistry::~KubernetesRegistry() { close(); }

void KubernetesRegistry::close() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& weak : followings_)
      if (const auto following = weak.lock()) {
        std::lock_guard inner(following->mutex);
        following->stopping = true;
        following->news.notify_all();
      }
  }
  changed_.notify_all();
  client_->stop();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

bool KubernetesRegistry::pause(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, time, [this] { return stopping_; });
}

void KubernetesRegistry::note(const Status& outcome) {
  if (outcome.code() == StatusCode::kCancelled) return;
  {
    std::lock_guard lock(mutex_);
    if (reachable_ == outcome.ok() && told_) return;
    reachable_ = outcome.ok();
    const bool first = !std::exchange(told_, true);
    if (first && reachable_) return;  // as it should be
  }
  if (outcome.ok())
    log("registry_back", client_->url());
  else
    log("registry_away", fmt::format("{}; what is known of the fleet goes on being true", outcome.message()));
}

bool KubernetesRegistry::is_reachable() const {
  std::lock_guard lock(mutex_);
  return reachable_;
}

// --- Reading and writing

KubernetesRegistry::Objects KubernetesRegistry::objects_for(std::string_view prefix) const {
  const bool is_secret = is_of_keys(prefix);
  return {.path = fmt::format("/api/v1/namespaces/{}/{}", options_.name_space, is_secret ? "secrets" : "configmaps"),
          .kind = is_secret ? "Secret" : "ConfigMap",
          .selector = fmt::format("fieldSelector=metadata.name%3D{}", object_name()),
          .is_secret = is_secret};
}

KubernetesRegistry::Objects KubernetesRegistry::slices() const {
  return {.path = fmt::format("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", options_.name_space),
          .kind = "EndpointSlice",
          .selector = fmt::format("labelSelector=kubernetes.io%2Fservice-name%3D{}", options_.fleet)};
}

Result<KubernetesEntries> KubernetesRegistry::read(const Objects& objects) {
  const Result<json::object> object = client_->call("GET", objects.path + "/" + object_name());
  const bool is_missing = object.status().code() == StatusCode::kNotFound;
  note(is_missing ? Status() : object.status());
  if (is_missing) return KubernetesEntries();
  if (!object.ok()) return object.status();
  return read_entries(*object, objects.is_secret);
}

Result<Registry::Entries> KubernetesRegistry::read_members(const std::vector<json::object>& slices) {
  LK_ASSIGN_OR_RETURN(const KubernetesEntries said, read(objects_for(kMembers)));
  return members_in(slices, said.entries);
}

Result<KubernetesRegistry::Listing> KubernetesRegistry::list_all(const Objects& objects) {
  const Result<json::object> answer = client_->call("GET", objects.path + "?" + objects.selector);
  note(answer.status());
  if (!answer.ok()) return answer.status();
  Listing listing{.items = {}, .resource_version = resource_version_of(*answer)};
  const json::value* items = answer->if_contains("items");
  if (items == nullptr || !(items->is_array() || items->is_null()) || listing.resource_version.empty())
    return unavailable("{}{}: no list", client_->url(), objects.path);
  if (items->is_array())
    for (const json::value& item : items->get_array())
      if (item.is_object()) listing.items[name_of(item.get_object())] = item.get_object();
  return listing;
}

Result<Registry::Entries> KubernetesRegistry::entries_of(const std::string& prefix, const Objects& objects,
                                                         const Listing& listing) {
  Entries all;
  if (prefix.starts_with(kMembers)) {
    std::vector<json::object> found;
    for (const auto& [name, object] : listing.items) found.push_back(object);
    LK_ASSIGN_OR_RETURN(all, read_members(found));
  } else if (const auto own = listing.items.find(object_name()); own != listing.items.end()) {
    all = read_entries(own->second, objects.is_secret).entries;
  }
  std::erase_if(all, [&](const auto& entry) { return !entry.first.starts_with(prefix); });
  return all;
}

Result<Registry::Entries> KubernetesRegistry::list(const std::string& prefix) {
  const Objects objects = prefix.starts_with(kMembers) ? slices() : objects_for(prefix);
  LK_ASSIGN_OR_RETURN(const Listing listing, list_all(objects));
  return entries_of(prefix, objects, listing);
}

Result<bool> KubernetesRegistry::commit(const Transaction& transaction) {
  std::vector<std::string_view> names;
  for (const auto* pairs : {&transaction.unchanged, &transaction.none_newer})
    for (const auto& [name, revision] : *pairs) names.push_back(name);
  for (const auto& [name, value] : transaction.puts) names.push_back(name);
  for (const std::string& name : transaction.removals) names.push_back(name);
  if (names.empty()) return true;
  if (std::ranges::any_of(names, [&](std::string_view name) { return is_of_keys(name) != is_of_keys(names[0]); }))
    return invalid_argument("a transaction about keys and something else");
  const Objects objects = objects_for(names[0]);
  for (int tries = 0; tries < kTries; ++tries) {
    LK_ASSIGN_OR_RETURN(KubernetesEntries entries, read(objects));
    if (!apply(transaction, entries)) return false;
    LK_ASSIGN_OR_RETURN(const json::object object,
                        format_entries(entries, objects.kind, object_name(), objects.is_secret));
    const bool is_new = entries.resource_version.empty();
    const Result<json::object> written =
        client_->call(is_new ? "POST" : "PUT", is_new ? objects.path : objects.path + "/" + object_name(), &object);
    // Somebody else wrote it, or took it away, since it was read.
    const bool was_late =
        written.status().code() == StatusCode::kAlreadyExists || written.status().code() == StatusCode::kNotFound;
    note(was_late ? Status() : written.status());
    if (written.ok()) return true;
    if (!was_late) return written.status();
  }
  return unavailable("others write {} {} all the time", objects.kind, object_name());
}

// --- Watching

void KubernetesRegistry::watch(const std::string& prefix, std::function<void(const Entries&)> on_change) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  threads_.emplace_back([this, prefix, on_change = std::move(on_change)] { watch_until_stopped(prefix, on_change); });
}

void KubernetesRegistry::watch_until_stopped(const std::string& prefix,
                                             const std::function<void(const Entries&)>& on_change) {
  set_thread_name("lk-registry");
  const Objects objects = prefix.starts_with(kMembers) ? slices() : objects_for(prefix);
  std::optional<Entries> seen;
  Listing listing;
  const auto look = [&] {
    Result<Entries> now = entries_of(prefix, objects, listing);
    if (!now.ok() || (seen && *seen == *now)) return;
    seen = std::move(*now);
    on_change(*seen);
  };
  do {
    Result<Listing> listed = list_all(objects);
    if (!listed.ok()) continue;
    listing = std::move(*listed);
    look();
    const Status ended = follow(objects, listing, look);
    if (ended.code() != StatusCode::kFailedPrecondition) note(ended);  // history that is gone is nobody's fault
  } while (pause(options_.retry));
}

// Returns when everything has to be listed again: history that is gone (410), a watch that broke, or its time is over.
Status KubernetesRegistry::follow(const Objects& objects, Listing& listing, const std::function<void()>& on_change) {
  const auto following = std::make_shared<Following>();
  following->listing = listing;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(followings_, [](const auto& weak) { return weak.expired(); });
    followings_.push_back(following);
    following->stopping = stopping_;
  }
  const std::string path =
      fmt::format("{}?watch=1&{}&resourceVersion={}&allowWatchBookmarks=true&timeoutSeconds={}", objects.path,
                  objects.selector, listing.resource_version, options_.watch.count());
  // A server that hangs ends no watch.
  const int64_t stream = client_->open(
      path, options_.watch + std::chrono::seconds(10),
      [following](std::string_view event) { on_event(*following, event); },
      [following](const Status& status) {
        std::lock_guard inner(following->mutex);
        following->ended = status;
        following->news.notify_all();
      });
  std::unique_lock lock(following->mutex);
  while (!following->stopping && !following->unknown) {
    following->news.wait(
        lock, [&] { return following->changed || following->ended || following->unknown || following->stopping; });
    if (std::exchange(following->changed, false)) {
      listing = following->listing;
      lock.unlock();
      on_change();
      lock.lock();
    } else if (following->ended) {
      break;
    }
  }
  const Status ended = following->stopping ? cancelled("closed") : following->ended.value_or(Status());
  lock.unlock();
  client_->close(stream);
  return ended;
}

void KubernetesRegistry::on_event(Following& following, std::string_view text) {
  Result<json::object> event = parse_json_object(text, "Kubernetes");
  std::lock_guard lock(following.mutex);
  const json::value* type = event.ok() ? event->if_contains("type") : nullptr;
  json::value* object = event.ok() ? event->if_contains("object") : nullptr;
  following.news.notify_all();
  if (type == nullptr || !type->is_string() || object == nullptr || !object->is_object() ||
      type->get_string() == "ERROR") {
    following.unknown = true;
    return;
  }
  json::object& item = object->get_object();
  if (const std::string version = resource_version_of(item); !version.empty())
    following.listing.resource_version = version;
  if (type->get_string() == "BOOKMARK") return;
  const std::string name = name_of(item);
  if (type->get_string() == "DELETED")
    following.listing.items.erase(name);
  else
    following.listing.items[name] = std::move(item);
  following.changed = true;
}

// --- Places

void KubernetesRegistry::announce(Announcement announcement) {
  {
    std::lock_guard lock(mutex_);
    if (withdrawn_) return;
    const std::string name = announcement.name;
    announced_[name] = std::move(announcement);
    new_announcement_ = true;
  }
  changed_.notify_all();
}

void KubernetesRegistry::withdraw() {
  std::unique_lock lock(mutex_);
  withdrawn_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, kGoodbye, [this] { return gone_ || stopping_; });
}

void KubernetesRegistry::hold_until_stopped() {
  set_thread_name("lk-lease");
  std::unique_lock lock(mutex_);
  bool is_well = true;
  for (;;) {
    changed_.wait_for(lock, is_well ? options_.renew : options_.retry,
                      [this] { return stopping_ || new_announcement_ || (withdrawn_ && !gone_); });
    if (stopping_) return;
    new_announcement_ = false;
    const auto announced = announced_;
    const bool leaves = withdrawn_ && !gone_;
    lock.unlock();
    is_well = true;
    for (const auto& [name, announcement] : announced) {
      if (leaves) {
        let_go(announcement);
      } else if (const Status held = hold(announcement); !held.ok()) {
        is_well = false;
        if (held.code() != StatusCode::kUnavailable && std::exchange(refused_[name], held.message()) != held.message())
          log("registry_refuses", fmt::format("{}: {}", name, held.message()));
      }
    }
    lock.lock();
    if (leaves) {
      announced_.clear();
      gone_ = true;
      changed_.notify_all();
    }
  }
}

Status KubernetesRegistry::hold(const Announcement& announcement) {
  return announcement.name.starts_with(kMembers) ? introduce(announcement) : hold_lease(announcement);
}

// Where a member is, the cluster says; what it is, this. Others that are not there any more are forgotten.
Status KubernetesRegistry::introduce(const Announcement& member) {
  const auto last = introduced_.find(member.name);
  if (last != introduced_.end() && Clock::now() < last->second + options_.announce) return Status();
  LK_ASSIGN_OR_RETURN(const KubernetesEntries said, read(objects_for(kMembers)));
  Transaction change;
  if (const auto& [name, value] = member.agreed; !name.empty()) {
    const auto found = said.entries.find(name);
    if (found == said.entries.end()) {
      change.unchanged.emplace_back(name, 0);
      change.puts.emplace_back(name, value);
    } else if (found->second.value != value) {
      return failed_precondition("{} of this fleet is {}, here it is {}", name, found->second.value, value);
    }
  }
  const auto own = said.entries.find(member.name);
  if (own == said.entries.end() || own->second.value != member.value)
    change.puts.emplace_back(member.name, member.value);
  LK_ASSIGN_OR_RETURN(const Entries there, list(std::string(kMembers)));
  if (!there.empty())
    for (const auto& [name, entry] : said.entries)
      if (name.starts_with(kMembers) && name != member.name && !there.contains(name)) change.removals.push_back(name);
  if (!change.puts.empty() || !change.removals.empty()) {
    LK_ASSIGN_OR_RETURN(const bool done, commit(change));
    if (!done) return unavailable("{} changed meanwhile", member.name);
  }
  introduced_[member.name] = Clock::now();
  return Status();
}

std::string KubernetesRegistry::lease_path(std::string_view name) const {
  std::string place(name);
  std::ranges::replace(place, '/', '-');
  return fmt::format("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}-{}", options_.name_space, object_name(),
                     place);
}

// Whoever has the Lease writes its name among the entries, once; transactions that rest on that entry fail from the
// moment on at which the next holder has done the same.
Status KubernetesRegistry::hold_lease(const Announcement& announcement) {
  const std::string path = lease_path(announcement.name);
  const size_t slash = path.rfind('/');
  KubernetesLease lease{.name = path.substr(slash + 1), .seconds = options_.time_to_live.count()};
  const Result<json::object> found = client_->call("GET", path);
  const bool is_new = found.status().code() == StatusCode::kNotFound;
  note(is_new ? Status() : found.status());
  if (!is_new) {
    if (!found.ok()) return found.status();
    const std::string name = lease.name;
    lease = read_lease(*found);
    lease.name = name;
  }
  const bool was_ours = lease.holder == identity_;
  if (!was_ours && !lease.holder.empty()) {
    Seen& seen = seen_[announcement.name];
    const Clock::time_point now = Clock::now();
    if (seen.holder != lease.holder || seen.renewed != lease.renewed)
      seen = {.holder = lease.holder, .renewed = lease.renewed, .since = now};
    if (now < seen.since + std::chrono::seconds(std::clamp<int64_t>(lease.seconds, 1, 3600))) return Status();
  }
  if (!was_ours && !is_new) ++lease.transitions;
  lease.holder = identity_;
  lease.seconds = options_.time_to_live.count();
  const json::object object = format_lease(lease, std::chrono::system_clock::now());
  const Result<json::object> written =
      client_->call(is_new ? "POST" : "PUT", is_new ? path.substr(0, slash) : path, &object);
  if (written.status().code() == StatusCode::kAlreadyExists) return Status();  // somebody was faster
  note(written.status());
  if (!written.ok()) return written.status();
  LK_ASSIGN_OR_RETURN(const KubernetesEntries entries, read(objects_for(announcement.name)));
  const auto own = entries.entries.find(announcement.name);
  if (own != entries.entries.end() && own->second.value == announcement.value) return Status();
  return commit({.puts = {{announcement.name, announcement.value}}}).status();
}

void KubernetesRegistry::let_go(const Announcement& announcement) {
  if (announcement.name.starts_with(kMembers)) return;  // its pod goes
  const std::string path = lease_path(announcement.name);
  const Result<json::object> found = client_->call("GET", path);
  if (!found.ok()) return;
  KubernetesLease lease = read_lease(*found);
  if (lease.holder != identity_) return;
  lease.holder.clear();
  const json::object object = format_lease(lease, std::chrono::system_clock::now());
  if (!client_->call("PUT", path, &object).ok()) return;
  const Result<KubernetesEntries> entries = read(objects_for(announcement.name));
  if (!entries.ok()) return;
  if (const auto own = entries->entries.find(announcement.name);
      own != entries->entries.end() && own->second.value == announcement.value)
    (void)commit({.unchanged = {{announcement.name, own->second.revision}}, .removals = {announcement.name}});
}

}  // namespace lk
