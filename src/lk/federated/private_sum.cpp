// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/private_sum.h"

#include <cmath>

#include "lk/base/check.h"
#include "lk/base/sha256.h"
#include "lk/federated/discrete_gaussian.h"

namespace lk {
namespace {

// The noise in steps: so many that rounding to them is nothing beside it, so few that sums of any number of clients fit
// into 64 bits.
constexpr int64_t kSigma = int64_t{1} << 26;

}  // namespace

// A step is sigma / 2^26; an update at most clip / step steps long, rounded down.
PrivateSum::PrivateSum(double clip, double noise, const std::map<std::string, int64_t>& sizes)
    : step_(clip * noise / static_cast<double>(kSigma)),
      longest_(static_cast<int64_t>(std::floor(static_cast<double>(kSigma) / noise))) {
  LK_CHECK(clip > 0 && noise >= 0.05 && noise <= 1000);
  for (const auto& [name, size] : sizes) sum_[name].resize(static_cast<size_t>(size));
}

void PrivateSum::add(const NamedValues& update) {
  LK_CHECK(update.size() == sum_.size());
  double squares = 0;
  for (const auto& [name, values] : update) {
    const auto to = sum_.find(name);
    LK_CHECK(to != sum_.end() && to->second.size() == values.size());
    for (const float v : values) squares += static_cast<double>(v) * static_cast<double>(v);
  }
  const double norm = std::sqrt(squares) / step_, longest = static_cast<double>(longest_);
  double factor = (norm > longest ? longest / norm : 1) / step_;
  std::map<std::string, std::vector<int64_t>> steps;
  for (;;) {
    uint64_t length = 0;  // squared; about longest_ squared at most, below 2^61
    for (const auto& [name, values] : update) {
      std::vector<int64_t>& own = steps[name];
      own.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        // Towards zero, so that nothing gets longer.
        own[i] = static_cast<int64_t>(static_cast<double>(values[i]) * factor);
        length += static_cast<uint64_t>(own[i] * own[i]);
      }
    }
    if (length <= static_cast<uint64_t>(longest_ * longest_)) break;
    factor *= 1 - 1e-9;  // the norm above was rounded
  }
  for (auto& [name, own] : steps) {
    std::vector<int64_t>& to = sum_.at(name);
    for (size_t i = 0; i < own.size(); ++i) to[i] += own[i];
  }
}

std::string PrivateSum::digest() const {
  Sha256 sha;
  for (const auto& [name, values] : sum_) {
    sha.update(name.data(), name.size() + 1);  // with the zero that ends it
    sha.update(values.data(), values.size() * sizeof(int64_t));
  }
  return to_hex(sha.finish());
}

NamedValues PrivateSum::release(const SecretKey& key, int64_t denominator) const {
  LK_CHECK(denominator >= 1);
  KeyStream random(key);
  NamedValues mean;
  const double scale = step_ / static_cast<double>(denominator);
  for (const auto& [name, values] : sum_) {
    std::vector<float>& to = mean[name];
    to.reserve(values.size());
    for (const int64_t v : values)
      to.push_back(static_cast<float>(static_cast<double>(v + draw_discrete_gaussian(random, kSigma)) * scale));
  }
  return mean;
}

}  // namespace lk
