// SPDX-License-Identifier: Apache-2.0
// The row-wise kernels of training. Every sum inside a row runs over fixed lanes and a fixed tree.
#include "lk/kernels/cpu/for_rows.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// f(pointer of the type that the values have).
template <class F>
LK_INLINE void with_act(const void* x, DType type, const F& f) {
  if (type == DType::kBF16)
    f(static_cast<const uint16_t*>(x));
  else
    f(static_cast<const float*>(x));
}
template <class F>
LK_INLINE void with_act(void* x, DType type, const F& f) {
  if (type == DType::kBF16)
    f(static_cast<uint16_t*>(x));
  else
    f(static_cast<float*>(x));
}

template <class T>
LK_INLINE F32x16 load16(const T* p, int64_t n) {
  return n >= 16 ? load_as_f32(p) : load_as_f32(p, n);
}
template <class T>
LK_INLINE void store16(T* p, F32x16 v, int64_t n) {
  if (n >= 16)
    store_from_f32(p, v);
  else
    store_from_f32(p, v, n);
}
template <class T>
LK_INLINE void zero_columns(T* row, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) row[j] = 0;
}

// --- Norms

struct NormSums {
  float squares, product;  // of x, of w dy x
};
template <class T>
LK_INLINE NormSums norm_sums(const T* x, const float* weight, const float* dy, int64_t dim) {
  F32x16 squares[2] = {zero(), zero()}, products[2] = {zero(), zero()};
  for (int64_t i = 0; i < dim; i += 32) {
    LK_UNROLL
    for (int lane = 0; lane < 2; ++lane) {
      const int64_t at = i + 16 * lane, left = dim - at;
      if (left <= 0) break;
      const F32x16 xv = load16(x + at, left);
      squares[lane] = fma(xv, xv, squares[lane]);
      products[lane] = fma(mul(load16(weight + at, left), load16(dy + at, left)), xv, products[lane]);
    }
  }
  return {reduce_add(add(squares[0], squares[1])), reduce_add(add(products[0], products[1]))};
}
LK_INLINE float inverse_rms(float squares, int64_t dim, float eps) {
  return 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
}

template <class T>
void norm_gradient(const RmsNormBackwardArgs& args, const T* x, const float* dy, float* dx) {
  const NormSums sums = norm_sums(x, args.weight, dy, args.dim);
  const float rho = inverse_rms(sums.squares, args.dim, args.eps);
  const F32x16 rhos = broadcast(rho);
  const F32x16 factor = broadcast(-(rho * rho * rho * (sums.product / static_cast<float>(args.dim))));
  for (int64_t i = 0; i < args.dim; i += 16) {
    const int64_t left = args.dim - i;
    const F32x16 own = mul(rhos, mul(load16(args.weight + i, left), load16(dy + i, left)));
    const F32x16 gradient = fma(factor, load16(x + i, left), own);
    store16(dx + i, args.add ? add(load16(dx + i, left), gradient) : gradient, left);
  }
}

// Threads own columns; each takes the vectors in ascending order.
template <class T>
void norm_weight_gradient(const RmsNormBackwardArgs& args, const T* x, ThreadPool& pool) {
  const int64_t num_vectors = args.num_rows * args.heads;
  auto* rho = reinterpret_cast<float*>(thread_scratch(num_vectors * static_cast<int64_t>(sizeof(float))));
  for_rows(pool, args.num_rows, args.heads * args.dim, [&](int64_t row) {
    for (int64_t head = 0; head < args.heads; ++head) {
      const T* from = x + row * args.x_stride + head * args.dim;
      F32x16 squares = zero();
      for (int64_t i = 0; i < args.dim; i += 16) {
        const F32x16 v = load16(from + i, args.dim - i);
        squares = fma(v, v, squares);
      }
      rho[row * args.heads + head] = inverse_rms(reduce_add(squares), args.dim, args.eps);
    }
  });
  constexpr int kVecs = 4;
  parallel(pool, ceil_div(args.dim, 16 * kVecs), 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t col = block * 16 * kVecs;
      F32x16 sum[kVecs];
      const auto columns = [&](int vec) { return min64(max64(args.dim - col - 16 * vec, 0), 16); };
      for (int vec = 0; vec < kVecs; ++vec)
        sum[vec] = load_partial(args.weight_gradient + col + 16 * vec, columns(vec));
      for (int64_t vector = 0; vector < num_vectors; ++vector) {
        const int64_t row = vector / args.heads, at = vector % args.heads * args.dim + col;
        const F32x16 factor = broadcast(rho[vector]);
        for (int vec = 0; vec < kVecs; ++vec) {
          const int64_t n = columns(vec);
          if (n == 0) break;
          const F32x16 dy = load16(args.dy + row * args.dy_stride + at + 16 * vec, n);
          sum[vec] = fma(mul(dy, load16(x + row * args.x_stride + at + 16 * vec, n)), factor, sum[vec]);
        }
      }
      for (int vec = 0; vec < kVecs; ++vec)
        store_partial(args.weight_gradient + col + 16 * vec, sum[vec], columns(vec));
    }
  });
}

// --- SwiGLU

LK_INLINE F32x16 sigmoid(F32x16 x) {
  const F32x16 one = broadcast(1.0f);
  return div(one, add(one, exp(sub(zero(), x))));
}

template <class T>
void swiglu_keep_tile(const SwigluKeepArgs& args, int64_t row, int64_t begin, int64_t end) {
  T* gate = static_cast<T*>(args.kept) + row * args.kept_stride;
  T* up = gate + args.up_offset;
  T* y = static_cast<T*>(args.y) + row * args.y_stride;
  const float* x = args.x == nullptr ? nullptr : args.x + row * args.x_stride;
  if (x != nullptr && begin == 0) {
    zero_columns(gate, args.dim, args.up_offset);
    zero_columns(gate, args.up_offset + args.dim, args.padded);
  }
  for (int64_t i = begin; i < end; i += 16) {
    const int64_t left = end - i;
    if (x != nullptr) {
      store16(gate + i, load16(x + i, left), left);
      store16(up + i, load16(x + args.up_offset + i, left), left);
    }
    const F32x16 g = load16(gate + i, left);
    const F32x16 silu = div(g, add(broadcast(1.0f), exp(sub(zero(), g))));
    store16(y + i, mul(silu, load16(up + i, left)), left);
  }
}

template <class T>
void swiglu_backward_tile(const SwigluBackwardArgs& args, int64_t row, int64_t begin, int64_t end) {
  const T* gate = static_cast<const T*>(args.kept) + row * args.kept_stride;
  const T* up = gate + args.up_offset;
  const float* dy = args.dy + row * args.dy_stride;
  T* dx = static_cast<T*>(args.dx) + row * args.dx_stride;
  const F32x16 one = broadcast(1.0f);
  if (begin == 0) {
    zero_columns(dx, args.dim, args.up_offset);
    zero_columns(dx, args.up_offset + args.dim, args.padded);
  }
  for (int64_t i = begin; i < end; i += 16) {
    const int64_t left = end - i;
    const F32x16 g = load16(gate + i, left), u = load16(up + i, left), d = load16(dy + i, left);
    const F32x16 sigma = sigmoid(g);
    const F32x16 d_silu = mul(sigma, fma(g, sub(one, sigma), one));
    store16(dx + i, mul(mul(d, u), d_silu), left);
    store16(dx + args.up_offset + i, mul(d, mul(g, sigma)), left);
  }
}

// --- Cross entropy

// sum(exp(x - max)), in f32 within blocks, in f64 over them.
LK_INLINE double exp_sum(const float* x, int64_t n, float max) {
  constexpr int64_t kBlock = 2048;
  const F32x16 highest = broadcast(max);
  double total = 0;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t end = min64(first + kBlock, n);
    F32x16 sum[4] = {zero(), zero(), zero(), zero()};
    int64_t i = first;
    for (; i + 64 <= end; i += 64) {
      LK_UNROLL
      for (int lane = 0; lane < 4; ++lane) sum[lane] = add(sum[lane], exp(sub(load(x + i + 16 * lane), highest)));
    }
    for (; i < end; i += 16) {
      const int64_t left = min64(16, end - i);
      sum[0] = add(sum[0], keep_lanes(exp(sub(load_partial(x + i, left), highest)), 0, left, 0.0f));
    }
    total += static_cast<double>(reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3]))));
  }
  return total;
}

// The row may begin where the logits do: what is read is read before anything at or behind it is written.
template <class T>
void softmax_gradient(const float* x, int64_t n, float max, double sum, int64_t target, float weight, T* gradient,
                      int64_t padded) {
  if (weight == 0) return zero_columns(gradient, 0, padded);  // whatever the logits are
  const double of_target = __builtin_exp(static_cast<double>(x[target] - max)) / sum - 1;
  const F32x16 highest = broadcast(max), factor = broadcast(static_cast<float>(static_cast<double>(weight) / sum));
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    store16(gradient + i, mul(exp(sub(load16(x + i, left), highest)), factor), left);
  }
  store_from_f32(gradient + target, broadcast(static_cast<float>(static_cast<double>(weight) * of_target)), 1);
  zero_columns(gradient, n, padded);
}

}  // namespace

void round_rows(const RoundRowsArgs& args, ThreadPool& pool) {
  with_act(args.x, args.x_dtype, [&](auto* x) {
    with_act(args.y, args.y_dtype, [&](auto* y) {
      for_tiles(pool, args.num_rows, args.padded, [&](int64_t row, int64_t begin, int64_t end) {
        const auto* from = x + row * args.x_stride;
        auto* to = y + row * args.y_stride;
        for (int64_t i = begin; i < min64(end, args.n); i += 16) {
          const int64_t left = min64(end, args.n) - i;
          F32x16 v = load16(from + i, left);
          if (args.scale != nullptr) v = mul(v, load16(args.scale + i, left));
          store16(to + i, v, left);
        }
        zero_columns(to, max64(begin, args.n), end);
      });
    });
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& args, ThreadPool& pool) {
  with_act(args.x, args.x_dtype, [&](auto* x) {
    if (args.weight_gradient != nullptr) norm_weight_gradient(args, x, pool);  // before dx takes dy's place
    if (args.dx == nullptr) return;
    for_rows(pool, args.num_rows, args.heads * args.dim, [&](int64_t row) {
      for (int64_t head = 0; head < args.heads; ++head) {
        const int64_t at = head * args.dim;
        norm_gradient(args, x + row * args.x_stride + at, args.dy + row * args.dy_stride + at,
                      args.dx + row * args.dx_stride + at);
      }
    });
  });
}

void swiglu_keep(const SwigluKeepArgs& args, ThreadPool& pool) {
  for_tiles(pool, args.num_rows, args.dim, [&](int64_t row, int64_t begin, int64_t end) {
    if (args.act == DType::kBF16)
      swiglu_keep_tile<uint16_t>(args, row, begin, end);
    else
      swiglu_keep_tile<float>(args, row, begin, end);
  });
}

void swiglu_backward(const SwigluBackwardArgs& args, ThreadPool& pool) {
  for_tiles(pool, args.num_rows, args.dim, [&](int64_t row, int64_t begin, int64_t end) {
    if (args.act == DType::kBF16)
      swiglu_backward_tile<uint16_t>(args, row, begin, end);
    else
      swiglu_backward_tile<float>(args, row, begin, end);
  });
}

void cross_entropy(const CrossEntropyArgs& args, ThreadPool& pool) {
  const auto num_rows = static_cast<int64_t>(args.targets.size());
  for_rows(pool, num_rows, args.vocab_size, [&](int64_t row) {
    const float* x = args.logits + row * args.logits_stride;
    const int64_t n = args.vocab_size, target = args.targets.data()[row];
    const float max = row_stats(x, n).max, own = x[target];
    const double sum = exp_sum(x, n, max);
    args.losses[row] = static_cast<float>(static_cast<double>(max) - static_cast<double>(own) + __builtin_log(sum));
    if (args.greedy != nullptr) args.greedy[row] = own >= max ? 1 : 0;
    if (args.gradient == nullptr) return;
    with_act(args.gradient, args.act, [&](auto* gradient) {
      softmax_gradient(x, n, max, sum, target, args.weights.data()[row], gradient + row * args.gradient_stride,
                       args.padded);
    });
  });
}

}  // namespace lk::LK_ISA_NAMESPACE
