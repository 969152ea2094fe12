// SPDX-License-Identifier: Apache-2.0
// Backend: one device. It owns the memory that the model computes with (weights, activations, the page pool) and is the
// list of ops that the model is written in. A public call checks its arguments, then does the device's one.
//
// Addresses. In the arguments of ops, pointers are device addresses (ops/device_buffer.h) and spans are host arrays,
// unless a field says otherwise.
//
// Time. A call may return before it has taken effect. What it reads from host arrays it has read when it returns.
// Calls that touch the same memory take effect in the order in which they were made, whichever threads made them. What
// the device computed reaches the host through read() only, which waits for it.
//
// Threads. The calls under "Memory" and "Background" may come from any thread, beside a step that is running; they use
// the calling thread and no other. All others come from one thread, the engine's.
#pragma once

#include <memory>
#include <span>

#include "lk/base/status.h"
#include "lk/base/thread_pool.h"
#include "lk/kernels/args.h"
#include "lk/ops/device_buffer.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

class TrainOps;  // ops/train_ops.h

// Who does the work of loading: the calling thread, or all threads of the back-end. Requires for kAll: no other call is
// being made.
enum class Workers : uint8_t { kCaller, kAll };

class Backend {
 public:
  virtual ~Backend() = default;

  // --- Memory (any thread)
  // Contents are undefined.
  Result<DeviceBuffer> try_allocate(int64_t size_bytes);
  DeviceBuffer allocate(int64_t size_bytes);  // aborts when there is no memory left
  // A device copy of a host tensor that stays as it is while `owner` lives. A device that reads host memory hands out
  // the very bytes, so that tables stay mapped from their file.
  DeviceBuffer share(const TensorView& host, std::shared_ptr<const void> owner);
  void upload(void* dst, const void* host, int64_t size_bytes);
  template <class T>
  void upload(T* dst, std::span<const T> host) {
    upload(dst, host.data(), static_cast<int64_t>(host.size_bytes()));
  }
  void read(void* host, const void* src, int64_t size_bytes);

  // --- Background (any thread)
  // Packs a host matrix [n, k] of any type as the panels of dst that begin at column out_begin (a multiple of
  // kPanelCols). The memory of dst is the caller's to write.
  void pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, Workers workers);
  // Copies `size` bytes from byte `at` on of one matrix's panels to the same place of another of the same shape.
  void copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size);
  // Writes rank rows from a host matrix into their places in the pool.
  void store_rank_rows(const RankRowsArgs& a);
  // One panel of a merged weight. Waits for its sums.
  void merge_panel(const MergeArgs& a, int64_t panel, MergeSums* sums);

  // --- Ops (engine thread)
  void embed(const EmbedArgs& a);
  void gather_rows(const GatherRowsArgs& a);
  void gemm(const GemmArgs& a);
  void gemm_columns(const GemmColumnsArgs& a);
  void lora(const LoraArgs& a);
  void store_kv(const StoreKvArgs& a);
  void attention(const AttentionArgs& a);
  void rms_norm(const RmsNormArgs& a);
  void rope(const RopeArgs& a);
  void swiglu(const SwigluArgs& a);
  void add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n);
  void add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n);
  // One result per row, in order; waits for them. Requires: rows of one call do not overlap.
  void sample(std::span<const SampleArgs> rows, std::span<SampleResult> results);

  virtual const char* name() const = 0;
  // Host threads that ops keep busy; 1 where the device is none of the host's processors.
  virtual int num_host_threads() const = 0;
  // Seconds the device spent in lora() since the start.
  virtual double lora_seconds() const = 0;

  // The ops that only training uses.
  virtual TrainOps& train_ops() = 0;

  // Host threads that ops run on, for what the engine computes between them: the masks of constrained requests.
  virtual ThreadPool& threads() = 0;

 private:
  virtual Result<DeviceBuffer> do_allocate(int64_t size_bytes) = 0;
  virtual DeviceBuffer do_share(const TensorView& host, std::shared_ptr<const void> owner) = 0;
  virtual void do_upload(void* dst, const void* host, int64_t size_bytes) = 0;
  virtual void do_read(void* host, const void* src, int64_t size_bytes) = 0;
  virtual void do_pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, Workers workers) = 0;
  virtual void do_copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size) = 0;
  virtual void do_store_rank_rows(const RankRowsArgs& a) = 0;
  virtual void do_merge_panel(const MergeArgs& a, int64_t panel, MergeSums* sums) = 0;
  virtual void do_embed(const EmbedArgs& a) = 0;
  virtual void do_gather_rows(const GatherRowsArgs& a) = 0;
  virtual void do_gemm(const GemmArgs& a) = 0;
  virtual void do_gemm_columns(const GemmColumnsArgs& a) = 0;
  virtual void do_lora(const LoraArgs& a) = 0;
  virtual void do_store_kv(const StoreKvArgs& a) = 0;
  virtual void do_attention(const AttentionArgs& a) = 0;
  virtual void do_rms_norm(const RmsNormArgs& a) = 0;
  virtual void do_rope(const RopeArgs& a) = 0;
  virtual void do_swiglu(const SwigluArgs& a) = 0;
  virtual void do_add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n) = 0;
  virtual void do_add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n) = 0;
  virtual void do_sample(std::span<const SampleArgs> rows, std::span<SampleResult> results) = 0;
};

}  // namespace lk
