// SPDX-License-Identifier: Apache-2.0
// The argument structs of all kernels: typed pointers, sizes and strides in elements. One struct serves the
// reference (kernels/ref) and every CPU instruction set (kernels/cpu). Launchers never allocate, accept zero rows and
// any ragged size.
//
// Conventions. "act" is the compute type of activations that feed a matrix product: bf16 in bf16 mode, f32 in f32 mode.
// The residual stream, the outputs of products and all accumulation are f32.
// Row determinism: the value of an output row depends on that row's inputs only, bit for bit, never on the number of
// rows, their order, the chunking or the thread count (docs/design/numerics.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lk/base/page.h"
#include "lk/tensor/dtype.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

inline constexpr int64_t kPanelCols = 32;  // output columns per packed weight panel

// How a weight matrix is laid out for products. What a format means is said in traits_of() and in the switches over
// formats of kernels/ (packing, unpacking, products, merging); none has a default case, so a format that is forgotten
// somewhere does not compile.
enum class WeightFormat : uint8_t {
  kBF16Panels,  // [ceil(n/32)][ceil(k/2)][32][2] bf16, zero padded
  kF32Panels,   // [ceil(n/32)][k][32] f32, zero padded
};
// One step of a panel along the inner dimension: 32 columns of two bf16 or one f32 each.
inline constexpr int64_t kPanelStepBytes = 128;
struct FormatTraits {
  int64_t per_step = 0;  // input features in one step of a panel
  DType element{};       // of the values
  DType act{};           // of the activations that gemm multiplies with it
};
constexpr FormatTraits traits_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBF16Panels:
      return {.per_step = 2, .element = DType::kBF16, .act = DType::kBF16};
    case WeightFormat::kF32Panels:
      return {.per_step = 1, .element = DType::kF32, .act = DType::kF32};
  }
  return {};
}
// The format that weights are packed in for products with activations of this type.
constexpr WeightFormat weight_format_of(DType act) {
  switch (act) {
    case DType::kBF16:
      return WeightFormat::kBF16Panels;
    case DType::kF32:
      return WeightFormat::kF32Panels;
    case DType::kF16:
      break;
  }
  check_failed(__FILE__, __LINE__, "act", "f16 is a type of files, not of activations");
}
// A format that keeps values of this type as they are.
constexpr WeightFormat exact_format_of(DType values) {
  return values == DType::kBF16 ? WeightFormat::kBF16Panels : WeightFormat::kF32Panels;
}
constexpr int64_t packed_weight_bytes(WeightFormat format, int64_t n, int64_t k) {
  const int64_t per_step = traits_of(format).per_step;
  return (n + kPanelCols - 1) / kPanelCols * ((k + per_step - 1) / per_step) * kPanelStepBytes;
}

// A packed matrix: panels one after the other, either in one block of memory (`pages` is null) or in pages of a pool,
// which need not be neighbours. The bytes of these pages, strung together in the order of `pages`, hold the panels from
// byte `begin` on; a page ends where it ends, also in the middle of a panel. Only a step has to lie together, and every
// page holds a whole number of them, so a matrix of any shape fits pages of any size, and several matrices share the
// pages of one list without a gap. (Whole panels per page would waste up to half of every page.)
struct PackedWeight {
  WeightFormat format = WeightFormat::kBF16Panels;
  int64_t n = 0;                   // output features
  int64_t k = 0;                   // input features
  const void* data = nullptr;      // the first panel; in pages: page 0 of the pool
  const int32_t* pages = nullptr;  // host array: page i of the list lies at data + pages[i] * page_bytes
  int64_t page_bytes = 0;          // a multiple of kPanelStepBytes, like begin
  int64_t begin = 0;
  int64_t panel_bytes() const { return packed_weight_bytes(format, kPanelCols, k); }
  int64_t total_bytes() const { return packed_weight_bytes(format, n, k); }
};

// A sum over an inner dimension that ranks may share (docs/design/numerics.md, Shards): num_shards equal parts, each
// one ascending chain from zero, added in a binary tree, ((p0 + p1) + (p2 + p3)) + ... A rank that has a run of them
// which is a subtree gets that subtree's sum.
inline constexpr int64_t kMaxShards = 8;
inline constexpr int64_t kShardCols = 32;  // a part is a multiple of this
constexpr bool can_shard(int64_t num_shards, int64_t inner) {
  const bool power = num_shards >= 1 && num_shards <= kMaxShards && (num_shards & (num_shards - 1)) == 0;
  return power && (num_shards == 1 || inner % (num_shards * kShardCols) == 0);
}

// y[m, n] = sum_k x[m, k] w[n, k].  x: act [num_rows, k]; y: f32 [num_rows, n].
struct GemmArgs {
  const void* x = nullptr;
  DType act = DType::kBF16;  // one that gemm takes with w's format (traits_of)
  int64_t x_stride = 0;
  PackedWeight w;
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t num_rows = 0;
  int64_t num_shards = 1;  // of k: can_shard()
};

// What an adapter adds to the embedding of token t: scaling * b a[:, t].
struct EmbeddingDelta {
  TensorView a;  // device memory, any type: [rank, vocab_size]
  TensorView b;  // [dim, rank]
  double scaling = 0;
};
struct EmbedRow {
  const void* source = nullptr;  // dtype [dim], a row of some table
  DType dtype = DType::kF32;
  int32_t token = 0;
  const EmbeddingDelta* delta = nullptr;  // on the host; null: nothing is added
};
// y[i, :] = source of row i (+ its delta, one f64 sum over the rank for each element).
struct EmbedArgs {
  std::span<const EmbedRow> rows;
  float* y = nullptr;  // f32 [rows.size(), dim]
  int64_t y_stride = 0;
  int64_t dim = 0;
};

// y[i, :] = x[rows[i], :].
struct GatherRowsArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  std::span<const int32_t> rows;
  float* y = nullptr;  // f32 [rows.size(), dim]; does not overlap x
  int64_t y_stride = 0;
  int64_t dim = 0;
};

// y[m, columns[j]] = sum_k x[m, k] w[j, k], summed in f64: columns of a product that are computed from rows of their
// own (trained tokens of a tied head). Other columns of y stay as they are.
struct GemmColumnsArgs {
  const void* x = nullptr;  // act [num_rows, k]
  DType act = DType::kBF16;
  int64_t x_stride = 0;
  PackedWeight w;                    // in one block, in any format, whatever act is
  const int32_t* columns = nullptr;  // [w.n]
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t num_rows = 0;
};

// Rank rows of one LoRA matrix (A, or B transposed), scattered over pool pages. Row r is split into chunks of
// chunk_cols columns (the last one shorter); chunk c of row r starts at byte row_offsets[r * num_chunks + c] from the
// base that the segment gives. chunk_cols is a multiple of 32 unless num_chunks == 1. Elements are act-typed.
struct LoraMatrix {
  const int64_t* row_offsets = nullptr;  // [num_rows * num_chunks] bytes; device memory, like the rows
  int32_t num_rows = 0;                  // rank
  int32_t num_chunks = 1;
  int64_t width = 0;  // in (A) or out (B)
  int64_t chunk_cols = 0;
};

// Rank rows from a matrix in host memory into their places.
struct RankRowsArgs {
  TensorView source;           // host memory, any type: [num_rows, width], or [width, num_rows] with `columns`
  bool columns = false;        // the rows are the source's columns
  DType dtype = DType::kBF16;  // of the rows
  LoraMatrix rows;             // whose row_offsets are a host array here
  std::byte* base = nullptr;
};

// One projection of a segment: y[:, out_begin + j] =
//     (y + scaling * sum_r v[r] b[r][j] + out_bias[j]) * out_scale[j],   v[r] = sum_i x[i] a[r][i]  (f32)
// The base projection's own bias is added afterwards (add_bias), outside the DoRA scale.
struct LoraProj {
  LoraMatrix a, b;
  float scaling = 0;
  int64_t out_begin = 0;           // first column of this projection in y
  LoraMatrix out_bias, out_scale;  // one f32 row each, num_rows == 0 when absent (out_bias is already scaled)
};

// Rows [row_begin, row_end) of the batch that use one adapter. Rows outside every segment are base-only.
struct LoraSegment {
  int32_t row_begin = 0, row_end = 0;
  const std::byte* base = nullptr;  // pool base + offset of this layer's slice
  std::span<const LoraProj> projs;  // <= 3 projections that read the same x
};

// Both halves of lora(), or one: between them ranks add up what each made of its part of x. kShrink leaves v unscaled;
// kExpand takes such sums in v, which it scales. kAll is kShrink, then kExpand, bit for bit.
enum class LoraPhase : uint8_t { kAll, kShrink, kExpand };

// Adds the adapters' contribution to y in place. All segments' projections share x and write disjoint columns of y.
struct LoraArgs {
  const void* x = nullptr;  // act [num_rows, in]
  DType act = DType::kBF16;
  int64_t x_stride = 0;
  float* y = nullptr;  // f32 [num_rows, *]
  int64_t y_stride = 0;
  std::span<const LoraSegment> segments;  // disjoint, ascending
  float* v = nullptr;                     // scratch f32 [num_rows, v_stride]
  int64_t v_stride = 0;                   // >= the largest sum of ranks over the projections of one segment
  int64_t num_shards = 1;                 // of the sums over x: can_shard()
  LoraPhase phase = LoraPhase::kAll;      // lk::ref knows no other
};

// A merged copy of one projection's columns of a packed weight:
//   out[j, i] = round((w[j, i] + scaling * sum_r b[j, r] a[r, i]) * out_scale[j])   (sum in f32, rounded once to w's
//   type)
struct MergeArgs {
  PackedWeight w;                      // read only: the base
  PackedWeight out;                    // the shape of w; only the panels of this projection are written
  int64_t out_begin = 0;               // first column of the projection, a multiple of kPanelCols
  const void* a_transposed = nullptr;  // act [w.k, rank]
  PackedWeight b;                      // [columns of the projection, rank], packed like w
  float scaling = 0;
  const float* out_scale = nullptr;  // f32 [b.n] (DoRA) or null
};
// What a merge changed and what rounding cost, as sums of squares over the elements written. Not finite when W' is not.
struct MergeSums {
  double change = 0;    // ||W' - W||^2 before rounding
  double rounding = 0;  // ||round(W') - W'||^2
};

// The pool as one layer of the attention sees it. K and V of page p:
//   k = base + p * page_stride,  v = k + v_offset   (bytes), 16 slots each, for all kv heads.
// Inside, the CPU layout is (act type T, 16 = kPageTokens):
//   K, bf16: [num_kv_heads][head_dim/2][16][2]   K, f32: [num_kv_heads][head_dim][16]   (token-minor: one vector = 16
//   scores) V: [num_kv_heads][16][head_dim]
struct KvLayer {
  std::byte* base = nullptr;
  int64_t page_stride = 0;
  int64_t v_offset = 0;
  DType dtype = DType::kBF16;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // even, <= kMaxHeadDim (tensor/limits.h)
};

// Writes rows of K and V into their slots. slot = page * 16 + offset.
struct StoreKvArgs {
  const float* k = nullptr;  // [num_rows, num_kv_heads * head_dim]
  const float* v = nullptr;
  int64_t k_stride = 0, v_stride = 0;
  const int64_t* slots = nullptr;  // [num_rows]
  int64_t num_rows = 0;
  KvLayer kv;
};

// A run of query rows of one sequence. Row i has position first_position + i and attends to the positions
// (pos - window, pos], window = 0 meaning all of [0, pos]. Slots past the row's position may hold anything, NaN
// included.
struct AttentionSeq {
  int32_t row_begin = 0, row_end = 0;
  int64_t first_position = 0;
  const int32_t* block_table = nullptr;  // page of positions [16 b, 16 b + 16)
};
struct AttentionArgs {
  const float* q = nullptr;  // [num_rows, num_heads * head_dim], rotated
  int64_t q_stride = 0;
  void* y = nullptr;  // act [num_rows, num_heads * head_dim]
  int64_t y_stride = 0;
  int64_t num_heads = 0;
  float scale = 0;  // 1 / sqrt(head_dim), times yarn's mscale^2 where used
  int64_t window = 0;
  std::span<const AttentionSeq> seqs;
  KvLayer kv;
};

// y = x / sqrt(mean(x^2) + eps) * weight, per row of dim columns.  Source: arXiv:1910.07467.
struct RmsNormArgs {
  const float* x = nullptr;  // [num_rows, dim]
  int64_t x_stride = 0;
  const float* weight = nullptr;  // [dim]
  void* y = nullptr;              // y_dtype [num_rows, dim]; may be x when y_dtype is f32
  DType y_dtype = DType::kBF16;
  int64_t y_stride = 0;
  int64_t num_rows = 0, dim = 0;
  float eps = 0;
};

// Rotates pairs (i, i + head_dim/2) of each head in place.  Source: arXiv:2104.09864, HF "rotate_half" convention.
struct RopeArgs {
  float* x = nullptr;  // [num_rows, num_heads * head_dim]
  int64_t x_stride = 0;
  int64_t num_rows = 0, num_heads = 0, head_dim = 0;
  const float* cos = nullptr;  // [num_rows, head_dim / 2]
  const float* sin = nullptr;
};

// y = silu(gate) * up, gate = x[:, :dim], up = x[:, up_offset : up_offset + dim].
struct SwigluArgs {
  const float* x = nullptr;  // [num_rows, up_offset + dim]
  int64_t x_stride = 0;
  int64_t up_offset = 0;  // >= dim
  void* y = nullptr;      // act [num_rows, dim]
  DType y_dtype = DType::kBF16;
  int64_t y_stride = 0;
  int64_t num_rows = 0, dim = 0;
};

// One row of logits from which a token is drawn, or a given one scored. The order is vLLM's: bias, repetition, presence
// and frequency penalties, allowed tokens, then greedy or temperature, top-k, top-p, min-p. Equal logits are ordered by
// id. Log-probabilities are those of the row as it was given. What comes out depends on these arguments only.
struct SampleArgs {
  float* logits = nullptr;  // f32 [vocab_size]; overwritten where a bias, a penalty or the mask says so
  int64_t vocab_size = 0;
  int32_t given = -1;      // >= 0: score this token and draw none; everything below but num_logprobs is ignored
  double uniform = 0;      // the random number of this draw, in [0, 1)
  double temperature = 0;  // 0 = greedy
  int64_t top_k = 0;       // 0 = off
  double top_p = 1;        // keeps the fewest most likely tokens that reach this part of the mass, at least one
  double min_p = 0;        // relative to the most likely token
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  // What the penalties apply to: distinct tokens, and how often each is in the output (0: only in the prompt).
  std::span<const std::pair<int32_t, int32_t>> seen;
  std::span<const std::pair<int32_t, float>> logit_bias;
  const uint64_t* allowed = nullptr;  // bit t % 64 of word t / 64 is 1 when token t may come; null: all may
  int num_logprobs = -1;              // -1 = none, 0 = the token's own, n = and the n most likely
};

// Why a row gave no token.
enum class SampleFault : uint8_t {
  kNone,
  kNotFinite,   // a logit is NaN or plus infinity, or none is finite
  kNotAllowed,  // no allowed token has a finite logit
};
struct SampleResult {
  int32_t token = 0;
  SampleFault fault = SampleFault::kNone;      // otherwise the rest says nothing
  float logprob = 0;                           // with num_logprobs >= 0
  int64_t rank = 0;                            // likewise; 1 = most likely
  std::vector<std::pair<int32_t, float>> top;  // token and log-probability, most likely first
};

}  // namespace lk
