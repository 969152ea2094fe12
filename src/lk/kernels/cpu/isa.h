// SPDX-License-Identifier: Apache-2.0
// What every per-ISA translation unit shares. A *.isa.cpp file is compiled once per instruction set into namespace
// lk::LK_ISA_NAMESPACE. Two rules keep an AVX-512 instruction from reaching a machine without it:
//  - all code of these files is in that namespace or static;
//  - they call shared code through ordinary functions only (for_ranges below), never through shared templates or
//    inline functions, because the linker keeps one copy of those, from whichever unit comes first.
#pragma once

#include <cstdint>

#include "lk/kernels/args.h"
#include "lk/kernels/cpu.h"
#include "lk/kernels/train.h"

namespace lk {

// Splits [0, num_items) into ranges that threads take as they become free, large ones first (guided
// self-scheduling), never longer than max_range. Ascending per thread. Runs inline when the pool has one thread.
using RangeFn = void (*)(void* ctx, int64_t begin, int64_t end);
void for_ranges(ThreadPool& pool, int64_t num_items, int64_t max_range, RangeFn fn, void* ctx);
int pool_size(const ThreadPool& pool);
// At least this many bytes of the calling thread's own, on a cache line, until its next call. Grows and is kept.
std::byte* thread_scratch(int64_t size_bytes);

// Loops that measure what the instruction set can do at best (kernels/bench.cpp).
struct IsaProbes {
  float (*read)(const float* data, int64_t n);  // sums n floats, a multiple of 256
  double (*dot_bf16)(int64_t iterations);       // both return the number of floating-point operations done
  double (*fma_f32)(int64_t iterations);
};
struct IsaTable {
  CpuKernels kernels;
  TrainKernels train;
  IsaProbes probes;
};
const IsaTable& isa_table(CpuIsa isa);  // Requires: isa is in supported_cpu_isas()

}  // namespace lk

#ifdef LK_ISA_NAMESPACE
namespace lk::LK_ISA_NAMESPACE {

void gemm(const GemmArgs& args, ThreadPool& pool);
void gemm_columns(const GemmColumnsArgs& args, ThreadPool& pool);
void lora(const LoraArgs& args, ThreadPool& pool);
void store_kv(const StoreKvArgs& args, ThreadPool& pool);
void attention(const AttentionArgs& args, ThreadPool& pool);
void rms_norm(const RmsNormArgs& args, ThreadPool& pool);
void rope(const RopeArgs& args, ThreadPool& pool);
void swiglu(const SwigluArgs& args, ThreadPool& pool);
void sparse_row_product(const float* values, const int32_t* columns, int64_t n, const float* x, float* sum);
void sparse_row_input_gradient(const float* values, const int32_t* columns, int64_t n, const float* dy, float* dx);
void sparse_row_gradient(float dy, const float* x, const int32_t* columns, int64_t n, float* gradient);
void add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n, ThreadPool& pool);
void add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n, ThreadPool& pool);
void merge_panel(const MergeArgs& args, int64_t panel, ThreadPool& one_thread, MergeSums* sums);
RowStats row_stats(const float* x, int64_t n);
float log_sum_exp(const float* x, int64_t n, float row_max);
void mask_row(float* x, int64_t n, const uint64_t* allowed);
int64_t count_above(const float* x, int64_t n, float bound);
int64_t collect_between(const float* x, int64_t begin, int64_t n, float low, float high, TokenList* list);
void add_to_buckets(const float* x, int64_t n, const BucketScale& scale, uint64_t* mass);
void exp_block_sums(const float* x, int64_t n, double max, double inverse_temperature, double* sums);
void gemm_transposed(const GemmTransposedArgs& args, ThreadPool& pool);
void outer(std::span<const OuterProduct> products, ThreadPool& pool);
void round_rows(const RoundRowsArgs& args, ThreadPool& pool);
void rms_norm_backward(const RmsNormBackwardArgs& args, ThreadPool& pool);
void swiglu_keep(const SwigluKeepArgs& args, ThreadPool& pool);
void swiglu_backward(const SwigluBackwardArgs& args, ThreadPool& pool);
void block_attention(const BlockAttentionArgs& args, ThreadPool& pool);
void block_attention_backward(const BlockAttentionBackwardArgs& args, ThreadPool& pool);
int64_t block_attention_scratch(const BlockAttention& in);
void cross_entropy(const CrossEntropyArgs& args, ThreadPool& pool);
void adamw(const AdamwArgs& args, ThreadPool& pool);

// F: void(int64_t begin, int64_t end).
template <class F>
static inline void parallel(ThreadPool& pool, int64_t num_items, int64_t max_range, const F& f) {
  for_ranges(
      pool, num_items, max_range,
      [](void* ctx, int64_t begin, int64_t end) { (*static_cast<const F*>(ctx))(begin, end); }, const_cast<F*>(&f));
}

}  // namespace lk::LK_ISA_NAMESPACE
#endif
