// SPDX-License-Identifier: Apache-2.0
// Adds the adapters' products to y, segment by segment, in two phases:
//   shrink: v[row][r] = scaling * sum_i x[row][i] a[r][i]   for the rank rows of all projections of the segment
//   expand: y[row][j] = (y + sum_r v[row][r] b[r][j] + out_bias[j]) * out_scale[j]
// Source of the segment layout: S-LoRA, arXiv:2311.03285.
//
// Row determinism: v is one vector accumulator per (row, rank row) that takes the columns in ascending order, across
// chunks, and is reduced in a fixed tree (with num_shards: one such sum per shard, in a binary tree); the sum over r is
// one f32 chain in ascending order. Tiles only share loads.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/lora_shrink.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

// Finds the work item of a running number; items ascend per thread, so the cursor only moves forward.
template <class CountFn>
struct Cursor {
  const LoraArgs& args;
  CountFn count_items;  // of one segment
  int64_t segment = 0, first = 0, count;
  Cursor(const LoraArgs& a, CountFn f) : args(a), count_items(f), count(f(a.segments.data()[0])) {}
  const LoraSegment& seek(int64_t item) {
    while (item >= first + count) {
      first += count;
      ++segment;
      count = count_items(args.segments.data()[segment]);
    }
    return args.segments.data()[segment];
  }
};

constexpr int64_t kExpandCols = 1024;  // columns of one item: r = 16 rank rows of them stay in L2
constexpr int64_t kExpandBlockRows = 64;
constexpr int kExpandRows = kNumVectors >= 32 ? 8 : kNumVectors >= 8 ? 2 : 1;
constexpr int64_t kStreamRanks = kNumVectors >= 8 ? 4 : 2;

// out_bias and out_scale of up to 16 columns. Their rows may be cut into other chunks than b.
struct ColumnExtras {
  bool has_bias, has_scale;
  F32x16 bias, scale;

  LK_INLINE F32x16 read(const LoraMatrix& m, const std::byte* base, int64_t col, int64_t cols) {
    const int64_t width = chunk_width(m);
    return load_partial(row_chunk<float>(m, base, 0, col / width) + col % width, cols);
  }
  __attribute__((always_inline)) ColumnExtras(const LoraProj& p, const std::byte* base, int64_t col, int64_t cols)
      : has_bias(p.out_bias.num_rows != 0),
        has_scale(p.out_scale.num_rows != 0),
        bias(has_bias ? read(p.out_bias, base, col, cols) : zero()),
        scale(has_scale ? read(p.out_scale, base, col, cols) : zero()) {}
  __attribute__((always_inline)) void apply(float* y, F32x16 sum, int64_t cols) const {
    sum = add(cols == 16 ? load(y) : load_partial(y, cols), sum);
    if (has_bias) sum = add(sum, bias);
    if (has_scale) sum = mul(sum, scale);
    if (cols == 16)
      store(y, sum);
    else
      store_partial(y, sum, cols);
  }
};

// kRows rows x kVecs vectors from column col of the projection on, all inside chunk `chunk`.
template <class T, int kRows, int kVecs>
void expand_tile(const LoraProj& p, const std::byte* base, const float* v, int64_t v_stride, float* y, int64_t y_stride,
                 int64_t col, int64_t chunk, int64_t num_cols) {
  F32x16 acc[kRows][kVecs];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) acc[row][vec] = zero();
  }
  if (kRows > 2) {  // y is read at the end of a tile that is too long for the core to look ahead to it
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      LK_UNROLL
      for (int vec = 0; vec < kVecs; ++vec) prefetch(y + row * y_stride + 16 * vec);
    }
  }
  const int64_t in_chunk = col - chunk * chunk_width(p.b);
  const int64_t num_chunks = p.b.num_chunks;
  const int64_t* offset = p.b.row_offsets + chunk;
  const bool full = num_cols == 16 * kVecs;
  for (int64_t r = 0; r < p.b.num_rows; ++r, offset += num_chunks) {
    const T* b = reinterpret_cast<const T*>(base + *offset) + in_chunk;
    F32x16 bv[kVecs];
    if (full) {
      LK_UNROLL
      for (int vec = 0; vec < kVecs; ++vec) bv[vec] = load_as_f32(b + 16 * vec);
      if (kRows <= 4) prefetch_l2(b + 256 / sizeof(T));  // few rows: b comes from memory
    } else {
      for (int vec = 0; vec < kVecs; ++vec) {
        const int64_t cols = min64(16, num_cols - 16 * vec);
        bv[vec] = cols > 0 ? load_as_f32(b + 16 * vec, cols) : zero();
      }
    }
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const F32x16 vr = broadcast(v[row * v_stride + r]);
      LK_UNROLL
      for (int vec = 0; vec < kVecs; ++vec) acc[row][vec] = fma(vr, bv[vec], acc[row][vec]);
    }
  }
  LK_UNROLL
  for (int vec = 0; vec < kVecs; ++vec) {
    const int64_t cols = min64(16, num_cols - 16 * vec);
    if (cols <= 0) break;
    const ColumnExtras extras(p, base, col + 16 * vec, cols);
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) extras.apply(y + row * y_stride + 16 * vec, acc[row][vec], cols);
  }
}

// The same for one row over many columns of a chunk, num_cols <= kExpandCols and a multiple of 32. The accumulators
// live in L1, so that b is read along its rows, kStreamRanks of them at once: what the memory prefetchers like.
template <class T>
void expand_stream(const LoraProj& p, const std::byte* base, const float* v, float* y, int64_t col, int64_t chunk,
                   int64_t num_cols) {
  alignas(64) float acc[kExpandCols];
  for (int64_t j = 0; j < num_cols; j += 16) store(acc + j, zero());
  const int64_t in_chunk = col - chunk * chunk_width(p.b), rank = p.b.num_rows;
  const auto row_at = [&](int64_t r) { return row_chunk<T>(p.b, base, r, chunk) + in_chunk; };
  constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(T));
  int64_t r = 0;
  for (; r + kStreamRanks <= rank; r += kStreamRanks) {
    const T* b[kStreamRanks];
    const T* ahead[kStreamRanks];
    F32x16 vr[kStreamRanks];
    for (int64_t q = 0; q < kStreamRanks; ++q) {
      b[q] = row_at(r + q);
      vr[q] = broadcast(v[r + q]);
      // Then come the next rank rows, or the next columns of the first ones.
      const int64_t next = r + kStreamRanks + q;
      ahead[q] = next < rank ? row_at(next) : row_at(q) + num_cols;
    }
    const int64_t wrap = max64(0, num_cols - kAhead);
    for (int64_t j = 0; j < num_cols; j += 32) {
      F32x16 lo = load(acc + j), hi = load(acc + j + 16);
      LK_UNROLL
      for (int64_t q = 0; q < kStreamRanks; ++q) {
        const T* from = j < wrap ? b[q] + j + kAhead : ahead[q] + j - wrap;
        prefetch_l2(from);
        if (sizeof(T) == 4) prefetch_l2(from + 16);
        lo = fma(vr[q], load_as_f32(b[q] + j), lo);
        hi = fma(vr[q], load_as_f32(b[q] + j + 16), hi);
      }
      store(acc + j, lo);
      store(acc + j + 16, hi);
    }
  }
  for (; r < rank; ++r) {
    const T* b = row_at(r);
    const F32x16 vr = broadcast(v[r]);
    for (int64_t j = 0; j < num_cols; j += 16) store(acc + j, fma(vr, load_as_f32(b + j), load(acc + j)));
  }
  for (int64_t j = 0; j < num_cols; j += 16) ColumnExtras(p, base, col + j, 16).apply(y + j, load(acc + j), 16);
}

template <class T>
using ExpandFn = void (*)(const LoraProj&, const std::byte*, const float*, int64_t, float*, int64_t, int64_t, int64_t,
                          int64_t);
template <class T>
ExpandFn<T> expand_for(int64_t rows) {
#define LK_FN(rows) expand_tile<T, rows <= kExpandRows ? rows : kExpandRows, 2>
  static constexpr ExpandFn<T> kTable[] = {LK_FN(1), LK_FN(2), LK_FN(3), LK_FN(4),
                                           LK_FN(5), LK_FN(6), LK_FN(7), LK_FN(8)};
#undef LK_FN
  return kTable[rows - 1];
}

bool has_expand(const LoraProj& p) {
  return p.b.num_rows != 0 || p.out_bias.num_rows != 0 || p.out_scale.num_rows != 0;
}
// Without b (rank 0) the width comes from the DoRA rows.
int64_t expand_width(const LoraProj& p) {
  if (!has_expand(p)) return 0;
  if (p.b.num_rows != 0) return p.b.width;
  return p.out_scale.num_rows != 0 ? p.out_scale.width : p.out_bias.width;
}
int64_t num_col_blocks(const LoraSegment& s) {
  int64_t blocks = 0;
  for (size_t p = 0; p < s.projs.size(); ++p) blocks += ceil_div(expand_width(s.projs.data()[p]), kExpandCols);
  return blocks;
}
int64_t num_expand_items(const LoraSegment& s) {
  return ceil_div(s.row_end - s.row_begin, kExpandBlockRows) * num_col_blocks(s);
}

template <class T>
void expand_item(const LoraArgs& args, const LoraSegment& s, int64_t item, const LoraSegment*) {
  const int64_t blocks = num_col_blocks(s);
  int64_t block = item % blocks, v_begin = 0;
  const LoraProj* proj = s.projs.data();
  for (;; ++proj) {
    const int64_t proj_blocks = ceil_div(expand_width(*proj), kExpandCols);
    if (block < proj_blocks) break;
    block -= proj_blocks;
    v_begin += proj->a.num_rows;
  }
  const int64_t first = s.row_begin + item / blocks * kExpandBlockRows;
  const int64_t last = min64(first + kExpandBlockRows, s.row_end);
  const int64_t width = expand_width(*proj);
  int64_t col_begin = block * kExpandCols;
  const int64_t col_end = min64(col_begin + kExpandCols, width);
  const int64_t chunk_cols = proj->b.num_rows == 0 ? width : chunk_width(proj->b);
  const bool stream = s.row_end - s.row_begin == 1;
  const int64_t num_tiles = ceil_div(last - first, kExpandRows);
  for (int64_t col = col_begin; stream && col < col_end;) {
    const int64_t chunk = col / chunk_cols, cols = (min64((chunk + 1) * chunk_cols, col_end) - col) / 32 * 32;
    if (cols == 0) break;
    for (int64_t row = first; row < last; ++row)
      expand_stream<T>(*proj, s.base, args.v + row * args.v_stride + v_begin,
                       args.y + row * args.y_stride + proj->out_begin + col, col, chunk, cols);
    col += cols;
    col_begin = col;
  }
  int64_t row = first;
  for (int64_t t = 0; t < num_tiles; ++t) {
    const int64_t rows = (last - first) / num_tiles + (t < (last - first) % num_tiles ? 1 : 0);
    const float* v = args.v + row * args.v_stride + v_begin;
    float* y = args.y + row * args.y_stride + proj->out_begin;
    for (int64_t col = col_begin; col < col_end; col += 32) {
      const int64_t chunk = col / chunk_cols;
      expand_for<T>(rows)(*proj, s.base, v, args.v_stride, y + col, args.y_stride, col, chunk,
                          min64(32, col_end - col));
    }
    row += rows;
  }
}

template <class CountFn, class ItemFn>
void run_items(const LoraArgs& args, ThreadPool& pool, CountFn count_items, ItemFn run_item) {
  int64_t total = 0;
  for (size_t s = 0; s < args.segments.size(); ++s) total += count_items(args.segments.data()[s]);
  parallel(pool, total, 64, [&](int64_t begin, int64_t end) {
    Cursor<CountFn> cursor(args, count_items);
    for (int64_t item = begin; item < end; ++item) {
      const LoraSegment& segment = cursor.seek(item);
      const bool more = cursor.segment + 1 < static_cast<int64_t>(args.segments.size());
      run_item(args, segment, item - cursor.first, more ? &segment + 1 : nullptr);
    }
  });
}

// Sums over the ranks, as shrink would have scaled them.
void scale_sums(const LoraArgs& args) {
  for (size_t i = 0; i < args.segments.size(); ++i) {
    const LoraSegment& s = args.segments.data()[i];
    for (int64_t row = s.row_begin; row < s.row_end; ++row) {
      float* v = args.v + row * args.v_stride;
      for (size_t p = 0; p < s.projs.size(); ++p) {
        const LoraProj& proj = s.projs.data()[p];
        for (int32_t r = 0; r < proj.a.num_rows; ++r, ++v) *v = proj.scaling * *v;
      }
    }
  }
}

template <class Act>
void run_phases(const LoraArgs& args, ThreadPool& pool) {
  if (args.phase == LoraPhase::kExpand)
    scale_sums(args);
  else
    run_items(args, pool, num_shrink_items, shrink_item<Act>);
  if (args.phase != LoraPhase::kShrink) run_items(args, pool, num_expand_items, expand_item<typename Act::T>);
}

}  // namespace

void lora(const LoraArgs& args, ThreadPool& pool) {
  if (args.segments.empty()) return;
  if (args.act == DType::kBF16)
    run_phases<Bf16Act>(args, pool);
  else
    run_phases<F32Act>(args, pool);
}

}  // namespace lk::LK_ISA_NAMESPACE
