// SPDX-License-Identifier: Apache-2.0
// LateBackend: a back-end that is as unlike the CPU's as its contract (ops/backend.h) allows, to find whoever above it
// takes more than that for granted.
//
// - Its device addresses lie in memory that nobody may touch, so following one crashes. The bytes are elsewhere.
// - Memory that it hands out holds NaN, and an address is never handed out again.
// - Calls wait in a queue, with copies of their host arrays, until something is read: results are late, and arguments
//   that the caller changes too late, or that a back-end keeps, change nothing or crash.
// - Every range that a call touches must lie in one living buffer.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "lk/ops/cpu_backend.h"
#include "lk/ops/train_ops.h"
#include "lk/tensor/buffer.h"

namespace lk::testing {

class LateBackend : public Backend {
 public:
  explicit LateBackend(std::unique_ptr<Backend> cpu) : cpu_(std::move(cpu)) {}
  ~LateBackend() override {
    std::lock_guard lock(device_->mutex);
    device_->run_all();
  }

  const char* name() const override { return cpu_->name(); }
  int num_host_threads() const override { return cpu_->num_host_threads(); }
  double lora_seconds() const override { return cpu_->lora_seconds(); }
  TrainOps& train_ops() override { return train_ops_; }
  ThreadPool& threads() override { return cpu_->threads(); }
  // Of the buffers that there are.
  int64_t allocated_bytes() const {
    std::lock_guard lock(device_->mutex);
    int64_t bytes = 0;
    for (const auto& [address, block] : device_->blocks) bytes += block.size_bytes;
    return bytes;
  }
  // Calls that have waited in the queue so far.
  int64_t num_late() const { return device_->num_late; }

 private:
  // Outlives the back-end: buffers refer to it.
  struct Device {
    static constexpr int64_t kAddresses = int64_t{1} << 38;
    struct Block {
      int64_t size_bytes;
      Buffer bytes;
    };

    Device() {
      void* raw = ::mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      LK_CHECK(raw != MAP_FAILED);
      base = static_cast<std::byte*>(raw);
    }
    ~Device() { ::munmap(base, kAddresses); }

    std::byte* allocate(int64_t size_bytes) {
      Buffer bytes(size_bytes);
      std::memset(bytes.data(), 0xff, static_cast<size_t>(size_bytes));
      std::byte* address = base + used;
      used += (size_bytes + 4095) / 4096 * 4096 + 4096;  // what runs past the end is in nobody's buffer
      LK_CHECK(used <= kAddresses);
      blocks.emplace(address, Block{size_bytes, std::move(bytes)});
      return address;
    }
    // Where the bytes of [address, address + size_bytes) are.
    std::byte* find(const void* address, int64_t size_bytes) {
      const auto* begin = static_cast<const std::byte*>(address);
      auto it = blocks.upper_bound(begin);
      LK_CHECK(it != blocks.begin(), "{} is no device address", address);
      --it;
      const int64_t offset = begin - it->first;
      LK_CHECK(size_bytes >= 0 && offset + size_bytes <= it->second.size_bytes,
               "bytes {} + {} of a buffer of {}: outside, or freed", offset, size_bytes, it->second.size_bytes);
      return it->second.bytes.data() + offset;
    }
    void run_all() {
      while (!queue.empty()) {
        const std::function<void()> call = std::move(queue.front());
        queue.pop_front();
        call();
      }
    }

    std::mutex mutex;
    std::byte* base;
    int64_t used = 0, num_late = 0;
    std::map<const std::byte*, Block> blocks;
    std::deque<std::function<void()>> queue;
  };

  // --- What the arguments of a call become: addresses of the bytes, and copies of host arrays. Requires: the mutex.
  template <class T>
  T* bytes_of(T* address, int64_t size_bytes) {
    if (size_bytes == 0) return nullptr;
    return reinterpret_cast<T*>(device_->find(address, size_bytes));
  }
  template <class T>
  T* rows_of(T* address, int64_t num_rows, int64_t stride, int64_t width, int64_t elem) {
    return bytes_of(address, num_rows == 0 ? 0 : ((num_rows - 1) * stride + width) * elem);
  }
  // A matrix whose pages, if it has any, are a copy that a queued call holds.
  struct Weight {
    PackedWeight w;
    std::vector<int32_t> pages;
    PackedWeight get() const {
      PackedWeight weight = w;
      if (weight.pages) weight.pages = pages.data();
      return weight;
    }
  };
  Weight weight_of(const PackedWeight& w) {
    Weight weight{w, {}};
    if (!w.pages) {
      weight.w.data = bytes_of(w.data, w.total_bytes());
      return weight;
    }
    const int64_t num_pages = (w.begin + w.total_bytes() + w.page_bytes - 1) / w.page_bytes;
    weight.pages.assign(w.pages, w.pages + num_pages);
    for (const int32_t page : weight.pages)
      (void)bytes_of(static_cast<const std::byte*>(w.data) + page * w.page_bytes, w.page_bytes);
    weight.w.data = bytes_of(w.data, 1);
    return weight;
  }
  TensorView tensor_of(const TensorView& view) {
    return {bytes_of(view.raw(), view.num_bytes()), view.dtype(), view.shape()};
  }
  KvLayer kv_of(KvLayer kv) {
    kv.base = bytes_of(kv.base, 1);  // pages are looked up in the kernel: inside the pool, or the block ends
    return kv;
  }
  LoraMatrix matrix_of(LoraMatrix m) {
    m.row_offsets = bytes_of(m.row_offsets, static_cast<int64_t>(m.num_rows) * m.num_chunks * 8);
    return m;
  }

  class HostTensor {
   public:
    explicit HostTensor(const TensorView& view)
        : dtype_(view.dtype()), shape_(view.shape().begin(), view.shape().end()) {
      const auto* begin = static_cast<const std::byte*>(view.raw());
      bytes_.assign(begin, begin + view.num_bytes());
    }
    TensorView view() const { return {bytes_.data(), dtype_, shape_}; }

   private:
    DType dtype_;
    std::vector<int64_t> shape_;
    std::vector<std::byte> bytes_;
  };

  template <class Call>
  void later(Call&& call) {
    device_->queue.emplace_back(std::forward<Call>(call));
    ++device_->num_late;
  }

  // --- Memory
  DeviceBuffer hand_out(int64_t size_bytes) {
    std::byte* address = device_->allocate(size_bytes);
    // Frees after all calls that were made before.
    return {address, size_bytes, std::shared_ptr<const void>(address, [device = device_](const std::byte* begin) {
              std::lock_guard lock(device->mutex);
              device->run_all();
              device->blocks.erase(begin);
            })};
  }
  Result<DeviceBuffer> do_allocate(int64_t size_bytes) override {
    std::lock_guard lock(device_->mutex);
    return hand_out(size_bytes);
  }
  DeviceBuffer do_share(const TensorView& host, std::shared_ptr<const void>) override {
    std::lock_guard lock(device_->mutex);
    DeviceBuffer buffer = hand_out(host.num_bytes());
    copy_later(buffer.data(), host.raw(), host.num_bytes());
    return buffer;
  }
  void do_upload(void* dst, const void* host, int64_t size_bytes) override {
    std::lock_guard lock(device_->mutex);
    copy_later(static_cast<std::byte*>(dst), host, size_bytes);
  }
  void copy_later(std::byte* dst, const void* host, int64_t size_bytes) {
    const auto* begin = static_cast<const std::byte*>(host);
    later([to = bytes_of(dst, size_bytes), bytes = std::vector<std::byte>(begin, begin + size_bytes)] {
      std::memcpy(to, bytes.data(), bytes.size());
    });
  }
  void do_read(void* host, const void* src, int64_t size_bytes) override {
    std::lock_guard lock(device_->mutex);
    device_->run_all();
    std::memcpy(host, bytes_of(src, size_bytes), static_cast<size_t>(size_bytes));
  }

  // --- Background
  void do_pack_weight(const TensorView& w, int64_t out_begin, const PackedWeight& dst, Workers) override {
    std::lock_guard lock(device_->mutex);
    later([this, out_begin, to = weight_of(dst), source = HostTensor(w)] {
      cpu_->pack_weight(source.view(), out_begin, to.get(), Workers::kCaller);
    });
  }
  void do_copy_panels(const PackedWeight& from, const PackedWeight& to, int64_t at, int64_t size) override {
    std::lock_guard lock(device_->mutex);
    later([this, source = weight_of(from), target = weight_of(to), at, size] {
      cpu_->copy_panels(source.get(), target.get(), at, size);
    });
  }
  void do_store_rank_rows(const RankRowsArgs& args) override {
    std::lock_guard lock(device_->mutex);
    RankRowsArgs a = args;
    const int64_t count = static_cast<int64_t>(args.rows.num_rows) * args.rows.num_chunks;
    std::vector<int64_t> offsets(args.rows.row_offsets, args.rows.row_offsets + count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = i % args.rows.num_chunks * args.rows.chunk_cols;
      (void)bytes_of(args.base + offsets[static_cast<size_t>(i)],
                     std::min(args.rows.chunk_cols, args.rows.width - first) * dtype_bytes(args.dtype));
    }
    a.base = bytes_of(args.base, 1);
    later([this, a, offsets = std::move(offsets), source = HostTensor(args.source)]() mutable {
      a.source = source.view();
      a.rows.row_offsets = offsets.data();
      cpu_->store_rank_rows(a);
    });
  }
  void do_merge_panel(const MergeArgs& args, int64_t panel, MergeSums* sums) override {
    std::lock_guard lock(device_->mutex);
    device_->run_all();
    MergeArgs a = args;
    const Weight w = weight_of(args.w), out = weight_of(args.out), b = weight_of(args.b);
    a.w = w.get();
    a.out = out.get();
    a.b = b.get();
    a.a_transposed = bytes_of(args.a_transposed, a.w.k * a.b.k * dtype_bytes(traits_of(a.w.format).act));
    if (a.out_scale) a.out_scale = bytes_of(args.out_scale, a.b.n * 4);
    cpu_->merge_panel(a, panel, sums);
  }

  // --- Ops
  void do_embed(const EmbedArgs& args) override {
    std::lock_guard lock(device_->mutex);
    EmbedArgs a = args;
    a.y = rows_of(args.y, static_cast<int64_t>(args.rows.size()), args.y_stride, args.dim, 4);
    std::vector<EmbedRow> rows(args.rows.begin(), args.rows.end());
    std::map<const EmbeddingDelta*, EmbeddingDelta> deltas;
    for (EmbedRow& row : rows) {
      row.source = bytes_of(row.source, args.dim * dtype_bytes(row.dtype));
      if (row.delta && !deltas.contains(row.delta))
        deltas[row.delta] = {tensor_of(row.delta->a), tensor_of(row.delta->b), row.delta->scaling};
    }
    later([this, a, rows = std::move(rows), deltas = std::move(deltas)]() mutable {
      for (EmbedRow& row : rows)
        if (row.delta) row.delta = &deltas.at(row.delta);
      a.rows = rows;
      cpu_->embed(a);
    });
  }
  void do_gather_rows(const GatherRowsArgs& args) override {
    std::lock_guard lock(device_->mutex);
    GatherRowsArgs a = args;
    a.x = rows_of(args.x, *std::max_element(args.rows.begin(), args.rows.end()) + 1, args.x_stride, args.dim, 4);
    a.y = rows_of(args.y, static_cast<int64_t>(args.rows.size()), args.y_stride, args.dim, 4);
    later([this, a, rows = std::vector<int32_t>(args.rows.begin(), args.rows.end())]() mutable {
      a.rows = rows;
      cpu_->gather_rows(a);
    });
  }
  void do_gemm(const GemmArgs& args) override {
    std::lock_guard lock(device_->mutex);
    GemmArgs a = args;
    a.x = rows_of(args.x, args.num_rows, args.x_stride, args.w.k, dtype_bytes(args.act));
    a.y = rows_of(args.y, args.num_rows, args.y_stride, args.w.n, 4);
    later([this, a, w = weight_of(args.w)]() mutable {
      a.w = w.get();
      cpu_->gemm(a);
    });
  }
  void do_gemm_columns(const GemmColumnsArgs& args) override {
    std::lock_guard lock(device_->mutex);
    GemmColumnsArgs a = args;
    a.x = rows_of(args.x, args.num_rows, args.x_stride, args.w.k, dtype_bytes(args.act));
    a.y = rows_of(args.y, args.num_rows, args.y_stride, args.y_stride, 4);
    a.columns = bytes_of(args.columns, args.w.n * 4);
    later([this, a, w = weight_of(args.w)]() mutable {
      a.w = w.get();
      cpu_->gemm_columns(a);
    });
  }
  void do_lora(const LoraArgs& args) override {
    std::lock_guard lock(device_->mutex);
    LoraArgs a = args;
    const int64_t num_rows = args.segments.back().row_end;
    std::vector<LoraSegment> segments(args.segments.begin(), args.segments.end());
    std::vector<std::vector<LoraProj>> projs;
    int64_t in = 0, out = 0;
    for (LoraSegment& segment : segments) {
      segment.base = bytes_of(segment.base, 1);
      for (LoraProj& proj : projs.emplace_back(segment.projs.begin(), segment.projs.end())) {
        in = std::max(in, proj.a.width);
        out = std::max(out, proj.out_begin + proj.b.width);
        for (LoraMatrix* m : {&proj.a, &proj.b, &proj.out_bias, &proj.out_scale}) *m = matrix_of(*m);
      }
    }
    a.x = rows_of(args.x, num_rows, args.x_stride, in, dtype_bytes(args.act));
    a.y = rows_of(args.y, num_rows, args.y_stride, out, 4);
    a.v = rows_of(args.v, num_rows, args.v_stride, args.v_stride, 4);
    later([this, a, segments = std::move(segments), projs = std::move(projs)]() mutable {
      for (size_t i = 0; i < segments.size(); ++i) segments[i].projs = projs[i];
      a.segments = segments;
      cpu_->lora(a);
    });
  }
  void do_store_kv(const StoreKvArgs& args) override {
    std::lock_guard lock(device_->mutex);
    StoreKvArgs a = args;
    const int64_t width = args.kv.num_kv_heads * args.kv.head_dim;
    a.k = rows_of(args.k, args.num_rows, args.k_stride, width, 4);
    a.v = rows_of(args.v, args.num_rows, args.v_stride, width, 4);
    a.slots = bytes_of(args.slots, args.num_rows * 8);
    a.kv = kv_of(args.kv);
    later([this, a] { cpu_->store_kv(a); });
  }
  void do_attention(const AttentionArgs& args) override {
    std::lock_guard lock(device_->mutex);
    AttentionArgs a = args;
    int64_t num_rows = 0;
    std::vector<AttentionSeq> seqs(args.seqs.begin(), args.seqs.end());
    std::vector<std::vector<int32_t>> tables;
    for (const AttentionSeq& seq : seqs) {
      num_rows = std::max<int64_t>(num_rows, seq.row_end);
      const int64_t positions = seq.first_position + seq.row_end - seq.row_begin;
      tables.emplace_back(seq.block_table, seq.block_table + (positions + kPageTokens - 1) / kPageTokens);
    }
    const int64_t width = args.num_heads * args.kv.head_dim;
    a.q = rows_of(args.q, num_rows, args.q_stride, width, 4);
    a.y = rows_of(args.y, num_rows, args.y_stride, width, dtype_bytes(args.kv.dtype));
    a.kv = kv_of(args.kv);
    later([this, a, seqs = std::move(seqs), tables = std::move(tables)]() mutable {
      for (size_t i = 0; i < seqs.size(); ++i) seqs[i].block_table = tables[i].data();
      a.seqs = seqs;
      cpu_->attention(a);
    });
  }
  void do_rms_norm(const RmsNormArgs& args) override {
    std::lock_guard lock(device_->mutex);
    RmsNormArgs a = args;
    a.x = rows_of(args.x, args.num_rows, args.x_stride, args.dim, 4);
    a.weight = bytes_of(args.weight, args.dim * 4);
    a.y = rows_of(args.y, args.num_rows, args.y_stride, args.dim, dtype_bytes(args.y_dtype));
    later([this, a] { cpu_->rms_norm(a); });
  }
  void do_rope(const RopeArgs& args) override {
    std::lock_guard lock(device_->mutex);
    RopeArgs a = args;
    a.x = rows_of(args.x, args.num_rows, args.x_stride, args.num_heads * args.head_dim, 4);
    a.cos = bytes_of(args.cos, args.num_rows * args.head_dim / 2 * 4);
    a.sin = bytes_of(args.sin, args.num_rows * args.head_dim / 2 * 4);
    later([this, a] { cpu_->rope(a); });
  }
  void do_swiglu(const SwigluArgs& args) override {
    std::lock_guard lock(device_->mutex);
    SwigluArgs a = args;
    a.x = rows_of(args.x, args.num_rows, args.x_stride, args.up_offset + args.dim, 4);
    a.y = rows_of(args.y, args.num_rows, args.y_stride, args.dim, dtype_bytes(args.y_dtype));
    later([this, a] { cpu_->swiglu(a); });
  }
  void do_add_bias(float* y, int64_t y_stride, const float* bias, int64_t num_rows, int64_t n) override {
    std::lock_guard lock(device_->mutex);
    later([this, to = rows_of(y, num_rows, y_stride, n, 4), from = bytes_of(bias, n * 4), y_stride, num_rows, n] {
      cpu_->add_bias(to, y_stride, from, num_rows, n);
    });
  }
  void do_add(float* y, int64_t y_stride, const float* x, int64_t x_stride, int64_t num_rows, int64_t n) override {
    std::lock_guard lock(device_->mutex);
    later([this, to = rows_of(y, num_rows, y_stride, n, 4), from = rows_of(x, num_rows, x_stride, n, 4), y_stride,
           x_stride, num_rows, n] { cpu_->add(to, y_stride, from, x_stride, num_rows, n); });
  }

  void do_sample(std::span<const SampleArgs> rows, std::span<SampleResult> results) override {
    std::lock_guard lock(device_->mutex);
    device_->run_all();
    std::vector<SampleArgs> args(rows.begin(), rows.end());
    for (SampleArgs& row : args) row.logits = bytes_of(row.logits, row.vocab_size * 4);
    cpu_->sample(args, results);
  }

  // --- Training
  class LateTrainOps final : public TrainOps {
   public:
    explicit LateTrainOps(LateBackend& backend) : late_(backend) {}

   private:
    TrainOps& cpu() { return late_.cpu_->train_ops(); }
    template <class Call>
    void later(Call&& call) {
      late_.later(std::forward<Call>(call));
    }
    template <class T>
    T* bytes(T* address, int64_t size_bytes) {
      return address ? late_.bytes_of(address, size_bytes) : nullptr;
    }
    template <class T>
    T* rows(T* address, int64_t num_rows, int64_t stride, int64_t width, int64_t elem = 4) {
      return address ? late_.rows_of(address, num_rows, stride, width, elem) : nullptr;
    }
    std::lock_guard<std::mutex> lock() { return std::lock_guard(late_.device_->mutex); }

    void do_gemm_transposed(const GemmTransposedArgs& args) override {
      const auto guard = lock();
      GemmTransposedArgs a = args;
      a.x = rows(args.x, args.num_rows, args.x_stride, args.w.n, dtype_bytes(args.act));
      a.y = rows(args.y, args.num_rows, args.y_stride, args.w.k);
      a.w.data = bytes(args.w.data, args.w.total_bytes());
      later([this, a] { cpu().gemm_transposed(a); });
    }
    void do_outer(std::span<const OuterProduct> products) override {
      const auto guard = lock();
      std::vector<OuterProduct> all(products.begin(), products.end());
      for (OuterProduct& p : all) {
        p.c = rows(p.c, p.num_rows, p.c_stride, p.rank);
        p.x = rows(p.x, p.num_rows, p.x_stride, p.width, dtype_bytes(p.x_dtype));
        p.gradient = rows(p.gradient, p.rank, p.gradient_stride, p.width);
      }
      later([this, all = std::move(all)] { cpu().outer(all); });
    }
    void do_round_rows(const RoundRowsArgs& args) override {
      const auto guard = lock();
      RoundRowsArgs a = args;
      a.x = rows(args.x, args.num_rows, args.x_stride, args.n, dtype_bytes(args.x_dtype));
      a.scale = bytes(args.scale, args.n * 4);
      a.y = rows(args.y, args.num_rows, args.y_stride, args.padded, dtype_bytes(args.y_dtype));
      later([this, a] { cpu().round_rows(a); });
    }
    void do_rms_norm_backward(const RmsNormBackwardArgs& args) override {
      const auto guard = lock();
      RmsNormBackwardArgs a = args;
      const int64_t width = args.heads * args.dim;
      a.x = rows(args.x, args.num_rows, args.x_stride, width, dtype_bytes(args.x_dtype));
      a.weight = bytes(args.weight, args.dim * 4);
      a.dy = rows(args.dy, args.num_rows, args.dy_stride, width);
      a.dx = rows(args.dx, args.num_rows, args.dx_stride, width);
      a.weight_gradient = bytes(args.weight_gradient, args.dim * 4);
      later([this, a] { cpu().rms_norm_backward(a); });
    }
    void do_swiglu_keep(const SwigluKeepArgs& args) override {
      const auto guard = lock();
      SwigluKeepArgs a = args;
      a.x = rows(args.x, args.num_rows, args.x_stride, args.up_offset + args.dim);
      a.kept = rows(args.kept, args.num_rows, args.kept_stride, args.padded, dtype_bytes(args.act));
      a.y = rows(args.y, args.num_rows, args.y_stride, args.dim, dtype_bytes(args.act));
      later([this, a] { cpu().swiglu_keep(a); });
    }
    void do_swiglu_backward(const SwigluBackwardArgs& args) override {
      const auto guard = lock();
      SwigluBackwardArgs a = args;
      a.kept = rows(args.kept, args.num_rows, args.kept_stride, args.padded, dtype_bytes(args.act));
      a.dy = rows(args.dy, args.num_rows, args.dy_stride, args.dim);
      a.dx = rows(args.dx, args.num_rows, args.dx_stride, args.padded, dtype_bytes(args.act));
      later([this, a] { cpu().swiglu_backward(a); });
    }
    BlockAttention attention_of(const BlockAttention& args) {
      BlockAttention a = args;
      const int64_t num_rows = args.sequences.back().end, elem = dtype_bytes(args.act);
      const int64_t kv_width = args.num_kv_heads * args.head_dim;
      a.q = rows(args.q, num_rows, args.q_stride, args.num_heads * args.head_dim, elem);
      a.k = rows(args.k, num_rows, args.k_stride, kv_width, elem);
      a.v = rows(args.v, num_rows, args.v_stride, kv_width, elem);
      return a;
    }
    void do_block_attention(const BlockAttentionArgs& args) override {
      const auto guard = lock();
      BlockAttentionArgs a = args;
      const int64_t num_rows = args.in.sequences.back().end, width = args.in.num_heads * args.in.head_dim;
      a.in = attention_of(args.in);
      a.y = rows(args.y, num_rows, args.y_stride, width, dtype_bytes(args.in.act));
      a.log_sum_exp = bytes(args.log_sum_exp, num_rows * args.in.num_heads * 4);
      later([this, a, sequences = std::vector(args.in.sequences.begin(), args.in.sequences.end())]() mutable {
        a.in.sequences = sequences;
        cpu().block_attention(a);
      });
    }
    int64_t do_block_attention_scratch_bytes(const BlockAttention& in) const override {
      return late_.cpu_->train_ops().block_attention_scratch_bytes(in);
    }
    void do_block_attention_backward(const BlockAttentionBackwardArgs& args) override {
      const auto guard = lock();
      BlockAttentionBackwardArgs a = args;
      const int64_t num_rows = args.in.sequences.back().end, width = args.in.num_heads * args.in.head_dim;
      const int64_t kv_width = args.in.num_kv_heads * args.in.head_dim;
      a.in = attention_of(args.in);
      a.y = rows(args.y, num_rows, args.y_stride, width, dtype_bytes(args.in.act));
      a.log_sum_exp = bytes(args.log_sum_exp, num_rows * args.in.num_heads * 4);
      a.dy = rows(args.dy, num_rows, args.dy_stride, width);
      a.dq = rows(args.dq, num_rows, args.dq_stride, width);
      a.dk = rows(args.dk, num_rows, args.dk_stride, kv_width);
      a.dv = rows(args.dv, num_rows, args.dv_stride, kv_width);
      later([this, a, sequences = std::vector(args.in.sequences.begin(), args.in.sequences.end())]() mutable {
        a.in.sequences = sequences;
        cpu().block_attention_backward(a);
      });
    }
    void do_cross_entropy(const CrossEntropyArgs& args) override {
      const auto guard = lock();
      CrossEntropyArgs a = args;
      const auto num_rows = static_cast<int64_t>(args.targets.size());
      a.logits = rows(args.logits, num_rows, args.logits_stride, args.vocab_size);
      a.losses = bytes(args.losses, num_rows * 4);
      a.greedy = bytes(args.greedy, num_rows);
      a.gradient = rows(args.gradient, num_rows, args.gradient_stride, args.padded, dtype_bytes(args.act));
      later([this, a, targets = std::vector(args.targets.begin(), args.targets.end()),
             weights = std::vector(args.weights.begin(), args.weights.end())]() mutable {
        a.targets = targets;
        a.weights = weights;
        cpu().cross_entropy(a);
      });
    }
    void do_scatter_rows(const ScatterRowsArgs& args) override {
      const auto guard = lock();
      ScatterRowsArgs a = args;
      a.x = rows(args.x, static_cast<int64_t>(args.rows.size()), args.x_stride, args.dim);
      const int64_t last = *std::max_element(args.rows.begin(), args.rows.end());
      a.gradient = rows(args.gradient, last + 1, args.gradient_stride, args.dim);
      later([this, a, to = std::vector(args.rows.begin(), args.rows.end())]() mutable {
        a.rows = to;
        if (a.gradient) cpu().scatter_rows(a);
      });
    }
    void do_embedding_delta_backward(const EmbeddingDeltaBackwardArgs& args) override {
      const auto guard = lock();
      EmbeddingDeltaBackwardArgs a = args;
      a.dy = rows(args.dy, static_cast<int64_t>(args.tokens.size()), args.dy_stride, args.dim);
      a.a = bytes(args.a, args.rank * args.vocab_size * 4);
      a.b = bytes(args.b, args.rank * args.dim * 4);
      a.a_gradient = bytes(args.a_gradient, args.rank * args.vocab_size * 4);
      a.b_gradient = bytes(args.b_gradient, args.rank * args.dim * 4);
      later([this, a, tokens = std::vector(args.tokens.begin(), args.tokens.end())]() mutable {
        a.tokens = tokens;
        cpu().embedding_delta_backward(a);
      });
    }
    void do_take_columns(const TakeColumnsArgs& args) override {
      const auto guard = lock();
      TakeColumnsArgs a = args;
      a.x = bytes(args.x, 1);  // columns are looked up in the kernel
      a.columns = bytes(args.columns, args.num_columns * 4);
      a.c = rows(args.c, args.num_rows, args.c_stride, args.num_columns);
      later([this, a] { cpu().take_columns(a); });
    }
    void do_dropout(const DropoutArgs& args) override {
      const auto guard = lock();
      DropoutArgs a = args;
      a.x = rows(args.x, args.rows.back().end, args.x_stride, args.dim, dtype_bytes(args.x_dtype));
      a.y = rows(args.y, args.rows.back().end, args.y_stride, args.dim, dtype_bytes(args.y_dtype));
      later([this, a, ranges = std::vector(args.rows.begin(), args.rows.end())]() mutable {
        a.rows = ranges;
        cpu().dropout(a);
      });
    }
    void do_row_squares(const RowSquaresArgs& args) override {
      const auto guard = lock();
      later([this, w = late_.weight_of(args.w), squares = bytes(args.squares, args.w.n * 4)] {
        cpu().row_squares({w.get(), squares});
      });
    }
    void do_dora_scales(const DoraScalesArgs& args) override {
      const auto guard = lock();
      DoraScalesArgs a = args;
      a.squares = bytes(args.squares, args.n * 4);
      a.products = rows(args.products, args.rank, args.products_stride, args.n);
      a.a = bytes(args.a, args.rank * args.k * 4);
      a.b = bytes(args.b, args.rank * args.n * 4);
      a.magnitudes = bytes(args.magnitudes, args.n * 4);
      a.norms = bytes(args.norms, args.n * 4);
      a.scales = bytes(args.scales, args.n * 4);
      later([this, a] { cpu().dora_scales(a); });
    }
    void do_dora_magnitude_grad(const DoraMagnitudeGradArgs& args) override {
      const auto guard = lock();
      DoraMagnitudeGradArgs a = args;
      a.dy = rows(args.dy, args.num_rows, args.dy_stride, args.n, dtype_bytes(args.dy_dtype));
      a.y = rows(args.y, args.num_rows, args.y_stride, args.n);
      a.magnitudes = bytes(args.magnitudes, args.n * 4);
      a.gradient = bytes(args.gradient, args.n * 4);
      later([this, a] { cpu().dora_magnitude_grad(a); });
    }
    void do_column_sum(const ColumnSumArgs& args) override {
      const auto guard = lock();
      ColumnSumArgs a = args;
      a.x = rows(args.x, args.num_rows, args.x_stride, args.n, dtype_bytes(args.x_dtype));
      a.gradient = bytes(args.gradient, args.n * 4);
      later([this, a] { cpu().column_sum(a); });
    }
    ModuleScalesArgs modules_of(const ModuleScalesArgs& args) {
      ModuleScalesArgs a = args;
      a.b = bytes(args.b, args.rank * args.n * 4);
      a.sigma = bytes(args.sigma, args.rank / args.module_rank * args.n * 4);
      a.folded = bytes(args.folded, args.rank * args.n * 4);
      a.sigma_gradient = bytes(args.sigma_gradient, args.rank / args.module_rank * args.n * 4);
      return a;
    }
    void do_fold_modules(const ModuleScalesArgs& args) override {
      const auto guard = lock();
      later([this, a = modules_of(args)] { cpu().fold_modules(a); });
    }
    void do_unfold_modules(const ModuleScalesArgs& args) override {
      const auto guard = lock();
      later([this, a = modules_of(args)] { cpu().unfold_modules(a); });
    }
    void do_adamw(const AdamwArgs& args) override {
      const auto guard = lock();
      AdamwArgs a = args;
      a.param = bytes(args.param, args.n * 4);
      a.gradient = bytes(args.gradient, args.n * 4);
      a.m = bytes(args.m, args.n * 4);
      a.v = bytes(args.v, args.n * 4);
      later([this, a] { cpu().adamw(a); });
    }
    SparsePattern pattern_of(const SparsePattern& args) {
      SparsePattern s = args;
      s.row_begins = bytes(args.row_begins, (args.out + 1) * 8);
      s.columns = bytes(args.columns, args.nnz * 4);
      return s;
    }
    void do_sparse_product(const SparseProductArgs& args) override {
      const auto guard = lock();
      SparseProductArgs a = args;
      a.s = pattern_of(args.s);
      a.values = bytes(args.values, args.s.nnz * 4);
      a.x = rows(args.x, args.num_rows, args.x_stride, args.s.in, dtype_bytes(args.act));
      a.y = rows(args.y, args.num_rows, args.y_stride, args.s.out);
      later([this, a] { cpu().sparse_product(a); });
    }
    void do_sparse_input_gradient(const SparseInputGradientArgs& args) override {
      const auto guard = lock();
      SparseInputGradientArgs a = args;
      a.s = pattern_of(args.s);
      a.values = bytes(args.values, args.s.nnz * 4);
      a.dy = rows(args.dy, args.num_rows, args.dy_stride, args.s.out, dtype_bytes(args.act));
      a.dx = rows(args.dx, args.num_rows, args.dx_stride, args.s.in);
      later([this, a] { cpu().sparse_input_gradient(a); });
    }
    void do_sparse_gradient(const SparseGradientArgs& args) override {
      const auto guard = lock();
      SparseGradientArgs a = args;
      a.s = pattern_of(args.s);
      a.dy = rows(args.dy, args.num_rows, args.dy_stride, args.s.out, dtype_bytes(args.act));
      a.x = rows(args.x, args.num_rows, args.x_stride, args.s.in, dtype_bytes(args.act));
      a.gradient = bytes(args.gradient, args.s.nnz * 4);
      later([this, a] { cpu().sparse_gradient(a); });
    }
    void do_proximal_gradient(const ProximalArgs& args) override {
      const auto guard = lock();
      ProximalArgs a = args;
      a.x = bytes(args.x, args.n * 4);
      a.anchor = bytes(args.anchor, args.n * 4);
      a.gradient = bytes(args.gradient, args.n * 4);
      later([this, a] { cpu().proximal_gradient(a); });
    }
    double do_sum_squares(const float* x, int64_t n) override {
      const auto guard = lock();
      late_.device_->run_all();
      return cpu().sum_squares(bytes(x, n * 4), n);
    }
    void do_fill(float* x, int64_t n, float value) override {
      const auto guard = lock();
      later([this, to = bytes(x, n * 4), n, value] { cpu().fill(to, n, value); });
    }

    LateBackend& late_;
  };

  std::unique_ptr<Backend> cpu_;
  std::shared_ptr<Device> device_ = std::make_shared<Device>();
  LateTrainOps train_ops_{*this};
};

}  // namespace lk::testing
