// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <list>
#include <mutex>
#include <new>
#include <optional>
#include <unordered_map>

#include "lk/grammar/grammar.h"

namespace lk {
namespace {

std::string key_of(const GrammarSpec& spec) {
  std::string key(1, static_cast<char>(spec.kind));
  const auto add = [&](const std::string& text) { key += std::to_string(text.size()) + ":" + text; };
  if (spec.kind == GrammarSpec::Kind::kChoice) {
    for (const std::string& choice : spec.choices) add(choice);
  } else if (spec.kind != GrammarSpec::Kind::kJsonObject) {
    add(spec.text);
  }
  return key;
}

}  // namespace

struct GrammarCache::Impl {
  struct Entry {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
    int64_t bytes() const { return grammar_bytes(*grammar) + static_cast<int64_t>(2 * key.size() + 256); }
  };
  // A compilation under way; those that come later wait for its result.
  struct Flight {
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

Result<std::shared_ptr<const Grammar>> GrammarCache::get(const GrammarSpec& spec) {
  // Checked before the key is made, so that a huge specification is not copied.
  int64_t source = static_cast<int64_t>(spec.text.size());
  for (const std::string& choice : spec.choices) source += static_cast<int64_t>(choice.size()) + 1;
  if (source > impl_->limits.max_source_bytes)
    return compile_grammar(spec, impl_->vocabulary, impl_->limits);  // says so

  const std::string key = key_of(spec);
  std::unique_lock lock(impl_->mutex);
  if (const auto at = impl_->by_key.find(key); at != impl_->by_key.end()) {
    impl_->entries.splice(impl_->entries.begin(), impl_->entries, at->second);
    auto grammar = at->second->grammar;
    impl_->evict();
    return grammar;
  }
  if (const auto at = impl_->flights.find(key); at != impl_->flights.end()) {
    const std::shared_ptr<Impl::Flight> flight = at->second;
    impl_->landed.wait(lock, [&] { return flight->result.has_value(); });
    return *flight->result;
  }
  const auto flight = std::make_shared<Impl::Flight>();
  impl_->flights[key] = flight;
  lock.unlock();
  Result<std::shared_ptr<const Grammar>> result = resource_exhausted("no memory for the grammar");
  try {
    result = compile_grammar(spec, impl_->vocabulary, impl_->limits);
  } catch (const std::bad_alloc&) {  // those who wait must hear of it
  }
  lock.lock();
  flight->result = result;
  impl_->flights.erase(key);
  if (result.ok()) {
    impl_->entries.push_front({key, *result});
    impl_->by_key[key] = impl_->entries.begin();
    impl_->evict();
  }
  lock.unlock();
  impl_->landed.notify_all();
  return result;
}

int64_t GrammarCache::bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->bytes();
}

}  // namespace lk
