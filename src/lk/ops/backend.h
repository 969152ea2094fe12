// SPDX-License-Identifier: Apache-2.0
// Backend: the list of ops the model is written in. A public op checks its arguments, then calls the device's one.
// Every op returns when its result may be used by the next op.
#pragma once

#include <memory>
#include <optional>

#include "lk/base/status.h"
#include "lk/kernels/args.h"
#include "lk/kernels/cpu.h"

namespace lk {

class Backend {
 public:
  virtual ~Backend() = default;

  void gemm(const GemmArgs& a);
  void lora(const LoraArgs& a);
  void store_kv(const StoreKvArgs& a);
  void attention(const AttentionArgs& a);
  void rms_norm(const RmsNormArgs& a);
  void rope(const RopeArgs& a);
  void swiglu(const SwigluArgs& a);
  void add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n);
  void add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n);
  // One panel of a merged weight, on the calling thread, beside whatever the engine thread runs. Thread-safe.
  void merge_panel(const MergeArgs& a, int64_t panel, ThreadPool& one_thread, MergeSums* sums) const;
  virtual float row_max(const float* x, int64_t n) const = 0;
  virtual float log_sum_exp(const float* x, int64_t n, float row_max) const = 0;

  // Host threads for row-parallel work around the ops (embedding, sampling).
  virtual ThreadPool& threads() = 0;
  virtual const char* name() const = 0;

 private:
  virtual void do_gemm(const GemmArgs& a) = 0;
  virtual void do_lora(const LoraArgs& a) = 0;
  virtual void do_store_kv(const StoreKvArgs& a) = 0;
  virtual void do_attention(const AttentionArgs& a) = 0;
  virtual void do_rms_norm(const RmsNormArgs& a) = 0;
  virtual void do_rope(const RopeArgs& a) = 0;
  virtual void do_swiglu(const SwigluArgs& a) = 0;
  virtual void do_add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n) = 0;
  virtual void do_add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n) = 0;
  virtual void do_merge_panel(const MergeArgs& a, int64_t panel, ThreadPool& one_thread, MergeSums* sums) const = 0;
};

struct CpuBackendOptions {
  int num_threads = 0;        // 0 = default_num_threads()
  std::optional<CpuIsa> isa;  // default: the best supported
};
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options = {});

}  // namespace lk
