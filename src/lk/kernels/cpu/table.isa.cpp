// SPDX-License-Identifier: Apache-2.0
// The kernel table of one instruction set, and the loops that probe its limits.
#include "lk/kernels/cpu/gemm_tile.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {

const IsaTable& table();

static float probe_read(const float* data, int64_t n) {
  F32x16 sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < n; i += 64) {
    LK_UNROLL
    for (int lane = 0; lane < 4; ++lane) sum[lane] = add(sum[lane], load(data + i + 16 * lane));
  }
  return reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

constexpr int kChains = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 5 : 2;

static volatile float sink;  // keeps the probes from being optimised away

#if defined(__AMX_BF16__)
static double probe_dot_bf16(int64_t iterations) { return amx_probe(iterations); }
#else
static double probe_dot_bf16(int64_t iterations) {
  F32x16 acc[kChains];
  for (F32x16& a : acc) a = zero();
  Pairs x = broadcast_pair(0x3f803f80u), w = x;
  for (int64_t i = 0; i < iterations; ++i) {
    keep(x);
    LK_UNROLL
    for (int c = 0; c < kChains; ++c) acc[c] = dot_bf16(acc[c], w, x);
  }
  F32x16 sum = zero();
  for (const F32x16& a : acc) sum = add(sum, a);
  sink = reduce_add(sum);
  return static_cast<double>(iterations) * kChains * 64;
}
#endif

static double probe_fma_f32(int64_t iterations) {
  F32x16 acc[kChains];
  for (F32x16& a : acc) a = zero();
  F32x16 x = broadcast(1.0f);
  const F32x16 w = x;
  for (int64_t i = 0; i < iterations; ++i) {
    keep(x);
    LK_UNROLL
    for (int c = 0; c < kChains; ++c) acc[c] = fma(w, x, acc[c]);
  }
  F32x16 sum = zero();
  for (const F32x16& a : acc) sum = add(sum, a);
  sink = reduce_add(sum);
  return static_cast<double>(iterations) * kChains * 32;
}

static const IsaTable kTable = {
    {kIsa,
     gemm,
     gemm_columns,
     lora,
     store_kv,
     attention,
     rms_norm,
     rope,
     swiglu,
     add_bias,
     add,
     merge_panel,
     {row_stats, log_sum_exp, mask_row, count_above, collect_between, add_to_buckets, exp_block_sums}},
    {gemm_transposed,
     outer,
     round_rows,
     rms_norm_backward,
     swiglu_keep,
     swiglu_backward,
     block_attention,
     block_attention_backward,
     block_attention_scratch,
     cross_entropy,
     adamw,
     {sparse_row_product, sparse_row_input_gradient, sparse_row_gradient}},
    {probe_read, probe_dot_bf16, probe_fma_f32}};

const IsaTable& table() { return kTable; }

}  // namespace lk::LK_ISA_NAMESPACE
