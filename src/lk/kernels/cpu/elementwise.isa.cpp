// SPDX-License-Identifier: Apache-2.0
// Row-wise kernels: rms_norm, rope, swiglu, add_bias, add. Every sum runs in a fixed order.
#include "lk/kernels/cpu/for_rows.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

template <class T>
void rms_norm_row(const RmsNormArgs& args, int64_t row) {
  const float* x = args.x + row * args.x_stride;
  T* y = static_cast<T*>(args.y) + row * args.y_stride;
  F32x16 sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 64 <= args.dim; i += 64) {
    LK_UNROLL
    for (int lane = 0; lane < 4; ++lane) {
      const F32x16 v = load(x + i + 16 * lane);
      sum[lane] = fma(v, v, sum[lane]);
    }
  }
  for (; i < args.dim; i += 16) {
    const F32x16 v = load_partial(x + i, min64(16, args.dim - i));
    sum[0] = fma(v, v, sum[0]);
  }
  const float total = reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
  const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(total / static_cast<float>(args.dim) + args.eps));
  for (i = 0; i + 16 <= args.dim; i += 16) store_from_f32(y + i, mul(mul(load(x + i), inverse), load(args.weight + i)));
  const int64_t left = args.dim - i;
  if (left > 0)
    store_from_f32(y + i, mul(mul(load_partial(x + i, left), inverse), load_partial(args.weight + i, left)), left);
}

LK_INLINE F32x16 silu_times(F32x16 gate, F32x16 up) {
  const F32x16 e = exp(sub(zero(), gate));
  return mul(div(gate, add(broadcast(1.0f), e)), up);
}

template <class T>
void swiglu_tile(const SwigluArgs& args, int64_t row, int64_t begin, int64_t end) {
  const float* gate = args.x + row * args.x_stride;
  const float* up = gate + args.up_offset;
  T* y = static_cast<T*>(args.y) + row * args.y_stride;
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) store_from_f32(y + i, silu_times(load(gate + i), load(up + i)));
  const int64_t left = end - i;
  if (left > 0) store_from_f32(y + i, silu_times(load_partial(gate + i, left), load_partial(up + i, left)), left);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, ThreadPool& pool) {
  for_rows(pool, args.num_rows, args.dim, [&](int64_t row) {
    if (args.y_dtype == DType::kBF16)
      rms_norm_row<uint16_t>(args, row);
    else
      rms_norm_row<float>(args, row);
  });
}

void rope(const RopeArgs& args, ThreadPool& pool) {
  const int64_t half = args.head_dim / 2;
  for_rows(pool, args.num_rows, args.num_heads * args.head_dim, [&](int64_t row) {
    const float* cos_row = args.cos + row * half;
    const float* sin_row = args.sin + row * half;
    for (int64_t head = 0; head < args.num_heads; ++head) {
      float* lo = args.x + row * args.x_stride + head * args.head_dim;
      float* hi = lo + half;
      for (int64_t i = 0; i < half; i += 16) {
        const int64_t n = min64(16, half - i);
        const F32x16 a = load_partial(lo + i, n), b = load_partial(hi + i, n);
        const F32x16 c = load_partial(cos_row + i, n), s = load_partial(sin_row + i, n);
        store_partial(lo + i, fma(a, c, sub(zero(), mul(b, s))), n);
        store_partial(hi + i, fma(b, c, mul(a, s)), n);
      }
    }
  });
}

void swiglu(const SwigluArgs& args, ThreadPool& pool) {
  for_tiles(pool, args.num_rows, args.dim, [&](int64_t row, int64_t begin, int64_t end) {
    if (args.y_dtype == DType::kBF16)
      swiglu_tile<uint16_t>(args, row, begin, end);
    else
      swiglu_tile<float>(args, row, begin, end);
  });
}

void add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n, ThreadPool& pool) {
  for_tiles(pool, num_rows, n, [&](int64_t row, int64_t begin, int64_t end) {
    float* out = y + row * y_stride;
    const float* in = x + row * x_stride;
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) store(out + i, add(load(out + i), load(in + i)));
    if (i < end) store_partial(out + i, add(load_partial(out + i, end - i), load_partial(in + i, end - i)), end - i);
  });
}

void add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n, ThreadPool& pool) {
  add(y, y_stride, bias, 0, num_rows, n, pool);
}

}  // namespace lk::LK_ISA_NAMESPACE
