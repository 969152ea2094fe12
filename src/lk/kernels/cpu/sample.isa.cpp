// SPDX-License-Identifier: Apache-2.0
// What sampling does to a whole row of logits: passes of one read each. kernels/sample.cpp strings them together.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Vectors of f64, over whatever the compiler makes of them: their results only steer, with a margin for rounding.
#if defined(__AVX512F__)
constexpr int kDoubles = 8;
#elif defined(__AVX2__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif
typedef float FloatN __attribute__((vector_size(kDoubles * 4)));
typedef double DoubleN __attribute__((vector_size(kDoubles * 8)));
typedef int64_t Int64N __attribute__((vector_size(kDoubles * 8)));

LK_INLINE FloatN load_floats(const float* p) {
  FloatN x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// exp(x), x in [-700, 0], within 6e-9 of it: 2^n e^r with |r| <= ln 2 / 2, by the Taylor series of e^r.
LK_INLINE DoubleN exp_f64(DoubleN x) {
  const DoubleN magic = DoubleN{} + 0x1.8p52;  // adding it rounds to an integer, in the low bits
  const DoubleN t = x * 1.4426950408889634;
  const DoubleN shifted = t + magic;
  const DoubleN r = (t - (shifted - magic)) * 0.6931471805599453;
  DoubleN p = DoubleN{} + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return reinterpret_cast<DoubleN>(reinterpret_cast<Int64N>(p) + (reinterpret_cast<Int64N>(shifted) << 52));
}

}  // namespace

RowStats row_stats(const float* x, int64_t n) {
  const float inf = __builtin_inff();
  F32x16 most[2] = {broadcast(-inf), broadcast(-inf)}, least[2] = {broadcast(inf), broadcast(inf)};
  F32x16 zeros[2] = {zero(), zero()};  // 0 x: NaN where x is NaN or infinite
  const auto take = [&](int lane, F32x16 v) __attribute__((always_inline)) {
    most[lane] = max(most[lane], v);
    least[lane] = min(least[lane], v);
    zeros[lane] = fma(v, zero(), zeros[lane]);
  };
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    take(0, load(x + i));
    take(1, load(x + i + 16));
  }
  for (; i < n; i += 16) {
    const int64_t left = min64(16, n - i);
    take(0, keep_lanes(load_partial(x + i, left), 0, left, x[i]));
  }
  RowStats stats{reduce_max(max(most[0], most[1])), -reduce_max(sub(zero(), min(least[0], least[1]))), false};
  stats.finite = reduce_add(add(zeros[0], zeros[1])) == 0;
  return stats;
}

float log_sum_exp(const float* x, int64_t n, float row_max) {
  const F32x16 shift = broadcast(row_max);
  constexpr int64_t kBlock = 2048;  // summed in f32; the blocks' sums in f64
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = min64(begin + kBlock, n);
    F32x16 sum = zero();
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) sum = add(sum, exp(sub(load(x + i), shift)));
    if (i < end) sum = add(sum, keep_lanes(exp(sub(load_partial(x + i, end - i), shift)), 0, end - i, 0.0f));
    total += static_cast<double>(reduce_add(sum));
  }
  return static_cast<float>(static_cast<double>(row_max) + __builtin_log(total));
}

void mask_row(float* x, int64_t n, const uint64_t* allowed) {
  for (int64_t i = 0; i < n; i += 16) {
    const auto bits = static_cast<uint32_t>(allowed[i / 64] >> (i % 64)) & 0xffffu;
    if (bits == 0xffffu) continue;
    const int64_t left = min64(16, n - i);
    store_partial(x + i, keep_bits(load_partial(x + i, left), bits, -__builtin_inff()), left);
  }
}

int64_t count_above(const float* x, int64_t n, float bound) {
  const F32x16 limit = broadcast(bound);
  int64_t count = 0, i = 0;
  for (; i + 16 <= n; i += 16) count += __builtin_popcount(lanes_above(load(x + i), limit));
  for (; i < n; ++i) count += x[i] > bound;
  return count;
}

int64_t collect_between(const float* x, int64_t begin, int64_t n, float low, float high, TokenList* list) {
  const F32x16 from = broadcast(low), to = broadcast(high);
  int64_t count = list->size, i = begin;
  for (; i < n && count + 16 <= list->capacity; i += 16) {
    const int64_t left = min64(16, n - i);
    const F32x16 v = left == 16 ? load(x + i) : load_partial(x + i, left);
    uint32_t lanes = ~(lanes_above(from, v) | lanes_above(v, to)) & ((1u << left) - 1);
    for (; lanes != 0; lanes &= lanes - 1) {
      const int64_t at = i + __builtin_ctz(lanes);
      list->logits[count] = x[at];
      list->indices[count++] = static_cast<int32_t>(at);
    }
  }
  list->size = count;
  return min64(i, n);
}

void add_to_buckets(const float* x, int64_t n, const BucketScale& s, uint64_t* mass) {
  constexpr int64_t kTile = 256;
  alignas(64) int32_t index[kTile], excess[kTile];
  const F32x16 scale = broadcast(s.scale), lowest = broadcast(s.lowest), top = broadcast(s.top);
  const F32x16 exponent = broadcast(s.exponent), half = broadcast(0.5f), sixth = broadcast(1.0f / 6);
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t count = min64(kTile, n - begin);
    for (int64_t i = 0; i < count; i += 16) {
      const float* p = x + begin + i;
      const F32x16 v = i + 16 <= count ? load(p) : load_partial(p, count - i);
      const F32x16 at = mul(max(v, lowest), scale);
      const F32x16 center = round(at);
      const F32x16 y = mul(sub(at, center), exponent);
      // e^y - 1 with |y| < 2^-6: what the series leaves out is below 2^-36.
      const F32x16 poly = fma(fma(broadcast(1.0f / 24), y, sixth), y, half);
      store_ints(excess + i, mul(fma(mul(y, y), poly, y), broadcast(static_cast<float>(kBucketOne))));
      store_ints(index + i, sub(top, center));
    }
    for (int64_t i = 0; i < count; ++i)
      mass[index[i]] += static_cast<uint64_t>(kBucketOne + static_cast<int64_t>(excess[i]));
  }
}

void exp_block_sums(const float* x, int64_t n, double max, double inverse_temperature, double* sums) {
  for (int64_t begin = 0, block = 0; begin < n; begin += kExpBlock, ++block) {
    const int64_t end = min64(begin + kExpBlock, n);
    DoubleN sum[2] = {};
    const auto take = [&](int lane, FloatN v) __attribute__((always_inline)) {
      // Rounded to f32 as the weights themselves are (kernels/sample.cpp).
      const DoubleN d = (__builtin_convertvector(v, DoubleN) - max) * inverse_temperature;
      const DoubleN limited = d < -100.0 ? DoubleN{} - 100.0 : d;
      sum[lane] += exp_f64(__builtin_convertvector(__builtin_convertvector(limited, FloatN), DoubleN));
    };
    int64_t i = begin;
    for (; i + 2 * kDoubles <= end; i += 2 * kDoubles) {
      take(0, load_floats(x + i));
      take(1, load_floats(x + i + kDoubles));
    }
    for (; i < end; i += kDoubles) {
      float rest[kDoubles];
      for (int64_t lane = 0; lane < kDoubles; ++lane) rest[lane] = i + lane < end ? x[i + lane] : -__builtin_inff();
      take(0, load_floats(rest));
    }
    sum[0] += sum[1];
    double total = 0;
    for (int lane = 0; lane < kDoubles; ++lane) total += sum[0][lane];
    sums[block] = total;
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
