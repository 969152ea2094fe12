// SPDX-License-Identifier: Apache-2.0
// simd.h for AVX2 + FMA: two registers per F32x16. Included by simd.h only.
#pragma once

#include <immintrin.h>

#include "lk/kernels/cpu.h"

namespace lk::LK_ISA_NAMESPACE {

constexpr CpuIsa kIsa = CpuIsa::kAvx2;
constexpr int kNumVectors = 8;

struct F32x16 {
  __m256 lo, hi;
};
struct Pairs {
  __m256i lo, hi;
};

// All ones in the first n of 8 lanes, n clamped to [0, 8].
LK_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

LK_INLINE F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LK_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LK_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LK_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
LK_INLINE F32x16 load_partial(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
LK_INLINE void store_partial(float* p, F32x16 a, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}

LK_INLINE __m256 widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
// The rounded upper halves, each in a 32-bit lane.
LK_INLINE __m256i round_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet_nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet_nan, is_nan), 16);
}
LK_INLINE F32x16 load_bf16(const uint16_t* p) {
  return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
LK_INLINE void store_bf16(uint16_t* p, F32x16 a) {
  const __m256i packed = _mm256_packus_epi32(round_to_bf16(a.lo), round_to_bf16(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
LK_INLINE F32x16 load_bf16_partial(const uint16_t* p, int64_t n) {
  alignas(32) uint16_t lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * 2);
  return load_bf16(lanes);
}
LK_INLINE void store_bf16_partial(uint16_t* p, F32x16 a, int64_t n) {
  alignas(32) uint16_t lanes[16];
  store_bf16(lanes, a);
  __builtin_memcpy(p, lanes, static_cast<size_t>(n) * 2);
}

LK_INLINE Pairs load_pairs(const uint16_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
LK_INLINE Pairs load_pairs_partial(const uint16_t* p, int64_t num_elements) {
  alignas(32) uint16_t lanes[32] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(num_elements) * 2);
  return load_pairs(lanes);
}
LK_INLINE Pairs broadcast_pair(uint32_t pair) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(pair));
  return {v, v};
}

LK_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
LK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

LK_INLINE __m256 dot_half(__m256 acc, __m256i w, __m256i x) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256 lo = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)),
                                    _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(w, high)), _mm256_castsi256_ps(_mm256_and_si256(x, high)),
                         lo);
}
LK_INLINE F32x16 dot_bf16(F32x16 acc, Pairs w, Pairs x) {
  return {dot_half(acc.lo, w.lo, x.lo), dot_half(acc.hi, w.hi, x.hi)};
}

LK_INLINE float reduce_add(F32x16 a) {
  const __m256 h8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}
LK_INLINE float reduce_max(F32x16 a) {
  const __m256 h8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 h4 = _mm_max_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_max_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_max_ss(h2, _mm_movehdup_ps(h2)));
}

LK_INLINE __m256 keep_half(__m256 a, int64_t begin, int64_t end, float fill) {
  const __m256i inside = _mm256_andnot_si256(first_lanes(begin), first_lanes(end));
  return _mm256_blendv_ps(_mm256_set1_ps(fill), a, _mm256_castsi256_ps(inside));
}
LK_INLINE F32x16 keep_lanes(F32x16 a, int64_t begin, int64_t end, float fill) {
  return {keep_half(a.lo, begin, end, fill), keep_half(a.hi, begin - 8, end - 8, fill)};
}

LK_INLINE __m256 keep_half_bits(__m256 a, uint32_t bits, float fill) {
  const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i inside =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bits), lane_bits);
  return _mm256_blendv_ps(_mm256_set1_ps(fill), a, _mm256_castsi256_ps(inside));
}
LK_INLINE F32x16 keep_bits(F32x16 a, uint32_t bits, float fill) {
  return {keep_half_bits(a.lo, bits, fill), keep_half_bits(a.hi, bits >> 8, fill)};
}
LK_INLINE uint32_t lanes_above(F32x16 a, F32x16 b) {
  const auto lo = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)));
  return lo | static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))) << 8;
}
LK_INLINE F32x16 round(F32x16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
LK_INLINE void store_ints(int32_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvtps_epi32(a.lo));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), _mm256_cvtps_epi32(a.hi));
}

// 8 x 8.
LK_INLINE void transpose_half(__m256 (&v)[8]) {
  __m256 t[8], r[8];
  LK_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  LK_UNROLL
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  LK_UNROLL
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}
LK_INLINE void transpose(F32x16 (&v)[16]) {
  __m256 a[8], b[8], c[8], d[8];  // a b over c d
  LK_UNROLL
  for (int i = 0; i < 8; ++i) {
    a[i] = v[i].lo;
    b[i] = v[i].hi;
    c[i] = v[i + 8].lo;
    d[i] = v[i + 8].hi;
  }
  transpose_half(a);
  transpose_half(b);
  transpose_half(c);
  transpose_half(d);
  LK_UNROLL
  for (int i = 0; i < 8; ++i) {
    v[i] = {a[i], c[i]};
    v[i + 8] = {b[i], d[i]};
  }
}
LK_INLINE Pairs interleave_half(__m256i a, __m256i b) {
  const __m256i lo = _mm256_unpacklo_epi16(a, b), hi = _mm256_unpackhi_epi16(a, b);
  return {_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31)};
}
LK_INLINE void interleave(Pairs& a, Pairs& b) {
  const Pairs first = interleave_half(a.lo, b.lo);
  b = interleave_half(a.hi, b.hi);
  a = first;
}
LK_INLINE __m256i lower_halves(__m256i a, __m256i b) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low)), 0xd8);
}
LK_INLINE __m256i upper_halves(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)), 0xd8);
}
LK_INLINE void deinterleave(Pairs& a, Pairs& b) {
  const Pairs first = {lower_halves(a.lo, a.hi), lower_halves(b.lo, b.hi)};
  b = {upper_halves(a.lo, a.hi), upper_halves(b.lo, b.hi)};
  a = first;
}
LK_INLINE Pairs pairs_of(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
LK_INLINE void store_pairs(uint16_t* p, Pairs a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16), a.hi);
}
LK_INLINE Pairs round_to_pairs(F32x16 a, F32x16 b) {
  return {_mm256_or_si256(round_to_bf16(a.lo), _mm256_slli_epi32(round_to_bf16(b.lo), 16)),
          _mm256_or_si256(round_to_bf16(a.hi), _mm256_slli_epi32(round_to_bf16(b.hi), 16))};
}

LK_INLINE __m256 exp_half(__m256 a) {
  const __m256 tiny = _mm256_cmp_ps(a, _mm256_set1_ps(-87.33f), _CMP_LT_OQ);
  // The exponent is built in two halves so that results up to the largest float do not overflow early.
  const __m256 x = _mm256_max_ps(_mm256_min_ps(a, _mm256_set1_ps(89.0f)), _mm256_set1_ps(-88.0f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i s1 = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i s2 = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  p = _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(s1)), _mm256_castsi256_ps(s2));
  // min/max above turn NaN into a number: give it back.
  p = _mm256_blendv_ps(p, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_andnot_ps(tiny, p);
}
LK_INLINE F32x16 exp(F32x16 a) { return {exp_half(a.lo), exp_half(a.hi)}; }

LK_INLINE void keep(Pairs& a) { asm volatile("" : "+x"(a.lo), "+x"(a.hi)); }
LK_INLINE void keep(F32x16& a) { asm volatile("" : "+x"(a.lo), "+x"(a.hi)); }

}  // namespace lk::LK_ISA_NAMESPACE
