// SPDX-License-Identifier: Apache-2.0
#include "lk/tensor/magnitude.h"

#include <algorithm>
#include <limits>

namespace lk {
namespace {

// The largest value without its sign, as bits: IEEE-like formats are ordered like integers, infinity and NaN above all
// numbers. Signed, because that maximum is one instruction on every processor.
template <class Bits>
Bits largest_bits(const void* data, int64_t n) {
  const Bits* values = static_cast<const Bits*>(data);
  Bits largest = 0;
  for (int64_t i = 0; i < n; ++i)
    largest = std::max(largest, static_cast<Bits>(values[i] & std::numeric_limits<Bits>::max()));
  return largest;
}

}  // namespace

float largest_magnitude(const void* data, DType dtype, int64_t n) {
  float largest = 0;
  if (dtype == DType::kF32) {
    largest = std::bit_cast<float>(largest_bits<int32_t>(data, n));
  } else {
    const auto bits = largest_bits<int16_t>(data, n);
    convert(&bits, dtype, &largest, DType::kF32, 1);
  }
  return largest;
}

}  // namespace lk
