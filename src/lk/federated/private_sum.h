// SPDX-License-Identifier: Apache-2.0
// PrivateSum: the sum of clients' updates, each cut to a length, with noise that hides any one of them. Updates become
// whole numbers of a small step, so that sums are exact and in no order, the bound on their lengths holds to the bit,
// and the noise is exact as well (discrete_gaussian.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lk/base/secret_random.h"

namespace lk {

using NamedValues = std::map<std::string, std::vector<float>>;

class PrivateSum {
 public:
  // `clip`: of the L2 norm of an update; `noise`: standard deviation of the sum's noise over it, in [0.05, 1000].
  PrivateSum(double clip, double noise, const std::map<std::string, int64_t>& sizes);

  // Finite values, of the tensors and sizes given above. Longer ones than `clip` are shortened.
  void add(const NamedValues& update);
  std::string digest() const;  // SHA-256 of the sum, hex

  // (sum + noise) / denominator. The same key gives the same noise: a key is of one sum.
  NamedValues release(const SecretKey& key, int64_t denominator) const;

 private:
  double step_;      // of the grid
  int64_t longest_;  // norm of an update, in steps
  std::map<std::string, std::vector<int64_t>> sum_;
};

}  // namespace lk
