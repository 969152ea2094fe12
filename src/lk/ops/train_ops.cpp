// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/train_ops.h"

#include <cmath>

#include "lk/tensor/limits.h"

namespace lk {
namespace {

bool is_act(DType type) { return type == DType::kBF16 || type == DType::kF32; }

void check_block_attention(const BlockAttention& a) {
  LK_CHECK(a.q && a.k && a.v && is_act(a.act) && a.window >= 0);
  LK_CHECK(a.head_dim > 0 && a.head_dim % 2 == 0 && a.head_dim <= kMaxHeadDim, "head_dim {}", a.head_dim);
  LK_CHECK(a.num_kv_heads > 0 && a.num_heads % a.num_kv_heads == 0, "{} heads over {}", a.num_heads, a.num_kv_heads);
  LK_CHECK(a.q_stride >= a.num_heads * a.head_dim && a.k_stride >= a.num_kv_heads * a.head_dim &&
           a.v_stride >= a.num_kv_heads * a.head_dim);
  int32_t end = 0;
  for (const RowRange& sequence : a.sequences) {
    LK_CHECK(sequence.begin >= end && sequence.begin < sequence.end, "sequences must be ascending and disjoint");
    end = sequence.end;
  }
}

void check_pattern(const SparsePattern& s) {
  LK_CHECK(s.row_begins && s.columns && s.out > 0 && s.in > 0 && s.nnz <= s.out * s.in, "{} values in {} x {}", s.nnz,
           s.out, s.in);
}

void check_modules(const ModuleScalesArgs& a) {
  LK_CHECK(a.b && a.sigma && a.folded);
  LK_CHECK(a.module_rank > 0 && a.rank % a.module_rank == 0, "rank {} in modules of {}", a.rank, a.module_rank);
}

}  // namespace

void TrainOps::gemm_transposed(const GemmTransposedArgs& a) {
  if (a.num_rows == 0 || a.w.k == 0) return;
  LK_CHECK(a.x && a.y && a.num_rows > 0 && a.x_stride >= a.w.n && a.y_stride >= a.w.k);
  LK_CHECK(a.w.data && !a.w.pages, "a weight in pages, or without memory");
  LK_CHECK(a.act == traits_of(a.w.format).act, "no product of {} activations with weights of {}", to_string(a.act),
           to_string(traits_of(a.w.format).element));
  do_gemm_transposed(a);
}

void TrainOps::outer(std::span<const OuterProduct> products) {
  if (products.empty()) return;
  for (const OuterProduct& p : products) {
    LK_CHECK(p.num_rows >= 0 && p.rank >= 0 && p.width >= 0);
    if (p.num_rows == 0 || p.rank == 0 || p.width == 0) continue;
    LK_CHECK(p.c && p.x && p.gradient && is_act(p.x_dtype) && p.c_stride >= p.rank && p.x_stride >= p.width &&
             p.gradient_stride >= p.width);
  }
  do_outer(products);
}

void TrainOps::round_rows(const RoundRowsArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.x && a.y && is_act(a.x_dtype) && is_act(a.y_dtype) && a.padded >= a.n && a.x_stride >= a.n &&
           a.y_stride >= a.padded);
  LK_CHECK(a.x != a.y || (a.x_dtype == a.y_dtype && a.x_stride == a.y_stride), "rows in place keep type and stride");
  do_round_rows(a);
}

void TrainOps::rms_norm_backward(const RmsNormBackwardArgs& a) {
  if (a.num_rows == 0) return;
  const int64_t width = a.heads * a.dim;
  LK_CHECK(a.x && a.weight && a.dy && is_act(a.x_dtype) && a.x_stride >= width && a.dy_stride >= width);
  LK_CHECK(!a.dx || a.dx_stride >= width);
  LK_CHECK(a.dx != a.dy || (!a.add && a.dx_stride == a.dy_stride), "dx over dy does not add");
  do_rms_norm_backward(a);
}

void TrainOps::swiglu_keep(const SwigluKeepArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.kept && a.y && is_act(a.act) && a.up_offset >= a.dim && a.padded >= a.up_offset + a.dim &&
           a.kept_stride >= a.padded && a.y_stride >= a.dim);
  LK_CHECK(!a.x || a.x_stride >= a.up_offset + a.dim);
  do_swiglu_keep(a);
}

void TrainOps::swiglu_backward(const SwigluBackwardArgs& a) {
  if (a.num_rows == 0) return;
  LK_CHECK(a.kept && a.dy && a.dx && is_act(a.act) && a.up_offset >= a.dim && a.padded >= a.up_offset + a.dim &&
           a.kept_stride >= a.padded && a.dx_stride >= a.padded && a.dy_stride >= a.dim);
  do_swiglu_backward(a);
}

void TrainOps::block_attention(const BlockAttentionArgs& a) {
  if (a.in.sequences.empty()) return;
  check_block_attention(a.in);
  LK_CHECK(a.y && a.log_sum_exp && a.y_stride >= a.in.num_heads * a.in.head_dim);
  do_block_attention(a);
}

void TrainOps::block_attention_backward(const BlockAttentionBackwardArgs& a) {
  if (a.in.sequences.empty()) return;
  check_block_attention(a.in);
  const int64_t width = a.in.num_heads * a.in.head_dim, kv_width = a.in.num_kv_heads * a.in.head_dim;
  LK_CHECK(a.y && a.log_sum_exp && a.dy && a.dq && a.dk && a.dv && a.y_stride >= width && a.dy_stride >= width &&
           a.dq_stride >= width && a.dk_stride >= kv_width && a.dv_stride >= kv_width);
  do_block_attention_backward(a);
}

int64_t TrainOps::block_attention_scratch_bytes(const BlockAttention& in) const {
  LK_CHECK(in.head_dim > 0 && in.num_kv_heads > 0 && in.num_heads % in.num_kv_heads == 0 && is_act(in.act));
  return do_block_attention_scratch_bytes(in);
}

void TrainOps::cross_entropy(const CrossEntropyArgs& a) {
  LK_CHECK(a.targets.size() == a.weights.size());
  if (a.targets.empty()) return;
  LK_CHECK(a.logits && a.losses && a.vocab_size > 0 && a.logits_stride >= a.vocab_size);
  LK_CHECK(!a.gradient || (is_act(a.act) && a.padded >= a.vocab_size && a.gradient_stride >= a.padded));
  for (const int32_t target : a.targets)
    LK_CHECK(target >= 0 && target < a.vocab_size, "target {} of {}", target, a.vocab_size);
  do_cross_entropy(a);
}

void TrainOps::scatter_rows(const ScatterRowsArgs& a) {
  if (a.rows.empty()) return;
  LK_CHECK(a.x && a.gradient && a.x_stride >= a.dim && a.gradient_stride >= a.dim);
  for (const int32_t row : a.rows) LK_CHECK(row >= -1);
  do_scatter_rows(a);
}

void TrainOps::embedding_delta_backward(const EmbeddingDeltaBackwardArgs& a) {
  if (a.tokens.empty() || a.rank == 0) return;
  LK_CHECK(a.dy && a.a && a.b && a.a_gradient && a.b_gradient && a.dy_stride >= a.dim);
  for (const int32_t token : a.tokens) LK_CHECK(token >= 0 && token < a.vocab_size, "token {}", token);
  do_embedding_delta_backward(a);
}

void TrainOps::take_columns(const TakeColumnsArgs& a) {
  if (a.num_rows == 0 || a.num_columns == 0) return;
  LK_CHECK(a.x && is_act(a.act) && a.columns && a.c && a.c_stride >= a.num_columns);
  do_take_columns(a);
}

void TrainOps::dropout(const DropoutArgs& a) {
  if (a.rows.empty()) return;
  LK_CHECK(a.x && a.y && is_act(a.x_dtype) && is_act(a.y_dtype) && a.x_stride >= a.dim && a.y_stride >= a.dim);
  LK_CHECK(!a.add || a.y_dtype == DType::kF32, "only f32 is added to");
  int32_t end = 0;
  for (const DropoutRows& rows : a.rows) {
    LK_CHECK(rows.begin >= end && rows.begin < rows.end, "rows must be ascending and disjoint");
    LK_CHECK(rows.p >= 0 && rows.p < 1, "p = {}", rows.p);
    end = rows.end;
  }
  do_dropout(a);
}

void TrainOps::row_squares(const RowSquaresArgs& a) {
  if (a.w.n == 0) return;
  LK_CHECK(a.w.data && a.squares);
  do_row_squares(a);
}

void TrainOps::dora_scales(const DoraScalesArgs& a) {
  if (a.n == 0) return;
  LK_CHECK(a.squares && a.magnitudes && a.norms && a.scales && a.rank >= 0);
  LK_CHECK(a.rank == 0 || (a.products && a.a && a.b && a.products_stride >= a.n));
  do_dora_scales(a);
}

void TrainOps::dora_magnitude_grad(const DoraMagnitudeGradArgs& a) {
  if (a.num_rows == 0 || a.n == 0) return;
  LK_CHECK(a.dy && a.y && a.magnitudes && a.gradient && is_act(a.dy_dtype) && a.dy_stride >= a.n && a.y_stride >= a.n);
  do_dora_magnitude_grad(a);
}

void TrainOps::column_sum(const ColumnSumArgs& a) {
  if (a.num_rows == 0 || a.n == 0) return;
  LK_CHECK(a.x && a.gradient && is_act(a.x_dtype) && a.x_stride >= a.n);
  do_column_sum(a);
}

void TrainOps::fold_modules(const ModuleScalesArgs& a) {
  if (a.rank == 0 || a.n == 0) return;
  check_modules(a);
  do_fold_modules(a);
}

void TrainOps::unfold_modules(const ModuleScalesArgs& a) {
  if (a.rank == 0 || a.n == 0) return;
  check_modules(a);
  LK_CHECK(a.sigma_gradient);
  do_unfold_modules(a);
}

void TrainOps::sparse_product(const SparseProductArgs& a) {
  if (a.num_rows == 0 || a.s.nnz == 0) return;
  check_pattern(a.s);
  LK_CHECK(a.values && a.x && a.y && is_act(a.act) && a.x_stride >= a.s.in && a.y_stride >= a.s.out);
  do_sparse_product(a);
}

void TrainOps::sparse_input_gradient(const SparseInputGradientArgs& a) {
  if (a.num_rows == 0 || a.s.nnz == 0) return;
  check_pattern(a.s);
  LK_CHECK(a.values && a.dy && a.dx && is_act(a.act) && a.dy_stride >= a.s.out && a.dx_stride >= a.s.in);
  do_sparse_input_gradient(a);
}

void TrainOps::sparse_gradient(const SparseGradientArgs& a) {
  if (a.num_rows == 0 || a.s.nnz == 0) return;
  check_pattern(a.s);
  LK_CHECK(a.dy && a.x && a.gradient && is_act(a.act) && a.dy_stride >= a.s.out && a.x_stride >= a.s.in);
  do_sparse_gradient(a);
}

void TrainOps::proximal_gradient(const ProximalArgs& a) {
  if (a.n == 0) return;
  LK_CHECK(a.x && a.anchor && a.gradient && std::isfinite(a.factor));
  do_proximal_gradient(a);
}

void TrainOps::adamw(const AdamwArgs& a) {
  if (a.n == 0) return;
  LK_CHECK(a.param && a.gradient && a.m && a.v && a.correction1 > 0 && a.correction2 > 0);
  do_adamw(a);
}

double TrainOps::sum_squares(const float* x, int64_t n) {
  if (n == 0) return 0;
  LK_CHECK(x && n > 0);
  return do_sum_squares(x, n);
}

void TrainOps::fill(float* x, int64_t n, float value) {
  if (n == 0) return;
  LK_CHECK(x && n > 0);
  do_fill(x, n, value);
}

}  // namespace lk
