// SPDX-License-Identifier: Apache-2.0
// A pseudo-random permutation of [0, size) that is computed instead of stored: a Feistel network over the next power of
// four, walked along its cycles until the value is in range (Black and Rogaway 2002, "Ciphers with arbitrary finite
// domains"). Equal seeds give equal orders on every machine.
#pragma once

#include <bit>
#include <cstdint>

#include "lk/base/check.h"
#include "lk/base/rng.h"

namespace lk {

class Permutation {
 public:
  Permutation(uint64_t seed, int64_t size) : seed_(seed), size_(static_cast<uint64_t>(size)) {
    const int bits = size <= 1 ? 0 : std::bit_width(size_ - 1);
    half_bits_ = (bits + 1) / 2;
    mask_ = (uint64_t{1} << half_bits_) - 1;
  }

  // Requires: 0 <= index < size. Takes at most a few rounds: the domain is less than four times the size.
  int64_t operator()(int64_t index) const {
    auto value = static_cast<uint64_t>(index);
    LK_DCHECK(value < size_);
    do value = encrypt(value);
    while (value >= size_);
    return static_cast<int64_t>(value);
  }

 private:
  static constexpr uint64_t kRounds = 8;
  uint64_t encrypt(uint64_t value) const {
    uint64_t left = value >> half_bits_, right = value & mask_;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (random_bits(seed_, right * kRounds + round) & mask_);
      left = right, right = next;
    }
    return left << half_bits_ | right;
  }

  uint64_t seed_, size_, mask_ = 0;
  int half_bits_ = 0;
};

}  // namespace lk
