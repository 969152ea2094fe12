// SPDX-License-Identifier: Apache-2.0
#include "lk/ops/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "lk/ops/cpu_train_ops.h"
#include "lk/tensor/buffer.h"

namespace lk {
namespace {

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuKernels& kernels, int num_threads)
      : kernels_(kernels),
        pool_(num_threads),
        sample_scratch_(static_cast<size_t>(pool_.size())),
        train_ops_(train_kernels(kernels.isa), pool_) {}

  const char* name() const override { return to_string(kernels_.isa); }
  int num_host_threads() const override { return pool_.size(); }
  double lora_seconds() const override { return lora_seconds_; }
  TrainOps& train_ops() override { return train_ops_; }
  ThreadPool& threads() override { return pool_; }

 private:
  Result<DeviceBuffer> do_allocate(int64_t size_bytes) override {
    LK_ASSIGN_OR_RETURN(Buffer memory, Buffer::try_allocate(size_bytes));
    auto owner = std::make_shared<Buffer>(std::move(memory));
    std::byte* data = owner->data();
    return DeviceBuffer(data, size_bytes, std::move(owner));
  }
  DeviceBuffer do_share(const TensorView& host, std::shared_ptr<const void> owner) override {
    // Nobody writes it: whoever asked for it gave a read-only view away.
    return {const_cast<std::byte*>(static_cast<const std::byte*>(host.raw())), host.num_bytes(), std::move(owner)};
  }
  void do_upload(void* dst, const void* host, int64_t size_bytes) override {
    std::memcpy(dst, host, static_cast<size_t>(size_bytes));
  }
  void do_read(void* host, const void* src, int64_t size_bytes) override {
    std::memcpy(host, src, static_cast<size_t>(size_bytes));
  }
  void do_pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, Workers workers) override {
    if (workers == Workers::kAll) return lk::pack_weight(w, out_begin, dst, pool_);
    ThreadPool caller(1);
    lk::pack_weight(w, out_begin, dst, caller);
  }
  void do_copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size) override {
    lk::copy_panels(from, to, at, size);
  }
  void do_store_rank_rows(const RankRowsArgs& a) override { lk::store_rank_rows(a); }
  void do_merge_panel(const MergeArgs& a, int64_t panel, MergeSums* sums) override {
    ThreadPool caller(1);
    kernels_.merge_panel(a, panel, caller, sums);
  }
  void do_embed(const EmbedArgs& a) override { lk::embed(a, pool_); }
  void do_gather_rows(const GatherRowsArgs& a) override { lk::gather_rows(a, pool_); }
  void do_gemm(const GemmArgs& a) override { kernels_.gemm(a, pool_); }
  void do_gemm_columns(const GemmColumnsArgs& a) override { kernels_.gemm_columns(a, pool_); }
  void do_lora(const LoraArgs& a) override {
    const auto begin = std::chrono::steady_clock::now();
    kernels_.lora(a, pool_);
    lora_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  void do_store_kv(const StoreKvArgs& a) override { kernels_.store_kv(a, pool_); }
  void do_attention(const AttentionArgs& a) override { kernels_.attention(a, pool_); }
  void do_rms_norm(const RmsNormArgs& a) override { kernels_.rms_norm(a, pool_); }
  void do_rope(const RopeArgs& a) override { kernels_.rope(a, pool_); }
  void do_swiglu(const SwigluArgs& a) override { kernels_.swiglu(a, pool_); }
  void do_add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n) override {
    kernels_.add_bias(y, y_stride, bias, num_rows, n, pool_);
  }
  void do_add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n) override {
    kernels_.add(y, y_stride, x, x_stride, num_rows, n, pool_);
  }
  void do_sample(std::span<const SampleArgs> rows, std::span<SampleResult> results) override {
    std::atomic<size_t> next{0};
    pool_.run([&](int thread) {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < rows.size();)
        sample_row(kernels_.sample, rows[i], sample_scratch_[static_cast<size_t>(thread)], &results[i]);
    });
  }

  const CpuKernels& kernels_;
  ThreadPool pool_;
  std::vector<SampleScratch> sample_scratch_;  // one per thread of the pool
  double lora_seconds_ = 0;                    // engine thread
  CpuTrainOps train_ops_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options) {
  const std::vector<CpuIsa> isas = supported_cpu_isas();
  const CpuIsa isa = options.isa.value_or(isas.back());
  if (std::find(isas.begin(), isas.end(), isa) == isas.end())
    return unsupported("this processor has no {}; the best it runs is {}", to_string(isa), to_string(isas.back()));
  const int num_threads = options.num_threads > 0 ? options.num_threads : default_num_threads();
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(cpu_kernels(isa), num_threads));
}

}  // namespace lk
