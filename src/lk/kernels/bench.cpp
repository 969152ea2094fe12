// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/bench.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>

#include "lk/base/rng.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/train.h"
#include "lk/tensor/buffer.h"

namespace lk {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// GB/s over [data, data + n), in pieces that threads take as they become free.
double sample_read(ThreadPool& pool, const IsaTable& isa, const float* data, int64_t n) {
  constexpr int64_t kPiece = int64_t{1} << 18;  // floats
  const int64_t pieces = n / kPiece;
  std::vector<float> sums(static_cast<size_t>(pieces));
  const double begin = now_s();
  pool.for_each(pieces, [&](int64_t piece) {
    sums[static_cast<size_t>(piece)] = isa.probes.read(data + piece * kPiece, kPiece);
  });
  return static_cast<double>(pieces * kPiece * 4) / (now_s() - begin) / 1e9;
}

double sample_flops(ThreadPool& pool, double (*probe)(int64_t), double target_ms) {
  const double calibrate = now_s();
  probe(2000);
  const double each_s = (now_s() - calibrate) / 2000;
  const auto iterations = static_cast<int64_t>(std::clamp(target_ms * 1e-3 / 8 / each_s, 100.0, 1e8));
  const int64_t pieces = 8 * pool.size();
  std::vector<double> flops(static_cast<size_t>(pieces));
  const double begin = now_s();
  pool.for_each(pieces, [&](int64_t piece) { flops[static_cast<size_t>(piece)] = probe(iterations); });
  const double seconds = now_s() - begin;
  double total = 0;
  for (double f : flops) total += f;
  return total / seconds / 1e9;
}

// Memory full of small normal numbers, whichever type reads it.
Buffer make_arena(int64_t bytes, ThreadPool& pool) {
  Buffer arena(bytes);
  auto* words = arena.as<uint16_t>();
  constexpr int64_t kPiece = int64_t{1} << 20;
  const int64_t n = bytes / 2;
  pool.for_each((n + kPiece - 1) / kPiece, [&](int64_t piece) {
    for (int64_t i = piece * kPiece; i < std::min((piece + 1) * kPiece, n); ++i)
      words[i] = static_cast<uint16_t>(0x3c00 + ((i * 37) & 0x80ff));
  });
  return arena;
}

// One measured case. run(i) does the i-th repetition, on other memory than the last ones.
struct Case {
  KernelBenchResult result;
  double bytes = 0, bf16_flops = 0, f32_flops = 0;
  std::function<void(int64_t)> run;
};

class Bench {
 public:
  Bench(const KernelBenchOptions& options, ThreadPool& pool)
      : options_(options), pool_(pool), arena_(make_arena(options.arena_bytes, pool)) {}

  std::vector<KernelBenchResult> run(CpuIsa isa, DType dtype) {
    isa_ = isa;
    dtype_ = dtype;
    results_.clear();
    if (wants("gemm")) gemm("gemm");
    if (wants("gemm_paged")) gemm("gemm_paged");
    if (wants("gemm_transposed")) gemm("gemm_transposed");
    if (wants("lora")) lora();
    if (wants("attention_decode")) attention_decode();
    if (wants("attention_prefill")) attention_prefill();
    if (wants("rms_norm") || wants("swiglu") || wants("rope")) rows();
    block_attention();
    train_rows();
    if (dtype_ == options_.dtypes.front()) samples();  // logits are f32 whatever the activations are
    return results_;
  }

 private:
  bool wants(std::string_view op) const { return op.starts_with(options_.op); }
  bool wants_rows(int64_t rows) const {
    return options_.rows.empty() || std::find(options_.rows.begin(), options_.rows.end(), rows) != options_.rows.end();
  }
  int64_t elem() const { return dtype_bytes(dtype_); }
  const CpuKernels& kernels() const { return cpu_kernels(isa_); }
  const TrainKernels& train() const { return train_kernels(isa_); }
  // A place of `bytes` in the arena for repetition i.
  std::byte* place(int64_t i, int64_t bytes) {
    const int64_t step = (bytes + 4095) / 4096 * 4096, count = std::max<int64_t>(1, arena_.size_bytes() / step);
    LK_CHECK(step <= arena_.size_bytes(), "arena of {} bytes is too small", arena_.size_bytes());
    return arena_.data() + i % count * step;
  }

  void add(Case c) {
    c.result.isa = isa_;
    c.result.dtype = dtype_;
    const IsaTable& isa = isa_table(isa_);
    const int64_t read_floats = std::min<int64_t>(arena_.size_bytes() / 4, int64_t{8} << 20);
    int64_t repetition = 0;
    c.run(repetition++);
    double begin = now_s();
    c.run(repetition++);
    const double once = now_s() - begin;
    const auto count = static_cast<int64_t>(std::clamp(options_.sample_ms * 1e-3 / once, 1.0, 1000.0));
    const bool any_bf16 = c.bf16_flops > 0, any_f32 = c.f32_flops > 0;
    // Limits beside every sample: bandwidth always, a peak only where the case uses it.
    int64_t read_at = 0;
    const auto limit_s = [&] {
      read_at = (read_at + read_floats) % (arena_.size_bytes() / 4 - read_floats + 1) / 1024 * 1024;
      const double read = sample_read(pool_, isa, arena_.as<float>() + read_at, read_floats);
      double seconds = 0;
      if (any_bf16) seconds += c.bf16_flops / sample_flops(pool_, isa.probes.dot_bf16, 1) / 1e9;
      if (any_f32) seconds += c.f32_flops / sample_flops(pool_, isa.probes.fma_f32, 1) / 1e9;
      return std::max(c.bytes / read / 1e9, seconds);
    };
    std::vector<double> times, fractions;
    double before = limit_s(), best_limit = before;
    for (int sample = 0; sample < options_.num_samples; ++sample) {
      begin = now_s();
      for (int64_t i = 0; i < count; ++i) c.run(repetition++);
      const double each = (now_s() - begin) / static_cast<double>(count);
      const double after = limit_s();
      times.push_back(each);
      fractions.push_back((before + after) / 2 / each);
      before = after;
      best_limit = std::min(best_limit, after);
    }
    const double seconds = median(times);
    c.result.time_us = seconds * 1e6;
    c.result.gb_s = c.bytes / seconds / 1e9;
    c.result.gflop_s = (c.bf16_flops + c.f32_flops) / seconds / 1e9;
    c.result.fraction_of_limit = median(fractions);
    const double best = *std::min_element(times.begin(), times.end());
    c.result.best_time_us = best * 1e6;
    c.result.best_fraction = best_limit / best;
    results_.push_back(c.result);
  }

  void count_flops(Case& c, double act_flops, double f32_flops) const {
    (dtype_ == DType::kBF16 ? c.bf16_flops : c.f32_flops) += act_flops;
    c.f32_flops += f32_flops;
  }

  void gemm(std::string_view op);
  void lora();
  void lora_case(int64_t adapters, int64_t rows_each, int64_t rank, int64_t k, const std::vector<int64_t>& widths);
  void attention_decode();
  void attention_prefill();
  void attention_case(const char* op, int64_t num_seqs, int64_t rows_each, int64_t context);
  void rows();
  void block_attention();
  void train_rows();
  void samples();
  void sample_case(const char* op, int64_t vocab_size, double spread, SampleArgs args);

  const KernelBenchOptions& options_;
  ThreadPool& pool_;
  Buffer arena_;
  CpuIsa isa_{};
  DType dtype_{};
  std::vector<KernelBenchResult> results_;
};

// qkv, o, gate_up, down of the 1.1 B reference shape; the projections that share one product.
struct Linear {
  int64_t k;
  std::vector<int64_t> widths;
};
const Linear kLinears[] = {{2048, {2048, 256, 256}}, {2048, {2048}}, {2048, {5632, 5632}}, {5632, {2048}}};

int64_t sum(const std::vector<int64_t>& values) {
  int64_t total = 0;
  for (int64_t value : values) total += value;
  return total;
}

// Paged: the matrix lies in the scattered pages of that model's pool, as replaced matrices and merged layers do.
void Bench::gemm(std::string_view op) {
  const bool paged = op == "gemm_paged", transposed = op == "gemm_transposed";
  constexpr int64_t kPageBytes = 22 * 2 * kPageTokens * 4 * 64 * 2;  // 22 layers, 4 KV heads of 64, bf16
  const int64_t arena_pages = arena_.size_bytes() / kPageBytes;
  const WeightFormat format = weight_format_of(dtype_);
  for (const Linear& linear : kLinears) {
    const int64_t k = linear.k, n = sum(linear.widths), bytes = packed_weight_bytes(format, n, k);
    for (int64_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048}) {
      if (!wants_rows(rows) || (transposed && rows < 64)) continue;
      const Buffer x = make_arena(rows * std::max(n, k) * elem(), pool_);
      Buffer y(rows * std::max(n, k) * 4);
      std::vector<int32_t> pages(static_cast<size_t>((bytes + kPageBytes - 1) / kPageBytes));
      LK_CHECK(static_cast<int64_t>(pages.size()) <= arena_pages, "arena of {} pages is too small", arena_pages);
      Case c;
      c.result.op = op;
      c.result.rows = rows;
      c.result.k = k;
      c.result.n = n;
      c.bytes = static_cast<double>(bytes);
      count_flops(c, 2.0 * static_cast<double>(rows * k * n), 0);
      c.run = [&](int64_t i) {
        PackedWeight w{format, n, k, paged ? arena_.data() : place(i, bytes)};
        if (paged) {
          for (size_t p = 0; p < pages.size(); ++p)  // scattered: 5003 is prime
            pages[p] = static_cast<int32_t>((i * static_cast<int64_t>(pages.size()) + static_cast<int64_t>(p)) * 5003 %
                                            arena_pages);
          w.pages = pages.data();
          w.page_bytes = kPageBytes;
        }
        if (transposed) return train().gemm_transposed({x.data(), dtype_, n, w, y.as<float>(), k, rows, false}, pool_);
        kernels().gemm({x.data(), dtype_, k, w, y.as<float>(), n, rows}, pool_);
      };
      add(c);
    }
  }
}

void Bench::lora_case(int64_t adapters, int64_t rows_each, int64_t rank, int64_t k,
                      const std::vector<int64_t>& widths) {
  const int64_t rows = adapters * rows_each, n = sum(widths), num_projs = static_cast<int64_t>(widths.size());
  // Rank rows fill pages of 16 KiB, which are scattered over the adapter's memory; a row may cross into the next page.
  const int64_t adapter_bytes = (num_projs * rank * k + rank * n) * elem();
  std::vector<std::vector<int64_t>> offsets;
  std::vector<LoraProj> projs;
  int64_t next = 0, out = 0;
  for (int64_t width : widths) {
    LoraProj proj;
    proj.scaling = 2.0f;
    proj.out_begin = out;
    out += width;
    for (LoraMatrix* m : {&proj.a, &proj.b}) {
      m->width = m->chunk_cols = m == &proj.a ? k : width;
      m->num_rows = static_cast<int32_t>(rank);
      offsets.emplace_back();
      for (int64_t r = 0; r < rank; ++r, next += m->width * elem()) offsets.back().push_back(next);
    }
    projs.push_back(proj);
  }
  for (size_t p = 0; p < projs.size(); ++p) {
    projs[p].a.row_offsets = offsets[2 * p].data();
    projs[p].b.row_offsets = offsets[2 * p + 1].data();
  }
  const Buffer x = make_arena(rows * k * elem(), pool_);
  Buffer y(rows * n * 4), v(rows * rank * num_projs * 4);
  std::vector<LoraSegment> segments(static_cast<size_t>(adapters));
  Case c;
  c.result.op = "lora";
  c.result.rows = rows;
  c.result.k = k;
  c.result.n = n;
  c.result.rank = rank;
  c.result.adapters = adapters;
  c.bytes = static_cast<double>(adapters * adapter_bytes);
  count_flops(c, 2.0 * static_cast<double>(rows * num_projs * rank * k), 2.0 * static_cast<double>(rows * rank * n));
  c.run = [&](int64_t i) {
    std::byte* base = place(i, adapters * adapter_bytes);
    for (int64_t a = 0; a < adapters; ++a)
      segments[static_cast<size_t>(a)] = {static_cast<int32_t>(a * rows_each),
                                          static_cast<int32_t>((a + 1) * rows_each),
                                          base + (a * 7 + 3) % adapters * adapter_bytes, projs};
    kernels().lora({x.data(), dtype_, k, y.as<float>(), n, segments, v.as<float>(), rank * num_projs}, pool_);
  };
  add(c);
}

void Bench::lora() {
  for (const Linear& linear : kLinears) {
    for (const auto& [adapters, rows_each, rank] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 16},
                                                                                                      {8, 1, 16},
                                                                                                      {32, 1, 16},
                                                                                                      {32, 1, 64},
                                                                                                      {4, 8, 16},
                                                                                                      {1, 32, 16},
                                                                                                      {1, 512, 16},
                                                                                                      {1, 512, 64},
                                                                                                      {1, 2048, 16}})
      if (wants_rows(adapters * rows_each)) lora_case(adapters, rows_each, rank, linear.k, linear.widths);
  }
}

void Bench::attention_case(const char* op, int64_t num_seqs, int64_t rows_each, int64_t context) {
  constexpr int64_t kHeads = 32, kKvHeads = 4, kHeadDim = 64;
  const int64_t rows = num_seqs * rows_each, width = kHeads * kHeadDim;
  if (!wants_rows(rows)) return;
  const int64_t half = kKvHeads * kHeadDim * kPageTokens * elem();
  const int64_t pages = (context + kPageTokens - 1) / kPageTokens, bytes = num_seqs * pages * 2 * half;
  std::vector<float> q(static_cast<size_t>(rows * width));
  for (size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(i));
  Buffer y(rows * width * elem());
  std::vector<std::vector<int32_t>> tables(static_cast<size_t>(num_seqs));
  std::vector<AttentionSeq> seqs;
  const int64_t total = num_seqs * pages;
  for (int64_t s = 0; s < num_seqs; ++s) {
    auto& table = tables[static_cast<size_t>(s)];
    for (int64_t p = 0; p < pages; ++p)  // scattered: 5003 is prime
      table.push_back(static_cast<int32_t>((s * pages + p) * (total % 5003 == 0 ? 1 : 5003) % total));
    seqs.push_back({static_cast<int32_t>(s * rows_each), static_cast<int32_t>((s + 1) * rows_each), context - rows_each,
                    table.data()});
  }
  double attended = 0;
  for (int64_t i = 0; i < rows_each; ++i) attended += static_cast<double>(context - rows_each + i + 1);
  Case c;
  c.result.op = op;
  c.result.rows = rows;
  c.result.k = context;
  c.result.n = kHeadDim;
  c.result.adapters = num_seqs;
  c.bytes = static_cast<double>(bytes);
  // Against the f32 peak as a whole, though the scores use bf16 products.
  c.f32_flops = 4.0 * static_cast<double>(num_seqs * kHeads * kHeadDim) * attended;
  c.run = [&](int64_t i) {
    AttentionArgs args{q.data(), width,  y.data(),
                       width,    kHeads, 0.125f,
                       0,        seqs,   {place(i, bytes), 2 * half, half, dtype_, kKvHeads, kHeadDim}};
    kernels().attention(args, pool_);
  };
  add(c);
}

void Bench::attention_decode() {
  for (const auto& [num_seqs, context] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 4096}, {8, 1024}, {32, 128}, {32, 1024}})
    attention_case("attention_decode", num_seqs, 1, context);
}

void Bench::attention_prefill() {
  for (const auto& [num_seqs, rows, context] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{8, 64, 64}, {1, 512, 512}, {1, 512, 4096}})
    attention_case("attention_prefill", num_seqs, rows, context);
}

void Bench::rows() {
  for (int64_t rows : {1, 32, 512}) {
    if (!wants_rows(rows)) continue;
    const auto row_case = [&](const char* op, int64_t in, int64_t out_bytes, auto run) {
      if (!wants(op)) return;
      Case c;
      c.result.op = op;
      c.result.rows = rows;
      c.result.k = in;
      c.bytes = static_cast<double>(rows * (in * 4 + out_bytes));
      c.run = [&, run](int64_t i) { run(reinterpret_cast<float*>(place(i, rows * in * 4))); };
      add(c);
    };
    constexpr int64_t kDim = 2048, kFfn = 5632, kHeads = 36, kHeadDim = 64;
    Buffer y(rows * kFfn * elem());
    const std::vector<float> weight(kDim, 1.0f), cos(static_cast<size_t>(rows * kHeadDim), 0.6f), sin(cos.size(), 0.8f);
    row_case("rms_norm", kDim, kDim * elem(), [&](float* x) {
      kernels().rms_norm({x, kDim, weight.data(), y.data(), dtype_, kDim, rows, kDim, 1e-5f}, pool_);
    });
    row_case("swiglu", 2 * kFfn, kFfn * elem(), [&](float* x) {
      kernels().swiglu({x, 2 * kFfn, kFfn, y.data(), dtype_, kFfn, rows, kFfn}, pool_);
    });
    row_case("rope", kHeads * kHeadDim, kHeads * kHeadDim * 4, [&](float* x) {
      kernels().rope({x, kHeads * kHeadDim, rows, kHeads, kHeadDim, cos.data(), sin.data()}, pool_);
    });
  }
}

// Forward and backward over whole sequences, one layer of the 1.1 B model. The backward pass computes the scores again.
void Bench::block_attention() {
  constexpr int64_t kHeads = 32, kKvHeads = 4, kHeadDim = 64, kWidth = kHeads * kHeadDim,
                    kKvWidth = kKvHeads * kHeadDim;
  for (const bool backward : {false, true}) {
    const char* op = backward ? "block_attention_backward" : "block_attention";
    if (!wants(op)) continue;
    for (const auto& [num_seqs, length] : std::vector<std::pair<int64_t, int64_t>>{{16, 128}, {4, 512}, {1, 2048}}) {
      const int64_t rows = num_seqs * length;
      if (!wants_rows(rows)) continue;
      std::vector<RowRange> sequences;
      for (int64_t s = 0; s < num_seqs; ++s)
        sequences.push_back({static_cast<int32_t>(s * length), static_cast<int32_t>((s + 1) * length)});
      const Buffer q = make_arena(rows * kWidth * elem(), pool_), k = make_arena(rows * kKvWidth * elem(), pool_),
                   v = make_arena(rows * kKvWidth * elem(), pool_), dy = make_arena(rows * kWidth * 4, pool_);
      Buffer y(rows * kWidth * elem()), lse(rows * kHeads * 4), dq(rows * kWidth * 4), dk(rows * kKvWidth * 4),
          dv(rows * kKvWidth * 4);
      const BlockAttention in{q.data(), k.data(), v.data(), dtype_, kWidth, kKvWidth, kKvWidth,
                              kHeads,   kKvHeads, kHeadDim, 0.125f, 0,      sequences};
      const BlockAttentionArgs args{in, y.data(), kWidth, lse.as<float>()};
      Case c;
      c.result.op = op;
      c.result.rows = rows;
      c.result.k = length;
      c.result.n = kHeadDim;
      c.result.adapters = num_seqs;
      const auto pairs = static_cast<double>(num_seqs * kHeads) * static_cast<double>(length * (length + 1)) / 2;
      count_flops(c, (backward ? 5 : 2) * 2.0 * static_cast<double>(kHeadDim) * pairs, 0);
      c.bytes = static_cast<double>(rows * (kWidth + kKvWidth) * 2 * elem());
      train().block_attention(args, pool_);
      c.run = [&](int64_t) {
        if (!backward) return train().block_attention(args, pool_);
        train().block_attention_backward({in, y.data(), kWidth, lse.as<float>(), dy.as<float>(), kWidth, dq.as<float>(),
                                          dk.as<float>(), dv.as<float>(), kWidth, kKvWidth, kKvWidth},
                                         pool_);
      };
      add(c);
    }
  }
}

void Bench::train_rows() {
  constexpr int64_t kDim = 2048, kFfn = 5632, kVocab = 32000, kRank = 16;
  for (int64_t rows : {256, 2048}) {
    if (!wants_rows(rows)) continue;
    // bytes, and f32 operations, per row; run gets a place of that many bytes in all.
    const auto row_case = [&](const char* op, int64_t width, int64_t bytes, double flops, auto run) {
      if (!wants(op)) return;
      Case c;
      c.result.op = op;
      c.result.rows = rows;
      c.result.k = width;
      c.bytes = static_cast<double>(rows * bytes);
      c.f32_flops = static_cast<double>(rows) * flops;
      c.run = [&, run, bytes](int64_t i) { run(place(i, rows * bytes)); };
      add(c);
    };
    const std::vector<float> weight(kDim, 1.0f);
    for (const int64_t width : {kDim, kFfn}) {
      const Buffer factor = make_arena(rows * kRank * 4, pool_);
      Buffer gradient(kRank * width * 4);
      row_case("outer", width, width * elem(), 2.0 * static_cast<double>(kRank * width), [&](std::byte* x) {
        const OuterProduct product{factor.as<float>(),   kRank, x, dtype_, width, rows, kRank, width,
                                   gradient.as<float>(), width};
        train().outer({&product, 1}, pool_);
      });
    }
    row_case("round_rows", kDim, kDim * (4 + elem()), 0, [&](std::byte* x) {
      train().round_rows({x, DType::kF32, kDim, nullptr, x + rows * kDim * 4, dtype_, kDim, rows, kDim, kDim}, pool_);
    });
    Buffer sum(kDim * 4);
    row_case("rms_norm_backward", kDim, kDim * (elem() + 3 * 4), 0, [&](std::byte* dy) {
      train().rms_norm_backward(
          {dy + rows * kDim * 8, dtype_, kDim, weight.data(), reinterpret_cast<float*>(dy), kDim,
           reinterpret_cast<float*>(dy + rows * kDim * 4), kDim, true, nullptr, rows, 1, kDim, 1e-5f},
          pool_);
    });
    row_case("swiglu_keep", kFfn, kFfn * (2 * 4 + 3 * elem()), 0, [&](std::byte* x) {
      std::byte* kept = x + rows * kFfn * 8;
      train().swiglu_keep({reinterpret_cast<float*>(x), 2 * kFfn, kFfn, 2 * kFfn, kept, 2 * kFfn,
                           kept + rows * kFfn * 2 * elem(), dtype_, kFfn, rows, kFfn},
                          pool_);
    });
    row_case("swiglu_backward", kFfn, kFfn * (4 + 4 * elem()), 0, [&](std::byte* dy) {
      std::byte* kept = dy + rows * kFfn * 4;
      train().swiglu_backward({kept, 2 * kFfn, kFfn, 2 * kFfn, reinterpret_cast<float*>(dy), kFfn,
                               kept + rows * kFfn * 2 * elem(), dtype_, 2 * kFfn, rows, kFfn},
                              pool_);
    });
    row_case("dropout", kDim, kDim * 2 * elem(), 0, [&](std::byte* x) {
      const DropoutRows range{0, static_cast<int32_t>(rows), 1, 0, 0.1f};
      lk::dropout({x, dtype_, kDim, x + rows * kDim * elem(), dtype_, kDim, false, kDim, {&range, 1}}, pool_);
    });
    row_case("adamw", kDim, kDim * 7 * 4, 0, [&](std::byte* x) {
      auto* p = reinterpret_cast<float*>(x);
      const int64_t n = rows * kDim;
      train().adamw({.param = p, .gradient = p + n, .m = p + 2 * n, .v = p + 3 * n, .n = n, .rate = 1e-9}, pool_);
    });
    row_case("sum_squares", kDim, kDim * 4, 0,
             [&](std::byte* x) { (void)lk::sum_squares(reinterpret_cast<float*>(x), rows * kDim, pool_); });
    if (rows > 256) continue;
    const std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
    const std::vector<float> weights(targets.size(), 1.0f);
    Buffer losses(rows * 4);
    row_case("cross_entropy", kVocab, kVocab * (4 + elem()), 0, [&](std::byte* x) {
      train().cross_entropy({reinterpret_cast<float*>(x), kVocab, kVocab, kVocab, targets, weights, losses.as<float>(),
                             nullptr, x + rows * kVocab * 4, dtype_, kVocab},
                            pool_);
    });
  }
}

void Bench::sample_case(const char* op, int64_t vocab_size, double spread, SampleArgs args) {
  constexpr int64_t kRows = 32;
  if (!wants(op) || !wants_rows(kRows)) return;
  std::vector<float> logits(static_cast<size_t>(kRows * vocab_size));
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(spread * random_normal(1, i));
  std::vector<SampleScratch> scratch(static_cast<size_t>(pool_.size()));
  std::vector<SampleResult> results(kRows);
  Case c;
  c.result.op = op;
  c.result.rows = kRows;
  c.result.n = vocab_size;
  c.bytes = static_cast<double>(kRows * vocab_size * 4);
  c.run = [&](int64_t repetition) {
    std::atomic<int64_t> next{0};
    pool_.run([&](int thread) {
      for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < kRows;) {
        SampleArgs own = args;
        own.logits = logits.data() + row * vocab_size;
        own.vocab_size = vocab_size;
        own.uniform = random_uniform(2, static_cast<uint64_t>(repetition * kRows + row));
        sample_row(kernels().sample, own, scratch[static_cast<size_t>(thread)], &results[static_cast<size_t>(row)]);
      }
    });
  };
  add(c);
}

void Bench::samples() {
  for (int64_t vocab_size : {32000, 151936}) {
    sample_case("sample_greedy", vocab_size, 3, {.temperature = 0});
    sample_case("sample_chat", vocab_size, 1, {.temperature = 0.7, .top_p = 0.9});
    sample_case("sample_chat_peaked", vocab_size, 4, {.temperature = 0.7, .top_p = 0.9});
    sample_case("sample_chat_flat", vocab_size, 1e-4, {.temperature = 0.7, .top_p = 0.9});
    sample_case("sample_all", vocab_size, 3, {.temperature = 1});
    sample_case("sample_top_k", vocab_size, 3, {.temperature = 0.7, .top_k = 50});
  }
}

}  // namespace

MachineLimits measure_machine_limits(ThreadPool& pool) {
  return measure_machine_limits(pool, supported_cpu_isas().back());
}

MachineLimits measure_machine_limits(ThreadPool& pool, CpuIsa isa) {
  const IsaTable& table = isa_table(isa);
  const Buffer arena = make_arena(int64_t{512} << 20, pool);
  std::vector<double> read, bf16, f32;
  for (int sample = 0; sample < 7; ++sample) {
    read.push_back(sample_read(pool, table, arena.as<float>(), arena.size_bytes() / 4));
    bf16.push_back(sample_flops(pool, table.probes.dot_bf16, 10));
    f32.push_back(sample_flops(pool, table.probes.fma_f32, 10));
  }
  return {median(read), median(bf16), median(f32)};
}

std::vector<KernelBenchResult> bench_kernels(const KernelBenchOptions& options, ThreadPool& pool) {
  Bench bench(options, pool);
  std::vector<KernelBenchResult> results;
  for (CpuIsa isa : options.isas.empty() ? std::vector<CpuIsa>{supported_cpu_isas().back()} : options.isas) {
    for (DType dtype : options.dtypes) {
      const auto part = bench.run(isa, dtype);
      results.insert(results.end(), part.begin(), part.end());
    }
  }
  return results;
}

}  // namespace lk
