// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <list>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <unordered_map>

#include "lk/grammar/grammar.h"

namespace lk {
namespace {

std::string key_of(const GrammarSpec& spec, const TokenVocabulary& vocabulary) {
  std::string key(1, static_cast<char>(spec.kind));
  key += std::to_string(vocabulary.id()) + ";";
  const auto add = [&](const std::string& text) { key += std::to_string(text.size()) + ":" + text; };
  if (spec.kind == GrammarSpec::Kind::kChoice) {
    for (const std::string& choice : spec.choices) add(choice);
  } else if (spec.kind != GrammarSpec::Kind::kJsonObject) {
    add(spec.text);
  }
  return key;
}

// What fails to compile costs as much as what does not: the reasons of the last ones are kept.
constexpr size_t kMaxFailures = 64;

}  // namespace

struct GrammarCache::Impl {
  struct Entry {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
    int64_t bytes() const { return grammar_bytes(*grammar) + static_cast<int64_t>(2 * key.size() + 256); }
  };
  // A compilation under way; those that come later wait for its result.
  struct Flight {
    const std::thread::id thread = std::this_thread::get_id();
    std::optional<Result<std::shared_ptr<const Grammar>>> result;
  };

  std::shared_ptr<const TokenVocabulary> vocabulary;
  int64_t max_bytes;
  GrammarLimits limits;
  mutable std::mutex mutex;
  std::condition_variable landed;
  std::list<Entry> entries;  // the most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key;
  std::unordered_map<std::string, std::shared_ptr<Flight>> flights;
  std::list<std::pair<std::string, Status>> failures;  // by key, the last one first

  // Checked before the key is made, so that a huge specification is not copied.
  bool may_be_kept(const GrammarSpec& spec) const {
    int64_t source = static_cast<int64_t>(spec.text.size());
    for (const std::string& choice : spec.choices) source += static_cast<int64_t>(choice.size()) + 1;
    return source <= limits.max_source_bytes;
  }
  // Requires: the lock.
  std::optional<Result<std::shared_ptr<const Grammar>>> find(const std::string& key) {
    if (const auto at = by_key.find(key); at != by_key.end()) {
      entries.splice(entries.begin(), entries, at->second);
      auto grammar = at->second->grammar;
      evict();
      return grammar;
    }
    for (const auto& [failed, reason] : failures)
      if (failed == key) return reason;
    return std::nullopt;
  }

  int64_t bytes() const {
    int64_t total = 0;  // masks grow while grammars are in use: count anew
    for (const Entry& entry : entries) total += entry.bytes();
    return total;
  }
  void evict() {
    int64_t total = bytes();
    while (total > max_bytes && !entries.empty()) {
      total -= entries.back().bytes();
      by_key.erase(entries.back().key);
      entries.pop_back();
    }
  }
};

GrammarCache::GrammarCache(std::shared_ptr<const TokenVocabulary> vocabulary, int64_t max_bytes, GrammarLimits limits)
    : impl_(std::make_unique<Impl>()) {
  impl_->vocabulary = std::move(vocabulary);
  impl_->max_bytes = max_bytes;
  impl_->limits = limits;
}
GrammarCache::~GrammarCache() = default;

Result<std::shared_ptr<const Grammar>> GrammarCache::get(const GrammarSpec& spec, std::function<bool()> go_on,
                                                         std::shared_ptr<const TokenVocabulary> vocabulary) {
  if (!vocabulary) vocabulary = impl_->vocabulary;
  if (!impl_->may_be_kept(spec)) return compile_grammar(spec, vocabulary, impl_->limits);  // says why

  const std::string key = key_of(spec, *vocabulary);
  std::unique_lock lock(impl_->mutex);
  if (auto known = impl_->find(key)) return *std::move(known);
  // One that this very thread has under way, and left for this call (GrammarLimits::go_on), would never land.
  const auto at = impl_->flights.find(key);
  if (at != impl_->flights.end() && at->second->thread != std::this_thread::get_id()) {
    const std::shared_ptr<Impl::Flight> flight = at->second;
    impl_->landed.wait(lock, [&] { return flight->result.has_value(); });
    return *flight->result;
  }
  const auto flight = std::make_shared<Impl::Flight>();
  const bool announced = impl_->flights.emplace(key, flight).second;
  lock.unlock();
  GrammarLimits limits = impl_->limits;
  limits.go_on = std::move(go_on);
  Result<std::shared_ptr<const Grammar>> result = resource_exhausted("no memory for the grammar");
  try {
    result = compile_grammar(spec, vocabulary, limits);
  } catch (const std::bad_alloc&) {  // those who wait must hear of it
  }
  lock.lock();
  flight->result = result;
  if (announced) impl_->flights.erase(key);
  if (result.ok() && !impl_->by_key.contains(key)) {
    impl_->entries.push_front({key, *result});
    impl_->by_key[key] = impl_->entries.begin();
    impl_->evict();
  } else if (!result.ok() && result.status().code() == StatusCode::kInvalidArgument) {
    impl_->failures.emplace_front(key, result.status());
    if (impl_->failures.size() > kMaxFailures) impl_->failures.pop_back();
  }
  lock.unlock();
  impl_->landed.notify_all();
  return result;
}

std::optional<Result<std::shared_ptr<const Grammar>>> GrammarCache::find(
    const GrammarSpec& spec, const std::shared_ptr<const TokenVocabulary>& vocabulary) {
  if (!impl_->may_be_kept(spec)) return std::nullopt;
  const std::string key = key_of(spec, vocabulary ? *vocabulary : *impl_->vocabulary);
  const std::lock_guard lock(impl_->mutex);
  return impl_->find(key);
}

int64_t GrammarCache::bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->bytes();
}

}  // namespace lk
