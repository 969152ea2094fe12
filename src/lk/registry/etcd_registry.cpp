// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/etcd_registry.h"

#include <algorithm>
#include <optional>

#include <boost/json/array.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/thread_name.h"

namespace lk {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGoodbye{2};

// The first key behind all that begin with `prefix`.
std::string end_of(std::string prefix) {
  ++prefix.back();  // '/' or a letter: never the highest byte
  return prefix;
}

struct Pair {
  std::string key, value;
  int64_t revision = 0, lease = 0;
};

Result<Pair> read_pair(const json::value& value) {
  if (!value.is_object()) return data_loss("etcd: a pair that is no object");
  const json::object& object = value.get_object();
  Pair pair;
  for (const auto& [name, out] : {std::pair("key", &pair.key), std::pair("value", &pair.value)}) {
    const json::value* text = object.if_contains(name);
    if (text == nullptr) continue;  // empty
    if (!text->is_string()) return data_loss("etcd: a {} that is no text", name);
    LK_ASSIGN_OR_RETURN(*out, from_base64(text->get_string()));
  }
  LK_ASSIGN_OR_RETURN(pair.revision, etcd_number(object, "mod_revision"));
  LK_ASSIGN_OR_RETURN(pair.lease, etcd_number(object, "lease"));
  return pair;
}

Result<std::vector<Pair>> read_pairs(const json::object& answer) {
  std::vector<Pair> pairs;
  const json::value* list = answer.if_contains("kvs");
  if (list == nullptr) return pairs;
  if (!list->is_array()) return data_loss("etcd: pairs that are no list");
  for (const json::value& value : list->get_array()) {
    LK_ASSIGN_OR_RETURN(Pair pair, read_pair(value));
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

Result<int64_t> store_revision(const json::object& answer) {
  const json::value* header = answer.if_contains("header");
  if (header == nullptr || !header->is_object()) return data_loss("etcd: an answer without a header");
  return etcd_number(header->get_object(), "revision");
}

json::object compare(const std::string& key, int64_t revision) {
  return {{"key", key}, {"target", "MOD"}, {"result", "EQUAL"}, {"mod_revision", std::to_string(revision)}};
}

// Of a range without keys etcd compares a pair of zeros.
json::object compare_below(const std::string& prefix, int64_t revision) {
  return {{"key", to_base64(prefix)},
          {"range_end", to_base64(end_of(prefix))},
          {"target", "MOD"},
          {"result", "LESS"},
          {"mod_revision", std::to_string(revision + 1)}};
}

json::object put_operation(const std::string& key, std::string_view value, int64_t lease) {
  json::object put{{"key", key}, {"value", to_base64(value)}};
  if (lease != 0) put["lease"] = std::to_string(lease);
  json::object operation;
  operation["request_put"] = std::move(put);
  return operation;
}

json::object transaction_of(json::array compares, json::array operations) {
  json::object transaction;
  transaction["compare"] = std::move(compares);
  transaction["success"] = std::move(operations);
  return transaction;
}

bool succeeded(const json::object& answer) {
  const json::value* value = answer.if_contains("succeeded");
  return value != nullptr && value->is_bool() && value->get_bool();
}

}  // namespace

// What the io thread tells a watch's thread.
struct EtcdRegistry::Following {
  std::mutex mutex;
  std::condition_variable news;
  Entries entries;  // guarded by mutex, like all below
  int64_t revision = 0;
  bool changed = false, unknown = false;  // unknown: what happened cannot be told from here; list again
  bool stopping = false;
  std::optional<Status> ended;
};

EtcdRegistry::EtcdRegistry(std::unique_ptr<EtcdClient> client, Options options)
    : options_(std::move(options)), client_(std::move(client)) {
  threads_.emplace_back([this] { renew_until_stopped(); });
}

EtcdRegistry::~EtcdRegistry() { close(); }

void EtcdRegistry::close() {
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

bool EtcdRegistry::pause(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, time, [this] { return stopping_; });
}

void EtcdRegistry::note(const Status& outcome) {
  if (outcome.code() == StatusCode::kCancelled) return;
  const bool reachable = outcome.ok();
  {
    std::lock_guard lock(mutex_);
    if (reachable_ == reachable && told_) return;
    reachable_ = reachable;
    const bool first = !std::exchange(told_, true);
    if (first && reachable) return;  // as it should be
  }
  if (reachable)
    log("registry_back", client_->url(client_->endpoint()));
  else
    log("registry_away", fmt::format("{}; what is known of the fleet goes on being true", outcome.message()));
}

bool EtcdRegistry::is_reachable() const {
  std::lock_guard lock(mutex_);
  return reachable_;
}

Result<EtcdRegistry::Listing> EtcdRegistry::read(const std::string& prefix) {
  const std::string whole = options_.prefix + prefix;
  Result<json::object> answer =
      client_->call("/v3/kv/range", {{"key", to_base64(whole)}, {"range_end", to_base64(end_of(whole))}});
  note(answer.ok() ? Status() : answer.status());
  if (!answer.ok()) return answer.status();
  Listing listing;
  LK_ASSIGN_OR_RETURN(listing.revision, store_revision(*answer));
  LK_ASSIGN_OR_RETURN(const std::vector<Pair> pairs, read_pairs(*answer));
  for (const Pair& pair : pairs)
    if (pair.key.starts_with(whole))
      listing.entries[pair.key.substr(options_.prefix.size())] = {.value = pair.value, .revision = pair.revision};
  return listing;
}

Result<Registry::Entries> EtcdRegistry::list(const std::string& prefix) {
  LK_ASSIGN_OR_RETURN(Listing listing, read(prefix));
  return std::move(listing.entries);
}

Result<bool> EtcdRegistry::commit(const Transaction& transaction) {
  json::array compares, operations;
  for (const auto& [name, revision] : transaction.unchanged) compares.push_back(compare(key(name), revision));
  for (const auto& [prefix, revision] : transaction.none_newer)
    compares.push_back(compare_below(options_.prefix + prefix, revision));
  for (const auto& [name, value] : transaction.puts) operations.push_back(put_operation(key(name), value, 0));
  for (const std::string& name : transaction.removals) {
    json::object operation;
    operation["request_delete_range"] = json::object{{"key", key(name)}};
    operations.push_back(std::move(operation));
  }
  const Result<json::object> answer =
      client_->call("/v3/kv/txn", transaction_of(std::move(compares), std::move(operations)));
  note(answer.ok() ? Status() : answer.status());
  if (!answer.ok()) return answer.status();
  return succeeded(*answer);
}

// --- Watching

void EtcdRegistry::watch(const std::string& prefix, std::function<void(const Entries&)> on_change) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  threads_.emplace_back([this, prefix, on_change = std::move(on_change)] { watch_until_stopped(prefix, on_change); });
}

void EtcdRegistry::watch_until_stopped(const std::string& prefix,
                                       const std::function<void(const Entries&)>& on_change) {
  set_thread_name("lk-registry");
  std::optional<Entries> seen;
  do {
    Result<Listing> listing = read(prefix);
    if (!listing.ok()) continue;
    if (!seen || *seen != listing->entries) {
      seen = listing->entries;
      on_change(*seen);
    }
    follow(prefix, std::move(*listing), *seen, on_change);
  } while (pause(options_.retry));
}

// Returns when what is known has to be listed again: history that the store no longer has, or a store that is another.
void EtcdRegistry::follow(const std::string& prefix, Listing listing, Entries& seen,
                          const std::function<void(const Entries&)>& on_change) {
  const std::string whole = options_.prefix + prefix;
  const json::object range{{"key", to_base64(whole)}, {"range_end", to_base64(end_of(whole))}};
  const auto following = std::make_shared<Following>();
  following->entries = std::move(listing.entries);
  following->revision = listing.revision;
  {
    std::lock_guard lock(mutex_);
    std::erase_if(followings_, [](const auto& weak) { return weak.expired(); });
    followings_.push_back(following);
    following->stopping = stopping_;
  }
  const Clock::time_point until = Clock::now() + options_.relist;
  std::unique_lock lock(following->mutex);
  while (!following->stopping && !following->unknown && Clock::now() < until) {
    following->ended.reset();
    const size_t endpoint = client_->endpoint();
    json::object create;
    create["create_request"] = range;
    create["create_request"].get_object()["start_revision"] = std::to_string(following->revision + 1);
    lock.unlock();
    const int64_t stream = client_->open(
        endpoint, "/v3/watch", create,
        [following, length = options_.prefix.size()](std::string_view message) {
          on_message(*following, length, message);
        },
        [following](const Status& status) {
          std::lock_guard inner(following->mutex);
          following->ended = status;
          following->news.notify_all();
        });
    lock.lock();
    Clock::time_point look = Clock::now() + options_.look;
    bool lives = true;
    while (lives && !following->stopping && !following->unknown && !following->ended && Clock::now() < until) {
      following->news.wait_until(lock, look, [&] {
        return following->changed || following->ended || following->unknown || following->stopping;
      });
      if (std::exchange(following->changed, false)) {
        seen = following->entries;
        lock.unlock();
        on_change(seen);
        lock.lock();
      }
      if (Clock::now() < look) continue;
      // A watch is silent while nothing changes. One whose member hangs, or is cut off from the others, is silent for
      // good: only a read that the majority confirms tells.
      json::object count = range;
      count["count_only"] = true;
      lock.unlock();
      const Result<json::object> answer = client_->call_at(endpoint, "/v3/kv/range", count);
      const Result<int64_t> revision = answer.ok() ? store_revision(*answer) : answer.status();
      note(revision.ok() ? Status() : revision.status());
      lock.lock();
      lives = revision.ok();
      if (lives && *revision < following->revision) following->unknown = true;  // it has lost its data
      look = Clock::now() + options_.look;
    }
    const bool broken = !lives || following->ended;
    lock.unlock();
    client_->close(stream);
    if (broken) {
      client_->skip(endpoint);
      json::object count = range;
      count["count_only"] = true;
      const Result<json::object> answer = client_->call("/v3/kv/range", count);  // finds one that answers
      note(answer.ok() ? Status() : answer.status());
      (void)pause(options_.retry);
    }
    lock.lock();
  }
}

void EtcdRegistry::on_message(Following& following, size_t prefix_length, std::string_view text) {
  const Result<json::object> message = parse_json_object(text, "etcd");
  std::lock_guard lock(following.mutex);
  const auto give_up = [&] {
    following.unknown = true;
    following.news.notify_all();
  };
  const json::value* result = message.ok() ? message->if_contains("result") : nullptr;
  if (result == nullptr || !result->is_object()) return give_up();
  const json::object& answer = result->get_object();
  if (answer.contains("canceled") || answer.contains("compact_revision")) return give_up();
  const json::value* events = answer.if_contains("events");
  if (events == nullptr || following.unknown) return;
  if (!events->is_array()) return give_up();
  for (const json::value& event : events->get_array()) {
    const json::value* content = event.is_object() ? event.get_object().if_contains("kv") : nullptr;
    const Result<Pair> pair = content ? read_pair(*content) : data_loss("etcd: an event without a pair");
    if (!pair.ok() || pair->key.size() <= prefix_length) return give_up();
    const json::value* type = event.get_object().if_contains("type");
    const std::string name = pair->key.substr(prefix_length);
    if (type && type->is_string() && type->get_string() == "DELETE")
      following.entries.erase(name);
    else
      following.entries[name] = {.value = pair->value, .revision = pair->revision};
    // Not the header's: a long history comes in several messages, each with the revision of the whole store.
    following.revision = std::max(following.revision, pair->revision);
    following.changed = true;
  }
  if (following.changed) following.news.notify_all();
}

// --- Announcing

void EtcdRegistry::announce(Announcement announcement) {
  {
    std::lock_guard lock(mutex_);
    if (withdrawn_) return;
    const std::string name = announcement.name;
    announced_[name] = std::move(announcement);
    new_announcement_ = true;
  }
  changed_.notify_all();
}

void EtcdRegistry::renew_until_stopped() {
  set_thread_name("lk-lease");
  std::unique_lock lock(mutex_);
  std::chrono::milliseconds wait = options_.time_to_live / 3;
  for (;;) {
    changed_.wait_for(lock, wait, [this] { return stopping_ || new_announcement_ || (withdrawn_ && !gone_); });
    if (stopping_) return;
    if (withdrawn_ && !gone_) {
      lock.unlock();
      // With all that carries this lease; what others put under its name has their own.
      if (lease_ != 0)
        (void)client_->call_at(client_->endpoint(), "/v3/lease/revoke", {{"ID", std::to_string(lease_)}});
      lock.lock();
      gone_ = true;
      changed_.notify_all();
    }
    if (announced_.empty() || withdrawn_) continue;
    new_announcement_ = false;
    for (const auto& [name, announcement] : announced_) places_[name].announcement = announcement;
    lock.unlock();
    const Status renewed = renew();
    note(renewed);
    lock.lock();
    wait = renewed.ok() ? std::chrono::milliseconds(options_.time_to_live) / 3 : options_.retry;
  }
}

Status EtcdRegistry::renew() {
  if (lease_ != 0) {
    LK_ASSIGN_OR_RETURN(const json::object answer,
                        client_->call("/v3/lease/keepalive", {{"ID", std::to_string(lease_)}}));
    const json::value* result = answer.if_contains("result");
    int64_t left = 0;
    if (result && result->is_object()) {
      LK_ASSIGN_OR_RETURN(left, etcd_number(result->get_object(), "TTL"));
    }
    if (left <= 0) lease_ = 0;  // it was away for so long, or lost its data
  }
  if (lease_ == 0) {
    LK_ASSIGN_OR_RETURN(const json::object answer,
                        client_->call("/v3/lease/grant", {{"TTL", std::to_string(options_.time_to_live.count())}}));
    LK_ASSIGN_OR_RETURN(lease_, etcd_number(answer, "ID"));
    if (lease_ == 0) return data_loss("etcd: a lease without a number");
  }
  Status first;
  for (auto& [name, place] : places_) {
    Status status = take_place(place);
    if (status.code() == StatusCode::kNotFound) lease_ = 0;  // it ended a moment ago
    if (first.ok() && !status.ok()) first = std::move(status);
  }
  return first;
}

// Two processes of one name would take it from each other for ever: whoever sees that somebody else took it lets it be.
Status EtcdRegistry::take_place(Place& place) {
  const Announcement& wanted = place.announcement;
  LK_ASSIGN_OR_RETURN(const json::object found, client_->call("/v3/kv/range", {{"key", key(wanted.name)}}));
  LK_ASSIGN_OR_RETURN(const std::vector<Pair> pairs, read_pairs(found));
  int64_t revision = 0;
  if (pairs.empty()) {
    place.displaced = false;
  } else {
    const Pair& there = pairs[0];
    revision = there.revision;
    const bool ours = there.revision == place.revision || there.value == wanted.value;
    if (ours && there.value == wanted.value && there.lease == lease_) {
      place.revision = there.revision;
      return Status();
    }
    place.displaced |= !ours && place.revision != 0;
    if (!ours && (place.displaced || !wanted.may_replace || !wanted.may_replace(there.value))) {
      if (std::exchange(place.told, there.value) != there.value)
        log("registry_name_taken", fmt::format("{} is {}; this process is not in the registry until that one is gone",
                                               wanted.name, there.value));
      return Status();
    }
  }
  json::array compares, operations;
  if (const auto& [name, value] = wanted.agreed; !name.empty()) {
    LK_ASSIGN_OR_RETURN(const json::object answer, client_->call("/v3/kv/range", {{"key", key(name)}}));
    LK_ASSIGN_OR_RETURN(const std::vector<Pair> agreed, read_pairs(answer));
    if (agreed.empty()) {
      compares.push_back(compare(key(name), 0));
      operations.push_back(put_operation(key(name), value, 0));
    } else if (agreed[0].value != value) {
      if (std::exchange(place.told, agreed[0].value) != agreed[0].value)
        log("registry_disagrees", fmt::format("{} of this fleet is {}, here it is {}; this process stays out of it",
                                              name, agreed[0].value, value));
      return Status();
    }
  }
  compares.push_back(compare(key(wanted.name), revision));
  operations.push_back(put_operation(key(wanted.name), wanted.value, lease_));
  LK_ASSIGN_OR_RETURN(const json::object answer,
                      client_->call("/v3/kv/txn", transaction_of(std::move(compares), std::move(operations))));
  if (!succeeded(answer)) return unavailable("etcd: {} changed meanwhile", wanted.name);
  LK_ASSIGN_OR_RETURN(place.revision, store_revision(answer));
  place.told.clear();
  return Status();
}

void EtcdRegistry::withdraw() {
  std::unique_lock lock(mutex_);
  withdrawn_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, kGoodbye, [this] { return gone_ || stopping_; });
}

}  // namespace lk
