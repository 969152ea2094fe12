// SPDX-License-Identifier: Apache-2.0
// The singular value decomposition of an adapter's change of one weight, and what is left of it in fewer ranks. All
// arithmetic is f64; equal inputs give equal bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// A change of a weight [out, in], delta = b a. Scalings are inside the factors.
struct DeltaFactors {
  int64_t rank = 0, in = 0, out = 0;
  std::vector<float> a;  // [rank, in]
  std::vector<float> b;  // [out, rank]
};

struct TruncatedDelta {
  DeltaFactors factors;            // balanced: b = U sqrt(S), a = sqrt(S) V^T, of the directions that were kept
  std::vector<double> singular;    // all singular values, descending
  double energy = 0, dropped = 0;  // squares of Frobenius norms: of all, and of what was cut off
};

// The closest delta of at most `rank` (>= 1) ranks; fewer when the sides of the weight are shorter. From the QR
// decompositions of both factors, so that no matrix [out, in] exists: exact, and no worse conditioned than the factors.
// kDataLoss when a value is not finite.
Result<TruncatedDelta> truncate_delta(const DeltaFactors& delta, int64_t rank);

// Of a dense change [out, in], row-major. From the eigenvectors of its smaller Gram matrix: directions below 1e-7 of
// the first are noise in it.
Result<TruncatedDelta> truncate_matrix(std::span<const float> matrix, int64_t out, int64_t in, int64_t rank);

}  // namespace lk
