// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/picker.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "lk/base/rng.h"

namespace lk {
namespace {

constexpr double kRowShare = 0.002;              // of a step, for one more row beside its keys and values
constexpr double kLoadBytesPerSecond = 2e9;      // host copy to pages
constexpr double kUnknownAdapterSeconds = 0.05;  // to be read and verified from files
// Replicas whose costs are this close are equal: then affinity decides.
constexpr double kTie = 0.05;
// No replica gets more than this many times the mean of predicted work, plus a request: a guard against a model that is
// wrong.
constexpr double kMostWork = 2.0;

uint64_t mix(uint64_t x) {  // SplitMix64's finaliser (Vigna)
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint64_t hash_of(std::string_view text, uint64_t seed) {  // FNV-1a, then mixed
  uint64_t hash = 0xcbf29ce484222325ULL ^ seed;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  return mix(hash);
}

size_t preferred(const RoutedRequest& request, std::span<const Candidate> candidates, std::span<const size_t> among) {
  return *std::ranges::max_element(among, {},
                                   [&](size_t i) { return rendezvous_weight(request.adapter, candidates[i].key); });
}

class CostPicker final : public Picker {
 public:
  size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) override {
    double mean_work = 0, own_work = 0;
    for (const Candidate& candidate : candidates)
      mean_work += candidate.load->work_seconds() / static_cast<double>(candidates.size());
    std::vector<double> costs(candidates.size());
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < candidates.size(); ++i) {
      const ReplicaLoad& load = *candidates[i].load;
      own_work = request.prompt_tokens / load.tokens_per_second() + request.predicted_output * load.step_seconds();
      const bool overworked = load.work_seconds() > kMostWork * mean_work + own_work;
      costs[i] = overworked ? std::numeric_limits<double>::infinity() : added_latency(request, candidates[i]);
      least = std::min(least, costs[i]);
    }
    std::vector<size_t> equal, homes;
    for (size_t i = 0; i < candidates.size(); ++i)
      if (costs[i] <= least * (1 + kTie) || !std::isfinite(least)) {
        equal.push_back(i);
        if (candidates[i].is_home) homes.push_back(i);
      }
    return preferred(request, candidates, homes.empty() ? equal : homes);
  }
};

class TwoChoicesPicker final : public Picker {
 public:
  explicit TwoChoicesPicker(uint64_t seed) : rng_(seed) {}
  size_t pick(const RoutedRequest&, std::span<const Candidate> candidates) override {
    const auto count = static_cast<int64_t>(candidates.size());
    const auto one = static_cast<size_t>(rng_.next() % static_cast<uint64_t>(count));
    const auto two = static_cast<size_t>(rng_.next() % static_cast<uint64_t>(count));
    return candidates[two].load->requests() < candidates[one].load->requests() ? two : one;
  }

 private:
  Rng rng_;
};

class BoundedHashPicker final : public Picker {
 public:
  size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) override {
    double total = 1;  // with this one
    for (const Candidate& candidate : candidates) total += candidate.load->requests();
    const double bound = std::ceil(kLoadFactor * total / static_cast<double>(candidates.size()));
    std::vector<size_t> order(candidates.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::sort(order, std::greater(),
                      [&](size_t i) { return rendezvous_weight(request.adapter, candidates[i].key); });
    for (const size_t i : order)
      if (candidates[i].load->requests() + 1 <= bound) return i;
    return order.front();
  }

 private:
  static constexpr double kLoadFactor = 1.25;
};

class RoundRobinPicker final : public Picker {
 public:
  size_t pick(const RoutedRequest&, std::span<const Candidate> candidates) override {
    return next_++ % candidates.size();
  }

 private:
  size_t next_ = 0;
};

// Homes by what adapters have asked for so far: sorted by work, laid side by side, cut into equal parts; made anew now
// and then, in between they stay.
class HomesPicker final : public Picker {
 public:
  size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) override {
    if (work_.size() >= kMaxAdapters && !work_.contains(request.adapter)) work_.clear(), homes_.clear();
    work_[request.adapter] += request.prompt_tokens + request.predicted_output;
    for (const Candidate& candidate : candidates)
      if (std::ranges::find(keys_, candidate.key) == keys_.end()) keys_.push_back(candidate.key);
    if (picks_++ % kRenewal == 0) renew(candidates);
    // Its homes among those that may be asked; else whoever has least to do.
    const std::vector<std::string>& homes = homes_[request.adapter];  // none before the next renewal
    size_t best = 0;
    bool best_is_home = false;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const bool is_home = std::ranges::find(homes, candidates[i].key) != homes.end();
      const bool is_better = candidates[i].load->work_seconds() < candidates[best].load->work_seconds();
      if (i == 0 || is_home > best_is_home || (is_home == best_is_home && is_better)) best = i, best_is_home = is_home;
    }
    return best;
  }

 private:
  static constexpr int64_t kRenewal = 256;         // requests
  static constexpr size_t kMaxAdapters = 100'000;  // known
  static constexpr size_t kMostKeys = 2;           // times the replicas that there are: the rest has left

  void renew(std::span<const Candidate> candidates) {
    if (keys_.size() > kMostKeys * candidates.size()) {
      keys_.clear();
      for (const Candidate& candidate : candidates) keys_.push_back(candidate.key);
    }
    const size_t replicas = keys_.size();
    std::vector<std::pair<double, std::string>> sorted;
    double total = 0;
    for (const auto& [name, work] : work_) sorted.emplace_back(-work, name), total += work;
    std::ranges::sort(sorted);
    const auto part = [&](double at) {
      return std::min(replicas - 1, static_cast<size_t>(std::max(0.0, at) / total * static_cast<double>(replicas)));
    };
    double begin = 0;
    for (const auto& [negative_work, name] : sorted) {
      const double end = begin - negative_work, slack = 1e-9 * total;
      std::vector<std::string>& homes = homes_[name];
      homes.clear();
      for (size_t i = part(begin + slack); i <= part(end - slack) || homes.empty(); ++i) homes.push_back(keys_[i]);
      begin = end;
    }
  }

  std::map<std::string, double> work_;
  std::map<std::string, std::vector<std::string>> homes_;
  std::vector<std::string> keys_;  // of replicas, in the order in which they were first seen
  int64_t picks_ = 0;
};

// dLoRA's own dispatch: homes are dealt out in turn as adapters are first asked for; a request goes to the home with
// the fewest batches in hand. Where `replaces`, a replica that is no home is asked when it has fewer even with the
// adapter to load, and becomes one. There are as many homes in all as adapters and replicas, less one: beyond that a
// new one takes the place of an adapter that nobody uses there and that has another.
class DloraPicker final : public Picker {
 public:
  explicit DloraPicker(bool replaces) : replaces_(replaces) {}
  size_t pick(const RoutedRequest& request, std::span<const Candidate> candidates) override {
    replicas_ = std::max(replicas_, candidates.size());
    std::vector<std::string>& homes = homes_[request.adapter];
    if (homes.empty()) homes.push_back(candidates[next_++ % candidates.size()].key), ++num_homes_;
    size_t best = candidates.size();
    double least = 0;
    bool any_home = false;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const bool is_home = is_in(homes, candidates[i].key);
      if (!is_home && !(replaces_ && has_room(request.adapter, candidates[i]))) continue;
      const double cost = batches(*candidates[i].load) + (is_home ? 0 : request.adapter_bytes / kLinkBytesPerSecond);
      any_home |= is_home;
      if (best == candidates.size() || cost < least) best = i, least = cost;
    }
    // All its homes are away: whoever has least to do, for now.
    if (!any_home) {
      best = 0;
      for (size_t i = 1; i < candidates.size(); ++i)
        if (candidates[i].load->requests() < candidates[best].load->requests()) best = i;
      return best;
    }
    if (!is_in(homes, candidates[best].key)) moved(request.adapter, candidates[best]);
    return best;
  }

  void moved(const std::string& adapter, const Candidate& to) override {
    std::vector<std::string>& homes = homes_[adapter];
    if (is_in(homes, to.key)) return;
    if (num_homes_ < most_homes()) {
      ++num_homes_;
    } else if (const std::string* victim = victim_at(adapter, to)) {
      std::erase(homes_[*victim], to.key);
    } else if (!homes.empty()) {
      homes.erase(homes.begin());  // it goes along with its requests
    }
    homes.push_back(to.key);
  }

 private:
  static constexpr int64_t kBatch = 16;                // its largest batch
  static constexpr double kMergedSpeed = 0.6;          // time of a batch of one adapter, of that of a mixed one
  static constexpr double kLinkBytesPerSecond = 32e9;  // host to device

  static bool is_in(const std::vector<std::string>& homes, const std::string& key) {
    return std::ranges::find(homes, key) != homes.end();
  }
  static double batches(const ReplicaLoad& load) {
    int64_t whole = 0, rest = 0;
    for (const auto& [adapter, count] : load.own_adapters()) whole += count / kBatch, rest += count % kBatch;
    return kMergedSpeed * static_cast<double>(whole) + static_cast<double>(rest / kBatch);
  }
  const std::string* victim_at(const std::string& adapter, const Candidate& there) const {
    for (const auto& [other, homes] : homes_)
      if (other != adapter && homes.size() > 1 && is_in(homes, there.key) &&
          !there.load->own_adapters().contains(other))
        return &other;
    return nullptr;
  }
  size_t most_homes() const { return homes_.size() + replicas_ - 1; }
  bool has_room(const std::string& adapter, const Candidate& there) const {
    return num_homes_ < most_homes() || victim_at(adapter, there) != nullptr;
  }

  const bool replaces_;
  std::map<std::string, std::vector<std::string>> homes_;
  size_t next_ = 0, num_homes_ = 0, replicas_ = 1;
};

}  // namespace

uint64_t rendezvous_weight(std::string_view adapter, std::string_view replica) {
  return hash_of(replica, hash_of(adapter, 0));
}

double added_latency(const RoutedRequest& request, const Candidate& candidate) {
  const ReplicaLoad& load = *candidate.load;
  const double rate = load.tokens_per_second(), step = load.step_seconds();
  const double prefill = std::max(0.0, request.prompt_tokens - candidate.cached_tokens) / rate;
  const double bytes = request.adapter_bytes;
  double wait = load.queued_prompt_tokens() / rate + load.place_seconds();
  const auto page_tokens = static_cast<double>(std::max<int64_t>(1, load.last().page_tokens));
  const double page_bytes = std::max(1.0, static_cast<double>(load.last().page_bytes));
  const double need = (request.prompt_tokens + request.predicted_output) / page_tokens +
                      (load.runs(request.adapter) ? 0 : bytes / page_bytes);
  // Pages come free as running requests end, in about the time of one of them.
  const double missing = need - load.free_pages();
  if (missing > 0)
    wait += missing / std::max(1.0, static_cast<double>(load.last().pages)) * request.predicted_output * step;
  double load_seconds = 0;
  if (!load.holds(request.adapter))
    load_seconds = (load.has_copy(request.adapter) ? 0 : kUnknownAdapterSeconds) + bytes / kLoadBytesPerSecond;
  // What one more row costs every step, for itself and, half the time of its life, for each of the others: it reads its
  // keys and values, and its adapter if nobody else there uses it.
  const double row = step * kRowShare + load.row_seconds(request.prompt_tokens + 0.5 * request.predicted_output) +
                     (load.runs(request.adapter) ? 0 : bytes / load.bytes_per_second());
  return wait + load_seconds + prefill + request.predicted_output * (step + row) +
         load.requests() * (prefill + 0.5 * request.predicted_output * row);
}

std::vector<std::string> picker_names() {
  return {"cost", "p2c", "chbl", "rr", "dlora", "dlora-rr", "dlora-proactive"};
}

Result<std::unique_ptr<Picker>> make_picker(std::string_view policy, uint64_t seed) {
  std::unique_ptr<Picker> picker;
  if (policy == "cost") picker = std::make_unique<CostPicker>();
  if (policy == "p2c") picker = std::make_unique<TwoChoicesPicker>(seed);
  if (policy == "chbl") picker = std::make_unique<BoundedHashPicker>();
  if (policy == "rr") picker = std::make_unique<RoundRobinPicker>();
  if (policy == "dlora") picker = std::make_unique<HomesPicker>();
  if (policy == "dlora-rr") picker = std::make_unique<DloraPicker>(false);
  if (policy == "dlora-proactive") picker = std::make_unique<DloraPicker>(true);
  if (!picker)
    return invalid_argument("\"{}\" is no routing policy; there are {}", policy, fmt::join(picker_names(), ", "));
  return Result<std::unique_ptr<Picker>>(std::move(picker));
}

}  // namespace lk
