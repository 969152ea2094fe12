// SPDX-License-Identifier: Apache-2.0
// Sampling on the CPU without sorting the vocabulary. The definition is ref::sample(): weights exp((logit - max) /
// temperature) added one by one, in the order of the draw. Its tokens are reproduced exactly and cheaply in two steps:
// sums computed faster, in another order, say where a sum crosses its target; only there tokens are looked at one by
// one. Where a crossing is nearer to a token's edge than the sums are exact, the row is drawn by the definition.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "lk/base/logprobs.h"
#include "lk/kernels/cpu.h"
#include "lk/kernels/ref/sample.h"

namespace lk {
namespace {

constexpr int64_t kNumBuckets = 4096;
constexpr int64_t kFewTokens = 512;     // sorted rather than divided further
constexpr double kTailExponent = 46;    // tokens less likely than e^-45 of the first are not told apart
constexpr double kMaxExponent = 0.023;  // of BucketScale: kTailExponent over half of the buckets
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

struct SampleScratch::Buffers {
  // Logits and places of picked tokens; the places become token ids.
  struct List {
    std::vector<float> logits;
    std::vector<int32_t> tokens;
    TokenList view(int64_t capacity) {
      if (logits.size() < static_cast<size_t>(capacity)) {
        logits.resize(static_cast<size_t>(capacity));
        tokens.resize(static_cast<size_t>(capacity));
      }
      return {logits.data(), tokens.data(), 0, capacity};
    }
  };
  std::array<List, 2> lists;
  std::array<uint64_t, kNumBuckets> fixed;
  std::array<double, kNumBuckets> mass, mass_below;  // of the row's buckets; of those of a list
  std::vector<double> block_sums, weights;
  std::vector<Candidate> candidates;
  std::vector<float> row;  // as it was given, when it is changed and wanted again
};

SampleScratch::SampleScratch() : buffers_(std::make_unique<Buffers>()) {}
SampleScratch::~SampleScratch() = default;
SampleScratch::SampleScratch(SampleScratch&&) noexcept = default;

class RowSampler {
 public:
  RowSampler(const SampleKernels& kernels, const SampleArgs& args, SampleScratch& scratch)
      : k_(kernels), a_(args), s_(*scratch.buffers_) {}
  void run(SampleResult* result);

 private:
  // Tokens to be told apart further: the whole row, or a list.
  struct Part {
    const float* logits;
    const int32_t* tokens;  // null: the place is the token
    int64_t size;
    float max, min;
  };
  struct Buckets {
    BucketScale scale;
    int64_t count = 0;  // and one more for the tail
    std::span<double> mass;
    double edge(int64_t bucket, double side) const {
      return (static_cast<double>(scale.top) - static_cast<double>(bucket) + side) / static_cast<double>(scale.scale);
    }
  };
  // Where the tokens, most likely first, pass a target.
  struct Crossing {
    std::span<const Candidate> tokens;  // sorted; the target is passed among them
    double before = 0;                  // mass of all more likely ones
    double edge = 0;                    // all less likely ones have smaller logits
    bool last = true;                   // there are none, but in the tail
  };

  int64_t n() const { return a_.vocab_size; }
  double weight(float logit) const {
    return std::exp((static_cast<double>(logit) - static_cast<double>(row_.max)) / a_.temperature);
  }
  bool some_finite_rest_never() const;
  int32_t draw();
  int32_t first_with(float logit);
  std::span<Candidate> top_candidates(const float* logits, int64_t count);
  std::optional<int32_t> draw_by_ids();
  std::optional<int32_t> draw_by_rank();
  std::optional<double> kept_mass(const Part& row, const Buckets& buckets, double total);
  Buckets divide(const Part& part, std::span<double> mass);
  int64_t bucket_at(const Buckets& buckets, double target, double least_logit, Crossing* crossing) const;
  void collect(const Part& part, const Buckets& buckets, int64_t bucket, Part* found);
  Crossing find(Part part, Buckets buckets, double target, double least_logit);
  void score(const float* logits, float max, SampleResult* result);

  const SampleKernels& k_;
  const SampleArgs& a_;
  SampleScratch::Buffers& s_;
  RowStats row_;       // of the logits after penalties and mask
  double margin_ = 0;  // sums of weights are exact to this
};

void RowSampler::run(SampleResult* result) {
  *result = {};
  row_ = k_.row_stats(a_.logits, n());
  if (!row_.finite && !some_finite_rest_never()) {
    result->fault = SampleFault::kNotFinite;
    return;
  }
  const float given_max = row_.max;
  if (a_.given >= 0) {
    result->token = a_.given;
    return score(a_.logits, given_max, result);
  }
  const float* given = a_.logits;
  if (changes_logits(a_) || a_.allowed) {
    if (wants_logprobs(a_.num_logprobs)) {
      s_.row.assign(a_.logits, a_.logits + n());
      given = s_.row.data();
    }
    apply_penalties(a_);
    if (a_.allowed) k_.mask_row(a_.logits, n(), a_.allowed);
    row_ = k_.row_stats(a_.logits, n());
    if (row_.max == -kInfinity) {
      result->fault = SampleFault::kNotAllowed;
      return;
    }
  }
  result->token = draw();
  if (wants_logprobs(a_.num_logprobs)) score(given, given_max, result);
}

// A row that is not finite has a minus infinity, which says «never», or something worse.
bool RowSampler::some_finite_rest_never() const {
  for (int64_t i = 0; i < n(); ++i)
    if (!(a_.logits[i] < kInfinity)) return false;
  return row_.max > -kInfinity;
}

int32_t RowSampler::draw() {
  if (a_.temperature == 0) return first_with(row_.max);
  const bool by_ids = a_.top_k == 0 && a_.top_p >= 1 && a_.min_p <= 0;
  const int64_t most = a_.top_k > 0 ? std::min(a_.top_k, n()) : n();
  if (!by_ids && (most < n() || n() <= kFewTokens))
    return draw_from_sorted(a_, top_candidates(a_.logits, most), s_.weights);
  std::optional<int32_t> token;
  if (a_.temperature > 1e-20) token = by_ids ? draw_by_ids() : draw_by_rank();
  return token ? *token : ref::draw(a_);
}

int32_t RowSampler::first_with(float logit) {
  TokenList list = s_.lists[0].view(16);
  k_.collect_between(a_.logits, 0, n(), logit, logit, &list);
  return list.indices[0];
}

std::span<Candidate> RowSampler::top_candidates(const float* logits, int64_t count) {
  count = std::min(count, n());
  TokenList list = s_.lists[0].view(2 * count + 64);
  std::vector<Candidate>& best = s_.candidates;
  best.clear();
  float low = -kInfinity;
  for (int64_t begin = 0; begin < n();) {
    list.size = 0;
    list.capacity = 2 * count + 64 - static_cast<int64_t>(best.size());
    begin = k_.collect_between(logits, begin, n(), low, kInfinity, &list);
    for (int64_t i = 0; i < list.size; ++i) best.push_back({list.logits[i], list.indices[i]});
    if (static_cast<int64_t>(best.size()) <= count) continue;
    std::nth_element(best.begin(), best.begin() + (count - 1), best.end());
    best.resize(static_cast<size_t>(count));
    low = std::nextafter(best.back().logit, kInfinity);  // an equal one that comes later has a higher id
  }
  std::sort(best.begin(), best.end());
  return best;
}

// --- The whole distribution, in the order of ids

std::optional<int32_t> RowSampler::draw_by_ids() {
  const double inverse_temperature = 1 / a_.temperature, max = static_cast<double>(row_.max);
  std::vector<double>& sums = s_.block_sums;
  sums.resize(static_cast<size_t>((n() + kExpBlock - 1) / kExpBlock));
  k_.exp_block_sums(a_.logits, n(), max, inverse_temperature, sums.data());
  double total = 0;
  for (const double sum : sums) total += sum;
  // The weights of the definition are rounded to f32 (a part in 2^24) and those in the sums are within 1e-8.
  constexpr double kError = 7e-8;
  const double u = a_.uniform;
  double left = u * total, before = 0;
  size_t block = 0;
  for (; block < sums.size() && left - sums[block] > kError * total; ++block) {
    left -= sums[block];
    before += sums[block];
  }
  // u total - before: what is off before the block is off in both.
  margin_ = kError * ((1 - u) * before + u * (total - before)) + 1e-10 * total;
  for (auto token = static_cast<int64_t>(block) * kExpBlock; token < n(); ++token) {
    const double d = (static_cast<double>(a_.logits[token]) - max) * inverse_temperature;
    left -= static_cast<double>(std::exp(static_cast<float>(d)));
    if (left < -margin_) return static_cast<int32_t>(token);
    if (left <= margin_) break;
  }
  return std::nullopt;
}

// --- Part of the distribution, most likely first

RowSampler::Buckets RowSampler::divide(const Part& part, std::span<double> mass) {
  const auto max = static_cast<double>(part.max);
  const double lowest = std::max(static_cast<double>(part.min), max - kTailExponent * a_.temperature);
  // Where floats are so wide that each of them has a bucket of its own, finer ones would not help.
  const double widest = std::min(static_cast<double>(kNumBuckets - 8) / (max - lowest),
                                 0x1p25 / std::max(std::fabs(max), std::fabs(lowest)));
  const int exponent = widest < 0x1p100 ? std::ilogb(widest) : 100;
  const double scale = std::ldexp(1.0, exponent), top = std::nearbyint(max * scale);
  Buckets buckets{.count = static_cast<int64_t>(top - std::nearbyint(lowest * scale)) + 1, .mass = mass};
  const double step = 1 / (scale * a_.temperature);
  buckets.scale = {.scale = static_cast<float>(scale),
                   .lowest = static_cast<float>((top - static_cast<double>(buckets.count)) / scale),
                   .top = static_cast<float>(top),
                   .exponent = static_cast<float>(std::min(step, kMaxExponent))};
  std::fill_n(s_.fixed.begin(), buckets.count + 2, 0);
  k_.add_to_buckets(part.logits, part.size, buckets.scale, s_.fixed.data());
  const double ratio = std::exp(-step);
  double center = 0;
  for (int64_t bucket = 0; bucket < buckets.count; ++bucket) {
    // Multiplied on for a while, then computed anew: rounding does not add up.
    center = bucket % 64 == 0 ? std::exp((buckets.edge(bucket, 0) - static_cast<double>(row_.max)) / a_.temperature)
                              : center * ratio;
    const auto at = static_cast<size_t>(bucket);
    mass[at] = static_cast<double>(s_.fixed[at]) * (center / static_cast<double>(kBucketOne));
  }
  return buckets;
}

// The bucket in which crossing->before + the mass from the first one on may reach the target, or logits fall below
// least_logit; the last one that is not empty when none does. Adds to `before` the mass of the buckets before it.
int64_t RowSampler::bucket_at(const Buckets& buckets, double target, double least_logit, Crossing* crossing) const {
  double sum = crossing->before;
  int64_t found = -1;
  for (int64_t bucket = 0; bucket < buckets.count; ++bucket) {
    const double mass = buckets.mass[static_cast<size_t>(bucket)];
    if (mass == 0) continue;
    if (found >= 0 && (sum >= target - margin_ || buckets.edge(found, -0.5) < least_logit)) {
      crossing->last = false;
      break;
    }
    found = bucket;
    crossing->before = sum;
    sum += mass;
  }
  crossing->edge = buckets.edge(found, -0.5);
  return found;
}

void RowSampler::collect(const Part& part, const Buckets& buckets, int64_t bucket, Part* found) {
  // Halves round to even: a bucket with an even number owns both of its edges.
  const bool owns_edges = std::fmod(static_cast<double>(buckets.scale.top) - static_cast<double>(bucket), 2.0) == 0;
  const double low = buckets.edge(bucket, -0.5), high = buckets.edge(bucket, 0.5);
  auto from = static_cast<float>(low), to = static_cast<float>(high);
  if (static_cast<double>(from) < low || (static_cast<double>(from) == low && !owns_edges))
    from = std::nextafter(from, kInfinity);
  if (static_cast<double>(to) > high || (static_cast<double>(to) == high && !owns_edges))
    to = std::nextafter(to, -kInfinity);
  SampleScratch::Buffers::List& own = part.tokens == s_.lists[0].tokens.data() ? s_.lists[1] : s_.lists[0];
  TokenList list = own.view(part.size + 16);
  k_.collect_between(part.logits, 0, part.size, from, to, &list);
  if (part.tokens)
    for (int64_t i = 0; i < list.size; ++i) list.indices[i] = part.tokens[list.indices[i]];
  const RowStats stats = k_.row_stats(list.logits, list.size);
  *found = {list.logits, list.indices, list.size, stats.max, stats.min};
}

RowSampler::Crossing RowSampler::find(Part part, Buckets buckets, double target, double least_logit) {
  Crossing crossing;
  for (;;) {
    const int64_t bucket = bucket_at(buckets, target, least_logit, &crossing), size = part.size;
    collect(part, buckets, bucket, &part);
    if (part.size <= kFewTokens || part.max == part.min || part.size == size) break;
    buckets = divide(part, s_.mass_below);
  }
  s_.candidates.clear();
  for (int64_t i = 0; i < part.size; ++i) s_.candidates.push_back({part.logits[i], part.tokens[i]});
  if (part.max != part.min) std::sort(s_.candidates.begin(), s_.candidates.end());
  crossing.tokens = s_.candidates;
  return crossing;
}

// The mass of what top-p and min-p keep.
std::optional<double> RowSampler::kept_mass(const Part& row, const Buckets& buckets, double total) {
  if (a_.top_p >= 1 && a_.min_p <= 0) return total;
  if (a_.top_p >= 1 && a_.min_p < 1e-9) return std::nullopt;  // rounding may end the sum of all before min-p does
  const double target = a_.top_p < 1 ? a_.top_p * total : std::numeric_limits<double>::infinity();
  const double least_logit = a_.min_p > 0 ? static_cast<double>(row_.max) + a_.temperature * std::log(a_.min_p)
                                          : -std::numeric_limits<double>::infinity();
  const Crossing crossing = find(row, buckets, target, least_logit);
  double kept = crossing.before, w = 0;
  const Candidate* before = nullptr;
  for (const Candidate& candidate : crossing.tokens) {
    if (!before || before->logit != candidate.logit) w = weight(candidate.logit);
    before = &candidate;
    if (kept > 0) {
      if (kept >= target + margin_) return kept;
      if (kept > target - margin_) return std::nullopt;
      if (w < a_.min_p || w <= 0) return kept;
    }
    kept += w;
  }
  const bool ends = kept >= target + margin_ || (crossing.last && a_.top_p >= 1) ||
                    weight(static_cast<float>(crossing.edge)) < a_.min_p * (1 - 1e-6);
  return ends ? std::optional(kept) : std::nullopt;
}

std::optional<int32_t> RowSampler::draw_by_rank() {
  const Part row{a_.logits, nullptr, n(), row_.max, row_.min};
  const double range =
      std::min(static_cast<double>(row_.max) - static_cast<double>(row_.min), kTailExponent * a_.temperature);
  if (range > 1e30) return std::nullopt;
  const Buckets buckets = divide(row, s_.mass);
  double total = 0;
  for (int64_t bucket = 0; bucket < buckets.count; ++bucket) total += buckets.mass[static_cast<size_t>(bucket)];
  // Of one weight: four roundings of e^y - 1 and its fixed point; of sums: the definition's, one per token. The target
  // and the sum that meets it are both off; tokens of the tail are missing.
  const double one = static_cast<double>(buckets.scale.exponent) * 0x1p-23 + 0x1p-37;
  const auto tokens = static_cast<double>(n() + kNumBuckets);
  margin_ = total * 2 * (one + tokens * 0x1p-52) + tokens * std::exp(1 - kTailExponent);
  const std::optional<double> kept = kept_mass(row, buckets, total);
  if (!kept) return std::nullopt;
  const double target = a_.uniform * *kept;
  const Crossing crossing = find(row, buckets, target, -std::numeric_limits<double>::infinity());
  double left = target - crossing.before, w = 0;
  const Candidate* before = nullptr;
  for (const Candidate& candidate : crossing.tokens) {
    if (!before || before->logit != candidate.logit) w = weight(candidate.logit);
    before = &candidate;
    left -= w;
    if (left < -margin_) return candidate.token;
    if (left <= margin_) break;
  }
  return std::nullopt;
}

void RowSampler::score(const float* logits, float max, SampleResult* result) {
  const float logit = logits[result->token], log_sum = k_.log_sum_exp(logits, n(), max);
  result->logprob = logit - log_sum;
  result->rank = 1 + k_.count_above(logits, n(), logit);
  if (a_.num_logprobs == kLogprobsOfBiased)
    for (const auto& [token, bias] : a_.logit_bias)
      if (token >= 0 && token < n()) result->top.emplace_back(token, logits[token] - log_sum);
  if (a_.num_logprobs <= 0) return;
  for (const Candidate& candidate : top_candidates(logits, a_.num_logprobs))
    result->top.emplace_back(candidate.token, candidate.logit - log_sum);
}

void sample_row(const SampleKernels& kernels, const SampleArgs& args, SampleScratch& scratch, SampleResult* result) {
  RowSampler(kernels, args, scratch).run(result);
}

}  // namespace lk
