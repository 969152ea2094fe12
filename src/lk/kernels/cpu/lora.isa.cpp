// SPDX-License-Identifier: Apache-2.0
// Adds the adapters' products to y, segment by segment, in two phases:
//   shrink: v[row][r] = scaling * sum_i x[row][i] a[r][i]   for the rank rows of all projections of the segment
//   expand: y[row][j] = (y + sum_r v[row][r] b[r][j] + out_bias[j]) * out_scale[j]
// Source of the segment layout: S-LoRA, arXiv:2311.03285.
//
// Row determinism: v is one vector accumulator per (row, rank row) that takes the columns in ascending order, across
// chunks, and is reduced in a fixed tree; the sum over r is one f32 chain in ascending order. Tiles only share loads.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

template <class T>
LK_INLINE const T* row_chunk(const LoraMatrix& m, const std::byte* base, int64_t row, int64_t chunk) {
  return reinterpret_cast<const T*>(base + m.row_offsets[row * m.num_chunks + chunk]);
}
LK_INLINE int64_t chunk_width(const LoraMatrix& m) { return m.num_chunks == 1 ? m.width : m.chunk_cols; }

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

// ---- shrink -----------------------------------------------------------------------------------------------------

constexpr int kShrinkRows = kNumVectors >= 32 ? 4 : 2;   // x kShrinkRanks accumulators
constexpr int kShrinkRanks = kNumVectors >= 32 ? 4 : 2;
constexpr int64_t kShrinkBlockRows = 32;  // rows of x that stay in L2 while all rank rows pass

struct Bf16Act {
  using T = uint16_t;
  using V = Pairs;
  static constexpr int64_t kStep = 32;
  LK_INLINE V load(const T* p) { return load_pairs(p); }
  LK_INLINE V load(const T* p, int64_t n) { return load_pairs_partial(p, n); }
  LK_INLINE F32x16 mac(F32x16 acc, V a, V x) { return dot_bf16(acc, a, x); }
};
struct F32Act {
  using T = float;
  using V = F32x16;
  static constexpr int64_t kStep = 16;
  LK_INLINE V load(const T* p) { return LK_ISA_NAMESPACE::load(p); }
  LK_INLINE V load(const T* p, int64_t n) { return load_partial(p, n); }
  LK_INLINE F32x16 mac(F32x16 acc, V a, V x) { return fma(a, x, acc); }
};

// kRows rows of x times kRanks rank rows from r on; next_r: the rank rows to prefetch, or r when there are none.
template <class P, int kRows, int kRanks>
void shrink_tile(const typename P::T* x, int64_t x_stride, const LoraMatrix& a, const std::byte* base, int64_t r,
                 int64_t next_r, float scaling, float* v, int64_t v_stride) {
  using T = typename P::T;
  F32x16 acc[kRows][kRanks];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) acc[row][rank] = zero();
  }
  const int64_t chunk_cols = chunk_width(a);
  for (int64_t chunk = 0; chunk < a.num_chunks; ++chunk) {
    const T* ar[kRanks];
    const T* ahead[kRanks];
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) {
      ar[rank] = row_chunk<T>(a, base, r + rank, chunk);
      ahead[rank] = row_chunk<T>(a, base, min64(next_r + rank, a.num_rows - 1), chunk);
    }
    const int64_t begin = chunk * chunk_cols, cols = min64(chunk_cols, a.width - begin);
    const T* xc = x + begin;
    int64_t i = 0;
    for (; i + P::kStep <= cols; i += P::kStep) {
      typename P::V av[kRanks];
      LK_UNROLL
      for (int rank = 0; rank < kRanks; ++rank) {
        av[rank] = P::load(ar[rank] + i);
        if (kRows <= 2) prefetch(ahead[rank] + i);
      }
      LK_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const typename P::V xv = P::load(xc + row * x_stride + i);
        LK_UNROLL
        for (int rank = 0; rank < kRanks; ++rank) acc[row][rank] = P::mac(acc[row][rank], av[rank], xv);
      }
    }
    if (i < cols) {
      for (int row = 0; row < kRows; ++row) {
        const typename P::V xv = P::load(xc + row * x_stride + i, cols - i);
        for (int rank = 0; rank < kRanks; ++rank)
          acc[row][rank] = P::mac(acc[row][rank], P::load(ar[rank] + i, cols - i), xv);
      }
    }
  }
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) v[row * v_stride + rank] = scaling * reduce_add(acc[row][rank]);
  }
}

template <class P>
using ShrinkFn = void (*)(const typename P::T*, int64_t, const LoraMatrix&, const std::byte*, int64_t, int64_t, float,
                          float*, int64_t);
template <class P>
ShrinkFn<P> shrink_for(int64_t rows, int64_t ranks) {
#define LK_FN(rows, ranks) \
  shrink_tile<P, rows <= kShrinkRows ? rows : kShrinkRows, ranks <= kShrinkRanks ? ranks : kShrinkRanks>
  static constexpr ShrinkFn<P> kTable[4][4] = {
      {LK_FN(1, 1), LK_FN(1, 2), LK_FN(1, 3), LK_FN(1, 4)},
      {LK_FN(2, 1), LK_FN(2, 2), LK_FN(2, 3), LK_FN(2, 4)},
      {LK_FN(3, 1), LK_FN(3, 2), LK_FN(3, 3), LK_FN(3, 4)},
      {LK_FN(4, 1), LK_FN(4, 2), LK_FN(4, 3), LK_FN(4, 4)}};
#undef LK_FN
  return kTable[rows - 1][ranks - 1];
}

int64_t num_rank_tiles(const LoraSegment& s) {
  int64_t tiles = 0;
  for (size_t p = 0; p < s.projs.size(); ++p) tiles += ceil_div(s.projs.data()[p].a.num_rows, kShrinkRanks);
  return tiles;
}
int64_t num_shrink_items(const LoraSegment& s) {
  return ceil_div(s.row_end - s.row_begin, kShrinkBlockRows) * num_rank_tiles(s);
}

template <class P>
void shrink_item(const LoraArgs& args, const LoraSegment& s, int64_t item) {
  const int64_t tiles = num_rank_tiles(s);
  int64_t tile = item % tiles, v_begin = 0;
  const LoraProj* proj = s.projs.data();
  for (;; ++proj) {
    const int64_t proj_tiles = ceil_div(proj->a.num_rows, kShrinkRanks);
    if (tile < proj_tiles) break;
    tile -= proj_tiles;
    v_begin += proj->a.num_rows;
  }
  const int64_t r = tile * kShrinkRanks, ranks = min64(kShrinkRanks, proj->a.num_rows - r);
  const int64_t next_r = r + kShrinkRanks < proj->a.num_rows ? r + kShrinkRanks : r;
  const int64_t first = s.row_begin + item / tiles * kShrinkBlockRows;
  const int64_t last = min64(first + kShrinkBlockRows, s.row_end);
  const auto* x = static_cast<const typename P::T*>(args.x);
  for (int64_t row = first; row < last; row += kShrinkRows) {
    const int64_t rows = min64(kShrinkRows, last - row);
    shrink_for<P>(rows, ranks)(x + row * args.x_stride, args.x_stride, proj->a, s.base, r, next_r, proj->scaling,
                               args.v + row * args.v_stride + v_begin + r, args.v_stride);
  }
}

// ---- expand -----------------------------------------------------------------------------------------------------

constexpr int64_t kExpandCols = 512;       // columns of one item: r = 16 rank rows of them stay in L1
constexpr int64_t kExpandBlockRows = 64;
constexpr int kExpandRows = kNumVectors >= 32 ? 8 : kNumVectors >= 8 ? 2 : 1;
constexpr int kWideVecs = kNumVectors >= 32 ? 8 : kNumVectors >= 8 ? 4 : 2;  // of the tile for one row

// kRows rows x kVecs vectors from column col of the projection on, all inside chunk `chunk`. num_cols < 16 kVecs only
// when kVecs <= 2; ahead: the distance in columns to prefetch, 0 for none.
template <class T, int kRows, int kVecs>
void expand_tile(const LoraProj& p, const std::byte* base, const float* v, int64_t v_stride, float* y, int64_t y_stride,
                 int64_t col, int64_t chunk, int64_t num_cols, int64_t ahead) {
  F32x16 acc[kRows][kVecs];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) acc[row][vec] = zero();
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
      if (kRows == 1 && ahead != 0) {
        LK_UNROLL
        for (size_t byte = 0; byte < 16 * kVecs * sizeof(T); byte += 64)
          prefetch(reinterpret_cast<const char*>(b + ahead) + byte);
      }
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
  // A DoRA row may be cut into other chunks than b.
  const auto extra = [&](const LoraMatrix& m, int64_t c, int64_t n) {
    const int64_t width = chunk_width(m);
    return load_partial(row_chunk<float>(m, base, 0, c / width) + c % width, n);
  };
  LK_UNROLL
  for (int vec = 0; vec < kVecs; ++vec) {
    const int64_t cols = min64(16, num_cols - 16 * vec);
    if (cols <= 0) break;
    const bool has_bias = p.out_bias.num_rows != 0, has_scale = p.out_scale.num_rows != 0;
    const F32x16 bias = has_bias ? extra(p.out_bias, col + 16 * vec, cols) : zero();
    const F32x16 scale = has_scale ? extra(p.out_scale, col + 16 * vec, cols) : zero();
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      float* out = y + row * y_stride + 16 * vec;
      F32x16 sum = add(cols == 16 ? load(out) : load_partial(out, cols), acc[row][vec]);
      if (has_bias) sum = add(sum, bias);
      if (has_scale) sum = mul(sum, scale);
      if (cols == 16) store(out, sum);
      else store_partial(out, sum, cols);
    }
  }
}

template <class T>
using ExpandFn = void (*)(const LoraProj&, const std::byte*, const float*, int64_t, float*, int64_t, int64_t, int64_t,
                          int64_t, int64_t);
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
void expand_item(const LoraArgs& args, const LoraSegment& s, int64_t item) {
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
  const int64_t col_begin = block * kExpandCols, col_end = min64(col_begin + kExpandCols, width);
  const int64_t chunk_cols = proj->b.num_rows == 0 ? width : chunk_width(proj->b);
  const int64_t num_tiles = ceil_div(last - first, kExpandRows);
  int64_t row = first;
  for (int64_t t = 0; t < num_tiles; ++t) {
    const int64_t rows = (last - first) / num_tiles + (t < (last - first) % num_tiles ? 1 : 0);
    const float* v = args.v + row * args.v_stride + v_begin;
    float* y = args.y + row * args.y_stride + proj->out_begin;
    for (int64_t col = col_begin; col < col_end;) {
      const int64_t chunk = col / chunk_cols;
      const int64_t left = min64((chunk + 1) * chunk_cols, col_end) - col;
      if (rows == 1 && left >= 16 * kWideVecs) {
        // Past the last column block the prefetch touches what follows in the page: harmless.
        expand_tile<T, 1, kWideVecs>(*proj, s.base, v, args.v_stride, y + col, args.y_stride, col, chunk,
                                     16 * kWideVecs, 16 * kWideVecs);
        col += 16 * kWideVecs;
      } else {
        const int64_t cols = min64(32, left);
        expand_for<T>(rows)(*proj, s.base, v, args.v_stride, y + col, args.y_stride, col, chunk, cols, 0);
        col += cols;
      }
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
      run_item(args, segment, item - cursor.first);
    }
  });
}

}  // namespace

void lora(const LoraArgs& args, ThreadPool& pool) {
  if (args.segments.empty()) return;
  if (args.act == DType::kBF16) {
    run_items(args, pool, num_shrink_items, shrink_item<Bf16Act>);
    run_items(args, pool, num_expand_items, expand_item<uint16_t>);
  } else {
    run_items(args, pool, num_shrink_items, shrink_item<F32Act>);
    run_items(args, pool, num_expand_items, expand_item<float>);
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
