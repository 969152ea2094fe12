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
    std::vector<size_t> equal;
    for (size_t i = 0; i < candidates.size(); ++i)
      if (costs[i] <= least * (1 + kTie) || !std::isfinite(least)) equal.push_back(i);
    return preferred(request, candidates, equal);
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
      replicas_ = std::max(replicas_, static_cast<size_t>(candidate.index) + 1);
    if (picks_++ % kRenewal == 0) renew();
    // Its homes among those that may be asked; else whoever has least to do.
    const std::vector<size_t>& homes = homes_[request.adapter];  // none before the next renewal
    size_t best = 0;
    bool best_is_home = false;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const bool is_home = std::ranges::count(homes, static_cast<size_t>(candidates[i].index)) > 0;
      const bool is_better = candidates[i].load->work_seconds() < candidates[best].load->work_seconds();
      if (i == 0 || is_home > best_is_home || (is_home == best_is_home && is_better)) best = i, best_is_home = is_home;
    }
    return best;
  }

 private:
  static constexpr int64_t kRenewal = 256;         // requests
  static constexpr size_t kMaxAdapters = 100'000;  // known

  void renew() {
    const size_t replicas = replicas_;
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
      std::vector<size_t>& homes = homes_[name];
      homes.clear();
      for (size_t i = part(begin + slack); i <= part(end - slack) || homes.empty(); ++i) homes.push_back(i);
      begin = end;
    }
  }

  std::map<std::string, double> work_;
  std::map<std::string, std::vector<size_t>> homes_;
  size_t replicas_ = 0;
  int64_t picks_ = 0;
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
  double wait = load.queued_prompt_tokens() / rate;
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
    load_seconds = (load.adapter_bytes(request.adapter) > 0 ? 0 : kUnknownAdapterSeconds) + bytes / kLoadBytesPerSecond;
  // What one more row costs every step, for itself and, half the time of its life, for each of the others: it reads its
  // keys and values, and its adapter if nobody else there uses it.
  const double row = step * kRowShare + load.row_seconds(request.prompt_tokens + 0.5 * request.predicted_output) +
                     (load.runs(request.adapter) ? 0 : bytes / load.bytes_per_second());
  return wait + load_seconds + prefill + request.predicted_output * (step + row) +
         load.requests() * (prefill + 0.5 * request.predicted_output * row);
}

std::vector<std::string> picker_names() { return {"cost", "p2c", "chbl", "rr", "dlora"}; }

Result<std::unique_ptr<Picker>> make_picker(std::string_view policy, uint64_t seed) {
  std::unique_ptr<Picker> picker;
  if (policy == "cost") picker = std::make_unique<CostPicker>();
  if (policy == "p2c") picker = std::make_unique<TwoChoicesPicker>(seed);
  if (policy == "chbl") picker = std::make_unique<BoundedHashPicker>();
  if (policy == "rr") picker = std::make_unique<RoundRobinPicker>();
  if (policy == "dlora") picker = std::make_unique<HomesPicker>();
  if (!picker)
    return invalid_argument("\"{}\" is no routing policy; there are {}", policy, fmt::join(picker_names(), ", "));
  return Result<std::unique_ptr<Picker>>(std::move(picker));
}

}  // namespace lk
