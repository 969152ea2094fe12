// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "lk/ops/backend.h"

namespace lk {
namespace {

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuKernels& kernels, int num_threads) : kernels_(kernels), pool_(num_threads) {}

  ThreadPool& threads() override { return pool_; }
  const char* name() const override { return to_string(kernels_.isa); }
  float row_max(const float* x, int64_t n) const override { return kernels_.row_max(x, n); }
  float log_sum_exp(const float* x, int64_t n, float max) const override { return kernels_.log_sum_exp(x, n, max); }

 private:
  void do_gemm(const GemmArgs& a) override { kernels_.gemm(a, pool_); }
  void do_lora(const LoraArgs& a) override { kernels_.lora(a, pool_); }
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
  void do_merge_panel(const MergeArgs& a, int64_t panel, ThreadPool& one_thread, MergeSums* sums) const override {
    kernels_.merge_panel(a, panel, one_thread, sums);
  }

  const CpuKernels& kernels_;
  ThreadPool pool_;
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
