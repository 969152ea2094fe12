// SPDX-License-Identifier: Apache-2.0
// The argument structs of the kernels that only training needs: backward passes, losses, optimisers. The conventions of
// kernels/args.h hold. Formulas: arXiv:2106.09685 (LoRA), arXiv:1910.07467 (RMSNorm), arXiv:2307.08691 (attention),
// arXiv:1711.05101 (AdamW).
//
// Gradients are f32 and are added to. A sum over rows is one f32 chain per element that goes on from what is there and
// takes the rows in ascending order, so that a gradient does not depend on how the rows of an adapter were cut into
// calls, on the rows of others, or on the thread count.
#pragma once

#include <cstdint>
#include <span>

#include "lk/kernels/args.h"

namespace lk {

// y[m, i] = sum_n x[m, n] w[n, i]: the gradient of gemm's input, from the same packed weight. `add` adds to y instead.
// One f32 chain per element over ascending n (pairs for bf16).
struct GemmTransposedArgs {
  const void* x = nullptr;   // act [num_rows, w.n]
  DType act = DType::kBF16;  // one that gemm takes with w's format
  int64_t x_stride = 0;
  PackedWeight w;      // in one block
  float* y = nullptr;  // f32 [num_rows, w.k]
  int64_t y_stride = 0;
  int64_t num_rows = 0;
  bool add = false;
};

// gradient[r, j] += sum_m c[m, r] x[m, j] over rows m = 0 .. num_rows - 1 (f32 chain, see the file's head): the
// gradient of a rank row, from the other factor's product and the input.
struct OuterProduct {
  const float* c = nullptr;  // f32 [num_rows, rank]
  int64_t c_stride = 0;
  const void* x = nullptr;  // x_dtype [num_rows, width]
  DType x_dtype = DType::kBF16;
  int64_t x_stride = 0;
  int64_t num_rows = 0, rank = 0, width = 0;
  float* gradient = nullptr;  // f32 [rank, width]; the products of one call write to different memory
  int64_t gradient_stride = 0;
};

// y = x rounded to y_dtype, each column times scale when there is one. Columns [n, padded) of y become 0. y may be x
// when their types are the same.
struct RoundRowsArgs {
  const void* x = nullptr;  // x_dtype [num_rows, n]
  DType x_dtype = DType::kF32;
  int64_t x_stride = 0;
  const float* scale = nullptr;  // f32 [n] or null
  void* y = nullptr;             // y_dtype [num_rows, padded]
  DType y_dtype = DType::kBF16;
  int64_t y_stride = 0;
  int64_t num_rows = 0, n = 0, padded = 0;  // padded >= n
};

// dx += d rms_norm(x) / dx applied to dy:  rho (w dy) - rho^3 x mean(w dy x),  rho = (mean(x^2) + eps)^-1/2.
// With weight_gradient:  weight_gradient[j] += sum_m dy[m, j] x[m, j] rho[m]  (chain over the rows, and over the heads
// of a row). A row is `heads` vectors of dim elements, one after the other, each with a norm of its own.
struct RmsNormBackwardArgs {
  const void* x = nullptr;  // x_dtype [num_rows, heads * dim]
  DType x_dtype = DType::kF32;
  int64_t x_stride = 0;
  const float* weight = nullptr;  // f32 [dim]
  const float* dy = nullptr;      // f32 [num_rows, dim]
  int64_t dy_stride = 0;
  float* dx = nullptr;  // f32 [num_rows, dim]; null: only the weight's gradient
  int64_t dx_stride = 0;
  bool add = true;                   // false: dx is overwritten, and may be dy
  float* weight_gradient = nullptr;  // f32 [dim] or null
  int64_t num_rows = 0, heads = 1, dim = 0;
  float eps = 0;
};

// SwiGLU of a product that is kept for the backward pass: kept = x rounded, in the product's layout (gate in columns
// [0, dim), up in [up_offset, up_offset + dim), 0 between and up to `padded`); y = silu(gate) up, from the kept values.
struct SwigluKeepArgs {
  const float* x = nullptr;  // f32 [num_rows, up_offset + dim]; null: `kept` is there already
  int64_t x_stride = 0;
  int64_t up_offset = 0, padded = 0;
  void* kept = nullptr;  // act [num_rows, padded]
  int64_t kept_stride = 0;
  void* y = nullptr;  // act [num_rows, dim]
  DType act = DType::kBF16;
  int64_t y_stride = 0;
  int64_t num_rows = 0, dim = 0;
};
// d gate = dy up sigma(gate) (1 + gate (1 - sigma(gate))),  d up = dy silu(gate), rounded, in the product's layout.
struct SwigluBackwardArgs {
  const void* kept = nullptr;  // act [num_rows, padded]
  int64_t kept_stride = 0;
  int64_t up_offset = 0, padded = 0;
  const float* dy = nullptr;  // f32 [num_rows, dim]
  int64_t dy_stride = 0;
  void* dx = nullptr;  // act [num_rows, padded], 0 in the columns between; may be `kept`
  DType act = DType::kBF16;
  int64_t dx_stride = 0;
  int64_t num_rows = 0, dim = 0;
};

// Causal attention over whole sequences that lie one after the other in the rows, with what its backward pass needs.
// Row i of a sequence attends to rows (i - window, i] of it, window = 0 meaning all of [0, i].
struct RowRange {
  int32_t begin = 0, end = 0;
};
struct BlockAttention {
  const void* q = nullptr;  // act [num_rows, num_heads * head_dim], rotated
  const void* k = nullptr;  // act [num_rows, num_kv_heads * head_dim], rotated
  const void* v = nullptr;  // act [num_rows, num_kv_heads * head_dim]
  DType act = DType::kBF16;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;  // head_dim even, <= kMaxHeadDim
  float scale = 0;
  int64_t window = 0;
  std::span<const RowRange> sequences;  // ascending, disjoint
};
struct BlockAttentionArgs {
  BlockAttention in;
  void* y = nullptr;  // act [num_rows, num_heads * head_dim]
  int64_t y_stride = 0;
  float* log_sum_exp = nullptr;  // f32 [num_rows, num_heads] of the scaled scores
};
// With P = exp(scaled scores - log_sum_exp), D = sum(dy y) per row and head, dS = P (dy v^T - D) scale:
//   dq = dS k,  dk = dS^T q,  dv = P^T dy,  the latter two summed over the query heads of a KV head.
struct BlockAttentionBackwardArgs {
  BlockAttention in;
  const void* y = nullptr;  // act, what the forward pass gave
  int64_t y_stride = 0;
  const float* log_sum_exp = nullptr;
  const float* dy = nullptr;  // f32 [num_rows, num_heads * head_dim]
  int64_t dy_stride = 0;
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;  // f32, overwritten
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
};

// Rows of logits against their targets: losses[m] = log(sum(exp(logits[m]))) - logits[m, target], unweighted;
// gradient[m, :] = weight[m] (softmax(logits[m]) - onehot(target)), rounded, 0 in the columns [vocab_size, padded).
// greedy[m] = 1 when the target has the largest logit.
struct CrossEntropyArgs {
  const float* logits = nullptr;  // f32 [num_rows, vocab_size]
  int64_t logits_stride = 0;
  int64_t vocab_size = 0, padded = 0;
  std::span<const int32_t> targets;  // [num_rows]
  std::span<const float> weights;    // [num_rows]
  float* losses = nullptr;           // f32 [num_rows]
  uint8_t* greedy = nullptr;         // [num_rows] or null
  void* gradient = nullptr;          // act [num_rows, padded] or null. A row may begin where its logits do
  DType act = DType::kBF16;
  int64_t gradient_stride = 0;
};

// Rows of a table's gradient: gradient[rows[m], :] += x[m, :], in ascending m. Rows may repeat; -1: this one is
// skipped.
struct ScatterRowsArgs {
  const float* x = nullptr;  // f32 [rows.size(), dim]
  int64_t x_stride = 0;
  std::span<const int32_t> rows;
  float* gradient = nullptr;
  int64_t gradient_stride = 0;
  int64_t dim = 0;
};

// The backward pass of EmbeddingDelta (delta = scaling b a[:, token]) for rows of dy:
//   b_gradient[j, r] += scaling dy[m, j] a[r, token],   a_gradient[r, token] += scaling sum_j b[j, r] dy[m, j].
struct EmbeddingDeltaBackwardArgs {
  const float* dy = nullptr;  // f32 [tokens.size(), dim]
  int64_t dy_stride = 0;
  std::span<const int32_t> tokens;
  const float* a = nullptr;  // f32 [rank, vocab_size]
  const float* b = nullptr;  // f32 [dim, rank]
  float* a_gradient = nullptr;
  float* b_gradient = nullptr;
  int64_t rank = 0, vocab_size = 0, dim = 0;
  float scaling = 0;
};

// c[m, j] = x[m, columns[j]], which then become 0 in x.
struct TakeColumnsArgs {
  void* x = nullptr;  // act [num_rows, *]
  DType act = DType::kBF16;
  int64_t x_stride = 0;
  const int32_t* columns = nullptr;  // device [num_columns]
  float* c = nullptr;                // f32 [num_rows, num_columns]
  int64_t c_stride = 0;
  int64_t num_rows = 0, num_columns = 0;
};

// Inverted dropout (arXiv:1207.0580): y = x mask / (1 - p). The mask's bit of (row, column) comes from a counter-based
// generator: it depends on the row's key and position and on the column only, so that a row drops the same features
// wherever it stands, and again when it is recomputed or walked backwards.
struct DropoutRows {
  int32_t begin = 0, end = 0;
  uint64_t key = 0;
  int64_t first_position = 0;
  float p = 0;  // in [0, 1); taken as a multiple of 2^-16
};
struct DropoutArgs {
  const void* x = nullptr;  // [*, dim]
  DType x_dtype = DType::kBF16;
  int64_t x_stride = 0;
  void* y = nullptr;  // of y_dtype; `add` adds to y (f32 then)
  DType y_dtype = DType::kBF16;
  int64_t y_stride = 0;
  bool add = false;
  int64_t dim = 0;
  std::span<const DropoutRows> rows;  // ascending, disjoint
};

// squares = ||w[j, :]||^2 of each output row, in f64, rounded to f32.
struct RowSquaresArgs {
  PackedWeight w;
  float* squares = nullptr;  // f32 [w.n]
};
// DoRA's column scales (arXiv:2402.09353, 4.3):  norms[j] = ||w[j, :] + scaling b[j, :] a||, from
//   ||w_j||^2 + 2 scaling b_j (a w_j^T) + scaling^2 b_j (a a^T) b_j^T  in f64;   scales[j] = magnitudes[j] / norms[j].
struct DoraScalesArgs {
  const float* squares = nullptr;   // [n] of w
  const float* products = nullptr;  // f32 [rank, n], a w^T
  int64_t products_stride = 0;
  const float* a = nullptr;           // f32 [rank, k]
  const float* b = nullptr;           // f32 [rank, n], rank rows
  const float* magnitudes = nullptr;  // f32 [n]
  float* norms = nullptr;             // f32 [n]
  float* scales = nullptr;            // f32 [n]
  int64_t rank = 0, n = 0, k = 0;
  float scaling = 0;
};
// gradient[j] += sum_m dy[m, j] y[m, j] / (scales[j] norms[j]): of the magnitudes, y being the scaled output without
// the base's bias.
struct DoraMagnitudeGradArgs {
  const void* dy = nullptr;  // dy_dtype [num_rows, n]
  DType dy_dtype = DType::kBF16;
  int64_t dy_stride = 0;
  const float* y = nullptr;
  int64_t y_stride = 0;
  const float* magnitudes = nullptr;  // = scales * norms
  float* gradient = nullptr;          // f32 [n]
  int64_t num_rows = 0, n = 0;
};

// gradient[j] += sum_m x[m, j] (chain over the rows): of a bias.
struct ColumnSumArgs {
  const void* x = nullptr;
  DType x_dtype = DType::kBF16;
  int64_t x_stride = 0;
  float scale = 1;
  float* gradient = nullptr;
  int64_t num_rows = 0, n = 0;
};

// MultiLoRA (arXiv:2311.11501): the effective rank rows are b[r, j] sigma[m(r), j] for module m(r) = r / module_rank.
//   fold:    folded[r, j] = b[r, j] sigma[m(r), j]
//   unfold:  sigma_gradient[m, j] += sum_{r in m} g[r, j] b[r, j],   b_gradient[r, j] = g[r, j] sigma[m(r), j]
//            (b_gradient may be g), g being the gradient of the folded rows.
struct ModuleScalesArgs {
  const float* b = nullptr;      // f32 [rank, n]
  const float* sigma = nullptr;  // f32 [rank / module_rank, n]
  float* folded = nullptr;       // fold: f32 [rank, n].  unfold: g, then b's gradient
  float* sigma_gradient = nullptr;
  int64_t rank = 0, module_rank = 0, n = 0;
};

// One step of AdamW on n parameters, in PyTorch's order:  p *= 1 - rate decay;  m = beta1 m + (1 - beta1) g;
//   v = beta2 v + (1 - beta2) g^2;  p -= rate (m / correction1) / (sqrt(v / correction2) + eps),  g = gradient *
//   grad_scale.
struct AdamwArgs {
  float* param = nullptr;
  const float* gradient = nullptr;
  float *m = nullptr, *v = nullptr;
  int64_t n = 0;
  double rate = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0;
  double correction1 = 1, correction2 = 1;  // 1 - beta^step
  double grad_scale = 1;
};

}  // namespace lk
