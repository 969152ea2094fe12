// SPDX-License-Identifier: Apache-2.0
// What serving a request costs its tenant (VTC, arXiv:2401.00588 §3.1 and §4.2), and how long answers tend to be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "lk/sched/request.h"

namespace lk {

// Service in thousandths of the price of one prompt token: whole numbers, so that counters never drift.
using MilliUnits = int64_t;
// The most that one request may cost: that of every request of a full batch together still is a number.
inline constexpr MilliUnits kMaxPrice = 100'000'000'000'000;
// Sums of prices and virtual times stop here instead of becoming negative.
inline constexpr int64_t kMaxSum = INT64_MAX / 4;
inline int64_t saturating_add(int64_t a, int64_t b) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) sum = a > 0 ? kMaxSum : -kMaxSum;
  return std::clamp(sum, -kMaxSum, kMaxSum);
}

// h(p, q), the price of p computed prompt tokens and q output tokens; never falls in either, at most kMaxPrice. Tokens
// of the prefix cache are free. A server has the first two numbers; the simulator also the polynomial of VTC's paper.
struct ServiceCost {
  double prompt = 1, output = 2;  // the usual price ratio
  double product = 0, output_square = 0, constant = 0;

  MilliUnits of(int64_t prompt_tokens, int64_t output_tokens) const;
  // kInvalidArgument when a number is negative or no number, output is free, or a request of a million tokens either
  // way would cost more than kMaxPrice.
  Status check() const;
  static Result<ServiceCost> parse(std::string_view text);  // "1:2" (prompt:output)
};

// A map that remembers what was written lately: the 65,536 last pairs at least, and never more than twice that many.
template <class Value>
class RecentMap {
 public:
  const Value* find(uint64_t key) const {
    for (const auto* half : {&newer_, &older_})
      if (const auto it = half->find(key); it != half->end()) return &it->second;
    return nullptr;
  }
  // To be written; Value() when it is new.
  Value& at(uint64_t key) {
    if (const auto it = newer_.find(key); it != newer_.end()) return it->second;
    if (newer_.size() >= kHalf) older_ = std::exchange(newer_, {});
    const auto before = older_.find(key);
    return newer_[key] = before == older_.end() ? Value() : before->second;
  }
  void erase(uint64_t key) { newer_.erase(key), older_.erase(key); }

 private:
  static constexpr size_t kHalf = 1 << 16;
  std::unordered_map<uint64_t, Value> newer_, older_;
};

// Output lengths by (tenant, adapter): a moving average that weighs the newest by one fifth, as the VTC artifact does.
// Who outlives a forecast is taken for half done; until a first answer of the pair has ended, that is also what the
// next ones are taken for.
class LengthPredictor {
 public:
  // Tokens, at most max_tokens. Before the first answer of a pair, the average of all, or more: see outlived().
  int64_t predict(const Request& request) const;
  void learn(const Request& request, int64_t output_tokens);
  // This many tokens are made and the forecast has passed: the new one, at most max_tokens.
  int64_t outlived(const Request& request, int64_t output_tokens);

 private:
  static uint64_t key(const Request& request);
  RecentMap<double> means_;
  RecentMap<int64_t> longest_;  // forecast of pairs without a mean
  double overall_ = 0;
};

}  // namespace lk
