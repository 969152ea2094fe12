// SPDX-License-Identifier: Apache-2.0
// Kernel benchmarks: each kernel's time beside the machine's own limits, sampled in turn in the same run, because the
// bandwidth that a shared host leaves us changes from second to second. Ops:
//   gemm               rows 1..2048 x the four products of a 1.1 B model
//   gemm_transposed    the gradients of their inputs
//   gemm_paged         the same with the weight in scattered pages, like replaced matrices and merged layers
//   lora               distinct adapters with one row each, and one adapter with many rows
//   attention_decode   one row per sequence       attention_prefill   one sequence from position 0
//   rms_norm swiglu rope
//   block_attention    whole sequences, and block_attention_backward
//   outer round_rows rms_norm_backward swiglu_keep swiglu_backward dropout adamw sum_squares cross_entropy
//   sample             32 rows of 32,000 and of 151,936 logits: greedy, chat (temperature 0.7, top-p 0.9)
//                      over normal, peaked and nearly equal logits, the whole distribution, top-k
#pragma once

#include <string>
#include <vector>

#include "lk/kernels/cpu.h"

namespace lk {

struct MachineLimits {
  double read_gb_s = 0;     // streaming reads, all threads
  double bf16_gflop_s = 0;  // bf16 products with f32 sums, as the instruction set does them
  double f32_gflop_s = 0;   // f32 fma
};
MachineLimits measure_machine_limits(ThreadPool& pool);  // of the best instruction set
MachineLimits measure_machine_limits(ThreadPool& pool, CpuIsa isa);

struct KernelBenchOptions {
  std::string op;            // only ops that start with this; empty: all
  std::vector<CpuIsa> isas;  // empty: the best one
  std::vector<DType> dtypes = {DType::kBF16};
  std::vector<int64_t> rows;                 // only these row counts; empty: each op's own list
  int num_samples = 7;                       // medians of this many
  double sample_ms = 8;                      // per sample, about
  int64_t arena_bytes = int64_t{384} << 20;  // operands rotate through this much memory, so caches do not help
};

struct KernelBenchResult {
  std::string op;
  DType dtype = DType::kBF16;
  CpuIsa isa = CpuIsa::kPortable;
  int64_t rows = 0, k = 0, n = 0;  // attention: k = context, n = head_dim
  int64_t rank = 0, adapters = 0;  // attention: adapters = sequences
  double time_us = 0, gb_s = 0, gflop_s = 0;
  // limit / time, where limit = max(bytes / bandwidth, flops / peak) of the limits measured just before and after.
  double fraction_of_limit = 0;
  // The least disturbed sample of each: shortest limit / shortest time. For a machine with other work on it.
  double best_time_us = 0, best_fraction = 0;
};
std::vector<KernelBenchResult> bench_kernels(const KernelBenchOptions& options, ThreadPool& pool);

}  // namespace lk
