// SPDX-License-Identifier: Apache-2.0
// SharedBound: a bounded amount of something (places in a queue, bytes) that several hold parts of. While some of it is
// free anybody may have it. When nothing is, who holds less than its share, by weight among those who hold some, still
// gets what it lacks: one that took everything is refused, the others are not. Until it gave back, all of them together
// hold at most twice the capacity. Not thread safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "lk/base/check.h"

namespace lk {

template <class Owner>
class SharedBound {
 public:
  explicit SharedBound(int64_t capacity) : capacity_(capacity) {}

  int64_t capacity() const { return capacity_; }
  int64_t used() const { return used_; }
  int64_t used_by(const Owner& owner) const {
    const auto it = holders_.find(owner);
    return it == holders_.end() ? 0 : it->second.amount;
  }
  // What `owner` may hold when others want all they can get.
  int64_t share(const Owner& owner, double weight) const {
    const auto it = holders_.find(owner);
    const double others = weights_ - (it == holders_.end() ? 0 : it->second.weight);
    return static_cast<int64_t>(static_cast<double>(capacity_) * weight / (std::max(others, 0.0) + weight));
  }
  bool fits(const Owner& owner, double weight, int64_t amount) const {
    if (amount > capacity_) return false;
    if (used_ + amount <= capacity_) return true;
    if (used_ + amount > 2 * capacity_) return false;
    // A share may be smaller than the smallest thing one can ask for: the first always fits.
    const int64_t own = used_by(owner);
    return own == 0 || own + amount <= share(owner, weight);
  }
  void take(const Owner& owner, double weight, int64_t amount) {
    if (amount <= 0) return;
    Holder& holder = holders_[owner];
    weights_ += weight - holder.weight;
    holder.weight = weight;
    holder.amount += amount;
    used_ += amount;
  }
  bool try_take(const Owner& owner, double weight, int64_t amount) {
    if (!fits(owner, weight, amount)) return false;
    take(owner, weight, amount);
    return true;
  }
  void give_back(const Owner& owner, int64_t amount) {
    if (amount <= 0) return;
    const auto it = holders_.find(owner);
    LK_CHECK(it != holders_.end() && it->second.amount >= amount, "more is given back than was taken");
    used_ -= amount;
    it->second.amount -= amount;
    if (it->second.amount > 0) return;
    weights_ -= it->second.weight;
    holders_.erase(it);
    if (holders_.empty()) weights_ = 0;  // no rounding stays
  }
  // Calls f(owner, amount, weight) for each who holds some.
  template <class F>
  void for_each(F f) const {
    for (const auto& [owner, holder] : holders_) f(owner, holder.amount, holder.weight);
  }

 private:
  struct Holder {
    int64_t amount = 0;
    double weight = 0;
  };
  const int64_t capacity_;
  int64_t used_ = 0;
  double weights_ = 0;  // of all holders
  std::unordered_map<Owner, Holder> holders_;
};

}  // namespace lk
