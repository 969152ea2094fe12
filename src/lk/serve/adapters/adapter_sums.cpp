// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_sums.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lk/lora/compose.h"

namespace lk {
namespace {

constexpr size_t kMaxTerms = 8;
constexpr double kMaxWeight = 100;

// Sums what its terms hold, which are read again where they were dropped.
class SumSource : public AdapterSource {
 public:
  SumSource(std::string name, const std::vector<AdapterSums::Term>& terms) : name_(std::move(name)) {
    for (const AdapterSums::Term& term : terms) parts_.emplace_back(term.adapter->host(), term.weight);
  }
  Result<std::shared_ptr<const Adapter>> read() override {
    std::vector<WeightedAdapter> contents;
    for (const auto& [part, weight] : parts_) {
      LK_ASSIGN_OR_RETURN(std::shared_ptr<const Adapter> content, part->get());
      contents.push_back({std::move(content), weight});
    }
    return compose_adapters(name_, contents);
  }
  bool available() const override {
    return std::ranges::all_of(parts_, [](const auto& part) { return part.first->recoverable(); });
  }

 private:
  const std::string name_;
  std::vector<std::pair<std::shared_ptr<HostAdapter>, double>> parts_;
};

}  // namespace

AdapterSums::AdapterSums(EngineService& service, std::shared_ptr<HostTier> host, int64_t max_count, int64_t max_bytes)
    : service_(service), host_(std::move(host)), max_count_(max_count), max_bytes_(max_bytes) {}

Result<std::vector<AdapterSums::NamedTerm>> AdapterSums::parse(std::string_view expression) {
  std::vector<NamedTerm> terms;
  for (size_t begin = 0; begin <= expression.size();) {
    const size_t end = std::min(expression.find('+', begin), expression.size());
    const std::string_view text = expression.substr(begin, end - begin);
    begin = end + 1;
    const size_t star = text.find('*');
    NamedTerm term{.name = text.substr(0, star)};
    if (star != std::string_view::npos) {
      const std::string_view number = text.substr(star + 1);
      const auto [stop, error] = std::from_chars(number.data(), number.data() + number.size(), term.weight);
      if (error != std::errc() || stop != number.data() + number.size() || !std::isfinite(term.weight) ||
          std::abs(term.weight) > kMaxWeight)
        return invalid_argument("model \"{}\": \"{}\" is not a weight in [-100, 100]; write name*0.7+other*0.3",
                                expression, number);
    }
    if (terms.size() == kMaxTerms)
      return invalid_argument("model \"{}\": at most {} adapters can be summed", expression, kMaxTerms);
    terms.push_back(term);
  }
  return terms;
}

Result<AdapterLease> AdapterSums::get(std::string_view expression, const std::vector<Term>& terms,
                                      const std::function<bool(const Term&)>& current, const SumAsker& asker) {
  std::string key;  // by version, so that a replaced component makes another sum
  int64_t file_bytes = 0;
  for (const Term& term : terms) {
    key += fmt::format("{}*{:a}+", term.adapter->id(), term.weight);
    file_bytes += term.adapter->file_bytes;
  }
  const auto tokenizer_of = [](const Term& term) {
    return term.adapter->text ? term.adapter->text->tokenizer : nullptr;
  };
  for (const Term& term : terms)
    if (tokenizer_of(term) != tokenizer_of(terms[0]))
      return invalid_argument("model \"{}\": {} and {} have different tokenizers, so they cannot be summed", expression,
                              terms[0].adapter->name, term.adapter->name);
  {
    std::lock_guard lock(mutex_);
    if (AdapterLease cached = find_locked(key)) return cached;
  }
  // f32 of 2 byte types
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<HostAdapter> host,
                      host_->add(std::make_shared<SumSource>(std::string(expression), terms), 2 * file_bytes));
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<const Adapter> content, host->get());
  LK_ASSIGN_OR_RETURN(Engine::PreparedAdapter prepared, service_.prepare_adapter(host));
  auto adapter = std::make_shared<AdapterVersion>(service_, *content, std::move(prepared));
  adapter->text = terms[0].adapter->text;  // and the others' tokens mean the same
  if (std::ranges::none_of(terms, [](const Term& term) { return term.adapter->exact; })) adapter->allow_merging();
  Sum sum{.key = std::move(key), .parts = {}, .adapter = adapter, .tenant = asker.tenant};
  for (const Term& term : terms) sum.parts.push_back(term.adapter->id());
  std::lock_guard lock(mutex_);
  if (AdapterLease cached = find_locked(sum.key)) return cached;  // somebody was faster
  if (!std::ranges::all_of(terms, current)) return adapter;
  bytes_ += adapter->host_bytes;
  sums_.push_front(std::move(sum));
  // One that is larger than the cache serves its request and goes.
  while (!sums_.empty() && (static_cast<int64_t>(sums_.size()) > max_count_ || bytes_ > max_bytes_))
    erase_locked(std::prev(sums_.end()));
  trim_locked(asker);
  return adapter;
}

void AdapterSums::drop(const std::vector<AdapterLease>& parts) {
  std::lock_guard lock(mutex_);
  sums_.remove_if([&](const Sum& sum) {
    const bool gone = std::any_of(parts.begin(), parts.end(), [&](const AdapterLease& part) {
      return std::ranges::count(sum.parts, part->id()) > 0;
    });
    if (gone) bytes_ -= sum.adapter->host_bytes;
    return gone;
  });
}

AdapterSums::Stats AdapterSums::stats() const {
  std::lock_guard lock(mutex_);
  return {.count = static_cast<int64_t>(sums_.size()), .bytes = bytes_};
}

AdapterLease AdapterSums::find_locked(const std::string& key) {
  const auto it = std::find_if(sums_.begin(), sums_.end(), [&](const Sum& sum) { return sum.key == key; });
  if (it == sums_.end()) return nullptr;
  sums_.splice(sums_.begin(), sums_, it);
  return it->adapter;
}

void AdapterSums::erase_locked(std::list<Sum>::iterator sum) {
  bytes_ -= sum->adapter->host_bytes;
  sums_.erase(sum);
}

// A tenant beyond its quota loses its own oldest, nobody else's.
void AdapterSums::trim_locked(const SumAsker& asker) {
  if (asker.max_count <= 0) return;
  int64_t kept = 0;
  for (auto sum = sums_.begin(); sum != sums_.end();) {
    const auto next = std::next(sum);
    if (sum->tenant == asker.tenant && ++kept > asker.max_count) erase_locked(sum);
    sum = next;
  }
}

}  // namespace lk
