// SPDX-License-Identifier: Apache-2.0
// The shrink phase of lora.isa.cpp, which alone includes it: v = scaling * x a^T.
#pragma once

#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

template <class T>
LK_INLINE const T* row_chunk(const LoraMatrix& m, const std::byte* base, int64_t row, int64_t chunk) {
  return reinterpret_cast<const T*>(base + m.row_offsets[row * m.num_chunks + chunk]);
}
LK_INLINE int64_t chunk_width(const LoraMatrix& m) { return m.num_chunks == 1 ? m.width : m.chunk_cols; }

constexpr int kShrinkRows = kNumVectors >= 32 ? 4 : 2;  // x kShrinkRanks accumulators
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

// Rank rows of the projection (and segment) that the thread reads after the present ones.
struct NextRows {
  const LoraMatrix* a;
  const std::byte* base;
  int64_t r;
};
constexpr int64_t kAheadBytes = 1024;  // per rank row

// kRows rows of x times kRanks rank rows from r on.
template <class P, int kRows, int kRanks>
void shrink_tile(const typename P::T* x, int64_t x_stride, const LoraMatrix& a, const std::byte* base, int64_t r,
                 const NextRows& next, float scaling, int64_t num_shards, float* v, int64_t v_stride) {
  using T = typename P::T;
  F32x16 acc[kRows][kRanks];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) acc[row][rank] = zero();
  }
  // Sums of shards that wait for the other half of their tree; what a shard completes is in the last one.
  float waiting[4][kRows][kRanks];
  const int64_t shard_cols = a.width / num_shards;
  int64_t shard = 0;
  const auto end_shard = [&]() __attribute__((always_inline)) {
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      LK_UNROLL
      for (int rank = 0; rank < kRanks; ++rank) {
        float sum = reduce_add(acc[row][rank]);
        acc[row][rank] = zero();
        int depth = __builtin_popcountll(static_cast<unsigned long long>(shard));
        for (int64_t bits = shard; (bits & 1) != 0; bits >>= 1) sum = waiting[--depth][row][rank] + sum;
        waiting[depth][row][rank] = sum;
      }
    }
    ++shard;
  };
  const int64_t chunk_cols = chunk_width(a);
  for (int64_t chunk = 0; chunk < a.num_chunks; ++chunk) {
    const T* ar[kRanks];
    const T* ahead[kRanks];
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) {
      ar[rank] = row_chunk<T>(a, base, r + rank, chunk);
      ahead[rank] = chunk + 1 < a.num_chunks
                        ? row_chunk<T>(a, base, r + rank, chunk + 1)
                        : row_chunk<T>(*next.a, next.base, min64(next.r + rank, next.a->num_rows - 1), 0);
    }
    const int64_t begin = chunk * chunk_cols, cols = min64(chunk_cols, a.width - begin);
    const T* xc = x + begin;
    constexpr int64_t kAhead = kAheadBytes / static_cast<int64_t>(sizeof(T));
    int64_t i = 0;
    const auto step = [&](const T* const* from, int64_t at) __attribute__((always_inline)) {
      typename P::V av[kRanks];
      LK_UNROLL
      for (int rank = 0; rank < kRanks; ++rank) {
        av[rank] = P::load(ar[rank] + i);
        prefetch_l2(from[rank] + at);
      }
      LK_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const typename P::V xv = P::load(xc + row * x_stride + i);
        LK_UNROLL
        for (int rank = 0; rank < kRanks; ++rank) acc[row][rank] = P::mac(acc[row][rank], av[rank], xv);
      }
    };
    const int64_t wrap = max64(0, cols - kAhead);
    // To the chunk's end, with a stop where a shard ends: always after whole steps.
    for (;;) {
      const int64_t to_shard = (shard + 1) * shard_cols - begin, stop = min64(cols, to_shard);
      for (; i + P::kStep <= stop && i + P::kStep + kAhead <= cols; i += P::kStep) step(ar, i + kAhead);
      for (; i + P::kStep <= stop; i += P::kStep) step(ahead, i - wrap);
      if (to_shard > cols || shard + 1 == num_shards) break;
      end_shard();
      if (stop == cols) break;
    }
    if (i < cols) {
      for (int row = 0; row < kRows; ++row) {
        const typename P::V xv = P::load(xc + row * x_stride + i, cols - i);
        for (int rank = 0; rank < kRanks; ++rank)
          acc[row][rank] = P::mac(acc[row][rank], P::load(ar[rank] + i, cols - i), xv);
      }
    }
  }
  end_shard();
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int rank = 0; rank < kRanks; ++rank) v[row * v_stride + rank] = scaling * waiting[0][row][rank];
  }
}

template <class P>
using ShrinkFn = void (*)(const typename P::T*, int64_t, const LoraMatrix&, const std::byte*, int64_t, const NextRows&,
                          float, int64_t, float*, int64_t);
template <class P>
ShrinkFn<P> shrink_for(int64_t rows, int64_t ranks) {
#define LK_FN(rows, ranks) \
  shrink_tile<P, rows <= kShrinkRows ? rows : kShrinkRows, ranks <= kShrinkRanks ? ranks : kShrinkRanks>
  static constexpr ShrinkFn<P> kTable[4][4] = {{LK_FN(1, 1), LK_FN(1, 2), LK_FN(1, 3), LK_FN(1, 4)},
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

// The projection and first rank row of tile number `tile` of a segment; v_begin: where its v starts.
struct RankTile {
  const LoraProj* proj;
  int64_t r, v_begin;
};
RankTile find_rank_tile(const LoraSegment& s, int64_t tile) {
  int64_t v_begin = 0;
  for (const LoraProj* proj = s.projs.data();; ++proj) {
    const int64_t tiles = ceil_div(proj->a.num_rows, kShrinkRanks);
    if (tile < tiles) return {proj, tile * kShrinkRanks, v_begin};
    tile -= tiles;
    v_begin += proj->a.num_rows;
  }
}

template <class P>
void shrink_item(const LoraArgs& args, const LoraSegment& s, int64_t item, const LoraSegment* next_segment) {
  const int64_t tiles = num_rank_tiles(s);
  const auto [proj, r, v_begin] = find_rank_tile(s, item % tiles);
  NextRows next = {&proj->a, s.base, r};
  if (item % tiles + 1 < tiles) {
    const RankTile tile = find_rank_tile(s, item % tiles + 1);
    next = {&tile.proj->a, s.base, tile.r};
  } else if (next_segment != nullptr && num_rank_tiles(*next_segment) > 0) {
    const RankTile tile = find_rank_tile(*next_segment, 0);
    next = {&tile.proj->a, next_segment->base, tile.r};
  }
  const int64_t ranks = min64(kShrinkRanks, proj->a.num_rows - r);
  const int64_t first = s.row_begin + item / tiles * kShrinkBlockRows;
  const int64_t last = min64(first + kShrinkBlockRows, s.row_end);
  const auto* x = static_cast<const typename P::T*>(args.x);
  const float scaling = args.phase == LoraPhase::kShrink ? 1.0f : proj->scaling;
  for (int64_t row = first; row < last; row += kShrinkRows) {
    const int64_t rows = min64(kShrinkRows, last - row);
    shrink_for<P>(rows, ranks)(x + row * args.x_stride, args.x_stride, proj->a, s.base, r, next, scaling,
                               args.num_shards, args.v + row * args.v_stride + v_begin + r, args.v_stride);
  }
}

}  // namespace
}  // namespace lk::LK_ISA_NAMESPACE
