// SPDX-License-Identifier: Apache-2.0
// F32x16: 16 f32 lanes, and Pairs: 16 pairs of bf16, over whatever registers the instruction set has. The kernels are
// written once over this interface; each simd_*.h supplies it:
//   kIsa, kNumVectors (F32x16 that fit the register file)
//   zero broadcast load store load_partial store_partial       partial: the first n lanes, 0 <= n <= 16; loads
//   load_bf16 store_bf16 load_bf16_partial store_bf16_partial   fill with 0 and touch no memory beyond n
//   load_pairs load_pairs_partial(p, num_elements) store_pairs broadcast_pair(u32)
//   pairs_of(v): the bits of 16 lanes   round_to_pairs(a, b): lane i is a and b of lane i as bf16, a in the lower half
//   transpose(v[16]): lane j of vector i <-> lane i of vector j, whatever the bits mean
//   interleave(a, b): the 64 bf16 a0 b0 a1 b1 ... in two vectors   deinterleave: back
//   round (to nearest even) store_ints(int32_t*, v) of integral v
//   lanes_above(a, b): bit i set where a > b   keep_bits(v, bits, fill)
//   add sub mul div max min fma(a, b, c) = a b + c, dot_bf16(acc, w, x) = acc + w.lo x.lo + w.hi x.hi per lane
//   reduce_add reduce_max (fixed order)   keep_lanes(v, begin, end, fill)   exp
// bf16 values travel as uint16_t. Rounding to bf16 is to nearest even.
#pragma once

#include <cstdint>

#define LK_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define LK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LK_UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__AVX512F__)
#include "lk/kernels/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "lk/kernels/cpu/simd_avx2.h"
#else
#include "lk/kernels/cpu/simd_portable.h"
#endif

namespace lk::LK_ISA_NAMESPACE {

LK_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
LK_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
LK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One element type per activation dtype, so that kernels are templates over it.
LK_INLINE F32x16 load_as_f32(const float* p) { return load(p); }
LK_INLINE F32x16 load_as_f32(const uint16_t* p) { return load_bf16(p); }
LK_INLINE F32x16 load_as_f32(const float* p, int64_t n) { return load_partial(p, n); }
LK_INLINE F32x16 load_as_f32(const uint16_t* p, int64_t n) { return load_bf16_partial(p, n); }
LK_INLINE void store_from_f32(float* p, F32x16 v) { store(p, v); }
LK_INLINE void store_from_f32(uint16_t* p, F32x16 v) { store_bf16(p, v); }
LK_INLINE void store_from_f32(float* p, F32x16 v, int64_t n) { store_partial(p, v, n); }
LK_INLINE void store_from_f32(uint16_t* p, F32x16 v, int64_t n) { store_bf16_partial(p, v, n); }

LK_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
LK_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace lk::LK_ISA_NAMESPACE
