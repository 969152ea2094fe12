// SPDX-License-Identifier: Apache-2.0
// simd.h for AVX-512 (F, BW, DQ, VL), with and without BF16. Included by simd.h only.
#pragma once

#include <immintrin.h>

#include "lk/kernels/cpu.h"

namespace lk::LK_ISA_NAMESPACE {

#if defined(__AMX_BF16__)
constexpr CpuIsa kIsa = CpuIsa::kAmxBf16;
#elif defined(__AVX512BF16__)
constexpr CpuIsa kIsa = CpuIsa::kAvx512Bf16;
#else
constexpr CpuIsa kIsa = CpuIsa::kAvx512;
#endif
constexpr int kNumVectors = 32;

struct F32x16 {
  __m512 v;
};
struct Pairs {
  __m512i v;
};

LK_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

LK_INLINE F32x16 zero() { return {_mm512_setzero_ps()}; }
LK_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
LK_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
LK_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
LK_INLINE F32x16 load_partial(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
LK_INLINE void store_partial(float* p, F32x16 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

LK_INLINE F32x16 widen(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
LK_INLINE __m256i narrow(F32x16 a) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet_nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet_nan), 16));
#endif
}
LK_INLINE F32x16 load_bf16(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
LK_INLINE F32x16 load_bf16_partial(const uint16_t* p, int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
LK_INLINE void store_bf16(uint16_t* p, F32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
LK_INLINE void store_bf16_partial(uint16_t* p, F32x16 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a));
}

LK_INLINE Pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
LK_INLINE Pairs load_pairs_partial(const uint16_t* p, int64_t num_elements) {
  return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << num_elements) - 1), p)};
}
LK_INLINE Pairs broadcast_pair(uint32_t pair) { return {_mm512_set1_epi32(static_cast<int>(pair))}; }

LK_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LK_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LK_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LK_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LK_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
LK_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

LK_INLINE F32x16 dot_bf16(F32x16 acc, Pairs w, Pairs x) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(w.v), reinterpret_cast<__m512bh>(x.v))};
#else
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512 lo = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16)),
                                    _mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16)), acc.v);
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(w.v, high)),
                          _mm512_castsi512_ps(_mm512_and_si512(x.v, high)), lo)};
#endif
}

LK_INLINE float reduce_add(F32x16 a) {
  const __m256 h8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}
LK_INLINE float reduce_max(F32x16 a) {
  const __m256 h8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 h4 = _mm_max_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_max_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_max_ss(h2, _mm_movehdup_ps(h2)));
}

// v in lanes [begin, end), fill elsewhere; 0 <= begin, end <= 16.
LK_INLINE F32x16 keep_lanes(F32x16 a, int64_t begin, int64_t end, float fill) {
  const uint32_t lanes = ((1u << end) - 1) & ~((1u << begin) - 1);
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(end > begin ? lanes : 0), a.v)};
}

LK_INLINE F32x16 keep_bits(F32x16 a, uint32_t bits, float fill) {
  return {_mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(bits), a.v)};
}
LK_INLINE uint32_t lanes_above(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
LK_INLINE F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
LK_INLINE void store_ints(int32_t* p, F32x16 a) { _mm512_storeu_si512(p, _mm512_cvtps_epi32(a.v)); }

LK_INLINE void transpose(F32x16 (&v)[16]) {
  __m512 t[16], r[16];
  LK_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i].v, v[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(v[i].v, v[i + 1].v);
  }
  const auto low = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  const auto high = [](__m512 a, __m512 b) __attribute__((always_inline)) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  };
  // r[4 g + c]: lanes c, c + 4, c + 8, c + 12 of vectors 4 g to 4 g + 3.
  LK_UNROLL
  for (int i = 0; i < 16; i += 4) {
    r[i] = low(t[i], t[i + 2]);
    r[i + 1] = high(t[i], t[i + 2]);
    r[i + 2] = low(t[i + 1], t[i + 3]);
    r[i + 3] = high(t[i + 1], t[i + 3]);
  }
  LK_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    const __m512 d = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    v[c].v = _mm512_shuffle_f32x4(a, d, 0x88);
    v[4 + c].v = _mm512_shuffle_f32x4(b, e, 0x88);
    v[8 + c].v = _mm512_shuffle_f32x4(a, d, 0xdd);
    v[12 + c].v = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
}
// The indices of every second 16-bit element of two vectors, from `first` on; of those that alternate between them.
LK_INLINE __m512i every_second(int first) {
  const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
  const __m512i odd = _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(2 + first)), 16);
  return _mm512_or_si512(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), odd);
}
LK_INLINE __m512i alternating(int first) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i own = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  return _mm512_or_si512(own, _mm512_slli_epi32(_mm512_add_epi32(own, _mm512_set1_epi32(32)), 16));
}
LK_INLINE void interleave(Pairs& a, Pairs& b) {
  const __m512i first = _mm512_permutex2var_epi16(a.v, alternating(0), b.v);
  b.v = _mm512_permutex2var_epi16(a.v, alternating(16), b.v);
  a.v = first;
}
LK_INLINE void deinterleave(Pairs& a, Pairs& b) {
  const __m512i first = _mm512_permutex2var_epi16(a.v, every_second(0), b.v);
  b.v = _mm512_permutex2var_epi16(a.v, every_second(1), b.v);
  a.v = first;
}
LK_INLINE Pairs pairs_of(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
LK_INLINE void store_pairs(uint16_t* p, Pairs a) { _mm512_storeu_si512(p, a.v); }
// Lane i of the result: a and b of lane i rounded, a in the lower half.
LK_INLINE Pairs round_to_pairs(F32x16 a, F32x16 b) {
  const __m512i lo = _mm512_cvtepu16_epi32(narrow(a)), hi = _mm512_cvtepu16_epi32(narrow(b));
  return {_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16))};
}

// Relative error about 1e-7; exp(0) == 1 exactly; below -87.3 (so for -inf) exactly 0.
// Source of the polynomial: Cephes expf.
LK_INLINE F32x16 exp(F32x16 a) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(-87.33f), _CMP_LT_OQ);
  const __m512 x = _mm512_min_ps(_mm512_set1_ps(89.0f), a.v);  // in this order NaN stays
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), _mm512_set1_ps(1.0f));
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~tiny), _mm512_scalef_ps(p, n))};
}

LK_INLINE void keep(Pairs& a) { asm volatile("" : "+v"(a.v)); }
LK_INLINE void keep(F32x16& a) { asm volatile("" : "+v"(a.v)); }

}  // namespace lk::LK_ISA_NAMESPACE
