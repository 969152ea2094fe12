// SPDX-License-Identifier: Apache-2.0
// The CPU kernels, one table per instruction set, chosen at run time. lk::ref holds the scalar reference of each.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "lk/base/thread_pool.h"
#include "lk/kernels/args.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

enum class CpuIsa : uint8_t { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
inline constexpr std::array kCpuIsas = {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16,
                                        CpuIsa::kAmxBf16};
const char* to_string(CpuIsa isa);  // "portable" "avx2" "avx512" "avx512_bf16" "amx_bf16"
std::optional<CpuIsa> parse_cpu_isa(std::string_view name);
std::vector<CpuIsa> supported_cpu_isas();  // of this machine, best last

// --- One row of logits, f32 [n], on the calling thread: what sample_row() is made of.

struct RowStats {
  float max = 0, min = 0;  // meaningless when a value is NaN
  bool finite = false;     // no NaN, no infinity
};

// Where logits go by value: into bucket top - round(x * scale), the largest in bucket 0. What is less than `lowest`
// counts as `lowest`.
struct BucketScale {
  float scale = 1;     // buckets per unit of logit; a power of two, so that x * scale is exact
  float lowest = 0;    // of the last bucket
  float top = 0;       // integer
  float exponent = 0;  // log(weight of x / weight of its bucket's centre) per bucket: 1 / (scale temperature), < 2^-5
};
inline constexpr int64_t kBucketOne = int64_t{1} << 37;  // fixed point: sums do not depend on their order
inline constexpr int64_t kExpBlock = 1024;

// Tokens picked from a row: room for `capacity`, a multiple of 16 more than are kept.
struct TokenList {
  float* logits = nullptr;
  int32_t* indices = nullptr;
  int64_t size = 0, capacity = 0;
};

struct SampleKernels {
  RowStats (*row_stats)(const float* x, int64_t n);
  // log(sum(exp(x))). Requires: row_max is the largest, and finite.
  float (*log_sum_exp)(const float* x, int64_t n, float row_max);
  // Minus infinity where the bit is 0: bit i % 64 of word i / 64.
  void (*mask_row)(float* x, int64_t n, const uint64_t* allowed);
  int64_t (*count_above)(const float* x, int64_t n, float bound);  // of x > bound
  // Appends those of x[begin..n) in [low, high], in order, while 16 more have room; returns where it stopped.
  int64_t (*collect_between)(const float* x, int64_t begin, int64_t n, float low, float high, TokenList* list);
  // mass[bucket of x] += kBucketOne exp(x / temperature) / (weight of the bucket's centre).
  void (*add_to_buckets)(const float* x, int64_t n, const BucketScale& scale, uint64_t* mass);
  // sums[b] = sum over the b-th kExpBlock values of exp(f32((x - max) inverse_temperature)), within 1e-8 of it.
  void (*exp_block_sums)(const float* x, int64_t n, double max, double inverse_temperature, double* sums);
};

// Scratch of sample_row(), one per thread; grows to what the vocabulary needs and is then reused.
class SampleScratch {
 public:
  SampleScratch();
  ~SampleScratch();
  SampleScratch(SampleScratch&&) noexcept;

 private:
  friend class RowSampler;
  struct Buffers;
  std::unique_ptr<Buffers> buffers_;
};

// One row of Backend::sample(). The bits do not depend on the instruction set, log-probabilities excepted.
void sample_row(const SampleKernels& kernels, const SampleArgs& args, SampleScratch& scratch, SampleResult* result);

// All launchers run on the pool's threads and return when done.
struct CpuKernels {
  CpuIsa isa;
  void (*gemm)(const GemmArgs&, ThreadPool&);
  void (*gemm_columns)(const GemmColumnsArgs&, ThreadPool&);
  void (*lora)(const LoraArgs&, ThreadPool&);
  void (*store_kv)(const StoreKvArgs&, ThreadPool&);
  void (*attention)(const AttentionArgs&, ThreadPool&);
  void (*rms_norm)(const RmsNormArgs&, ThreadPool&);
  void (*rope)(const RopeArgs&, ThreadPool&);
  void (*swiglu)(const SwigluArgs&, ThreadPool&);
  // y[m, :] += bias (f32 [n]);  y: f32 [num_rows, n].
  void (*add_bias)(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n, ThreadPool&);
  // y[m, :] += x[m, :], f32 both.
  void (*add)(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n, ThreadPool&);
  // Writes panel `panel` (32 columns) of the projection and adds to *sums. Runs on the calling thread: merging is
  // background work. Requires: the pool has one thread.
  void (*merge_panel)(const MergeArgs&, int64_t panel, ThreadPool& one_thread, MergeSums* sums);
  SampleKernels sample;
};
const CpuKernels& cpu_kernels(CpuIsa isa);  // Requires: isa is in supported_cpu_isas()

// Where byte `at` of a matrix's panels lies, and how many bytes follow it there before the page ends.
// Requires: 0 <= at < total_bytes().
struct PanelBytes {
  const std::byte* data = nullptr;
  int64_t size = 0;
};
PanelBytes panel_bytes_at(const PackedWeight& w, int64_t at);

// Packs rows [0, n) of w ([n, k], any dtype, row-major) as the panels of dst that start at column out_begin (a multiple
// of 32); lets q, k, v share one matrix. The memory of dst is the caller's to write. Requires: dst.k is k.
void pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, ThreadPool& pool);
// Copies `size` bytes from byte `at` on of one matrix to the same place of another of the same shape.
void copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size);
// One element back as f32, for tests and merging.
float unpack_weight_at(const PackedWeight& w, int64_t out, int64_t in);

// Copies of rows; the same on every instruction set.
void embed(const EmbedArgs& a, ThreadPool& pool);
void gather_rows(const GatherRowsArgs& a, ThreadPool& pool);
void store_rank_rows(const RankRowsArgs& a);

namespace ref {
// Straight loops in double; the same contracts. Used by tests and as the oracle of every back-end.
void gemm(const GemmArgs&);
void lora(const LoraArgs&);
void store_kv(const StoreKvArgs&);
void attention(const AttentionArgs&);
void rms_norm(const RmsNormArgs&);
void rope(const RopeArgs&);
void swiglu(const SwigluArgs&);
// Sorts the whole vocabulary; draws the very tokens that sample_row() draws.
void sample(const SampleArgs&, SampleResult*);
}  // namespace ref

}  // namespace lk
