// SPDX-License-Identifier: Apache-2.0
// simd.h for any machine: four 128-bit compiler vectors per F32x16 (SSE2, NEON, or scalar code). No fused
// multiply-add: a b + c rounds twice here, on every target alike. Included by simd.h only.
#pragma once

#include "lk/kernels/cpu.h"

namespace lk::LK_ISA_NAMESPACE {

constexpr CpuIsa kIsa = CpuIsa::kPortable;
#if defined(__aarch64__)
constexpr int kNumVectors = 8;
#else
constexpr int kNumVectors = 4;
#endif

typedef float F32x4 __attribute__((vector_size(16)));
typedef int32_t I32x4 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));
struct F32x16 {
  F32x4 v[4];
};
struct Pairs {
  U32x4 v[4];
};

LK_INLINE F32x4 splat(float x) { return F32x4{x, x, x, x}; }
LK_INLINE U32x4 splat(uint32_t x) { return U32x4{x, x, x, x}; }
// mask lanes are all ones or all zeros
LK_INLINE F32x4 select(I32x4 mask, F32x4 a, F32x4 b) {
  return reinterpret_cast<F32x4>((mask & reinterpret_cast<I32x4>(a)) | (~mask & reinterpret_cast<I32x4>(b)));
}
template <class F>
LK_INLINE F32x16 each(const F& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

LK_INLINE F32x16 broadcast(float x) { return {{splat(x), splat(x), splat(x), splat(x)}}; }
LK_INLINE F32x16 zero() { return broadcast(0.0f); }
LK_INLINE F32x16 load(const float* p) {
  F32x16 a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
LK_INLINE void store(float* p, F32x16 a) { __builtin_memcpy(p, &a, sizeof a); }
LK_INLINE F32x16 load_partial(const float* p, int64_t n) {
  float lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));  // also of what is no float
  return load(lanes);
}
LK_INLINE void store_partial(float* p, F32x16 a, int64_t n) {
  float lanes[16];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

LK_INLINE F32x16 load_bf16(const uint16_t* p) {
  uint32_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<uint32_t>(p[i]) << 16;
  F32x16 a;
  __builtin_memcpy(&a, lanes, sizeof a);
  return a;
}
LK_INLINE void store_bf16(uint16_t* p, F32x16 a) {
  uint32_t lanes[16];
  __builtin_memcpy(lanes, &a, sizeof a);
  for (int i = 0; i < 16; ++i) {
    const uint32_t u = lanes[i];
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (u >> 16) | 0x40;
    p[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}
LK_INLINE F32x16 load_bf16_partial(const uint16_t* p, int64_t n) {
  uint16_t lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load_bf16(lanes);
}
LK_INLINE void store_bf16_partial(uint16_t* p, F32x16 a, int64_t n) {
  uint16_t lanes[16];
  store_bf16(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

LK_INLINE Pairs load_pairs(const uint16_t* p) {
  Pairs a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
LK_INLINE Pairs load_pairs_partial(const uint16_t* p, int64_t num_elements) {
  uint16_t lanes[32] = {};
  for (int64_t i = 0; i < num_elements; ++i) lanes[i] = p[i];
  return load_pairs(lanes);
}
LK_INLINE Pairs broadcast_pair(uint32_t pair) { return {{splat(pair), splat(pair), splat(pair), splat(pair)}}; }

LK_INLINE F32x16 add(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
LK_INLINE F32x16 sub(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
LK_INLINE F32x16 mul(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
LK_INLINE F32x16 div(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
LK_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return each([&](int i) { return select(a.v[i] > b.v[i], a.v[i], b.v[i]); });
}
LK_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return each([&](int i) { return select(a.v[i] < b.v[i], a.v[i], b.v[i]); });
}
LK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}

// Little-endian: the first element of a pair is its lower half.
LK_INLINE F32x4 low_half(U32x4 pairs) { return reinterpret_cast<F32x4>(pairs << 16); }
LK_INLINE F32x4 high_half(U32x4 pairs) { return reinterpret_cast<F32x4>(pairs & splat(uint32_t{0xffff0000u})); }
LK_INLINE F32x16 dot_bf16(F32x16 acc, Pairs w, Pairs x) {
  return each([&](int i) {
    const F32x4 lo = low_half(w.v[i]) * low_half(x.v[i]) + acc.v[i];
    return high_half(w.v[i]) * high_half(x.v[i]) + lo;
  });
}

LK_INLINE float reduce_add(F32x16 a) {
  const F32x4 h4 = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (h4[0] + h4[2]) + (h4[1] + h4[3]);
}
LK_INLINE float reduce_max(F32x16 a) {
  const F32x4 h = select(a.v[0] > a.v[2], a.v[0], a.v[2]), g = select(a.v[1] > a.v[3], a.v[1], a.v[3]);
  const F32x4 h4 = select(h > g, h, g);
  const float x = h4[0] > h4[2] ? h4[0] : h4[2], y = h4[1] > h4[3] ? h4[1] : h4[3];
  return x > y ? x : y;
}

LK_INLINE F32x16 keep_lanes(F32x16 a, int64_t begin, int64_t end, float fill) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) lanes[i] = i >= begin && i < end ? lanes[i] : fill;
  return load(lanes);
}

LK_INLINE F32x16 keep_bits(F32x16 a, uint32_t bits, float fill) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < 16; ++i) lanes[i] = (bits >> i & 1) != 0 ? lanes[i] : fill;
  return load(lanes);
}
LK_INLINE uint32_t lanes_above(F32x16 a, F32x16 b) {
  const I32x4 weight = {1, 2, 4, 8};
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const I32x4 set = (a.v[i] > b.v[i]) & weight;
    bits |= static_cast<uint32_t>((set[0] | set[1]) | (set[2] | set[3])) << (4 * i);
  }
  return bits;
}
LK_INLINE F32x16 round(F32x16 a) {
  return each([&](int i) {
    const F32x4 limit = splat(8388608.0f);  // 2^23: from here on floats are integers, and adding it rounds to one
    const F32x4 up = (a.v[i] + limit) - limit, down = (a.v[i] - limit) + limit;
    const F32x4 rounded = select(a.v[i] > splat(0.0f), up, down);
    return select((a.v[i] < limit) & (a.v[i] > -limit), rounded, a.v[i]);
  });
}
LK_INLINE void store_ints(int32_t* p, F32x16 a) {
  I32x4 ints[4];
  for (int i = 0; i < 4; ++i) ints[i] = __builtin_convertvector(a.v[i], I32x4);
  __builtin_memcpy(p, ints, sizeof ints);
}

LK_INLINE void transpose(F32x16 (&v)[16]) {
  uint32_t from[16][16], to[16][16];
  __builtin_memcpy(from, v, sizeof from);
  for (int i = 0; i < 16; ++i)
    for (int lane = 0; lane < 16; ++lane) to[lane][i] = from[i][lane];
  __builtin_memcpy(v, to, sizeof to);
}
LK_INLINE void interleave(Pairs& a, Pairs& b) {
  uint16_t from[2][32], to[2][32];
  __builtin_memcpy(from[0], &a, sizeof a);
  __builtin_memcpy(from[1], &b, sizeof b);
  for (int i = 0; i < 64; ++i) to[i / 32][i % 32] = from[i % 2][i / 2];
  __builtin_memcpy(&a, to[0], sizeof a);
  __builtin_memcpy(&b, to[1], sizeof b);
}
LK_INLINE void deinterleave(Pairs& a, Pairs& b) {
  uint16_t from[2][32], to[2][32];
  __builtin_memcpy(from[0], &a, sizeof a);
  __builtin_memcpy(from[1], &b, sizeof b);
  for (int i = 0; i < 64; ++i) to[i % 2][i / 2] = from[i / 32][i % 32];
  __builtin_memcpy(&a, to[0], sizeof a);
  __builtin_memcpy(&b, to[1], sizeof b);
}
LK_INLINE Pairs pairs_of(F32x16 a) {
  Pairs pairs;
  __builtin_memcpy(&pairs, &a, sizeof a);
  return pairs;
}
LK_INLINE void store_pairs(uint16_t* p, Pairs a) { __builtin_memcpy(p, &a, sizeof a); }
LK_INLINE Pairs round_to_pairs(F32x16 a, F32x16 b) {
  uint16_t lo[16], hi[16];
  store_bf16(lo, a);
  store_bf16(hi, b);
  uint32_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = lo[i] | static_cast<uint32_t>(hi[i]) << 16;
  Pairs pairs;
  __builtin_memcpy(&pairs, lanes, sizeof pairs);
  return pairs;
}

LK_INLINE F32x4 exp4(F32x4 a) {
  const I32x4 tiny = a<splat(-87.33f), large = a> splat(89.0f), is_nan = a != a;
  F32x4 x = select(large, splat(89.0f), select(tiny | is_nan, splat(-87.33f), a));
  const F32x4 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32x4 n = (x * splat(1.44269504088896341f) + magic) - magic;
  const F32x4 r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  F32x4 p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = ((r * r) * p + r) + splat(1.0f);
  const I32x4 exponent = __builtin_convertvector(n, I32x4);
  const I32x4 half = exponent >> 1;  // two factors, so that results near the largest float do not overflow early
  const F32x4 s1 = reinterpret_cast<F32x4>((half + 127) << 23);
  const F32x4 s2 = reinterpret_cast<F32x4>((exponent - half + 127) << 23);
  return select(is_nan, a, select(tiny, splat(0.0f), p * s1 * s2));
}
LK_INLINE F32x16 exp(F32x16 a) {
  return each([&](int i) { return exp4(a.v[i]); });
}

LK_INLINE void keep(Pairs& a) { asm volatile("" : "+m"(a)); }
LK_INLINE void keep(F32x16& a) { asm volatile("" : "+m"(a)); }

}  // namespace lk::LK_ISA_NAMESPACE
