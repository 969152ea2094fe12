// SPDX-License-Identifier: Apache-2.0
// Causal attention over the paged cache, one pass with the online softmax (Milakov and Gimelshein, arXiv:1805.02867).
//
// A work item is a tile of up to kTile query vectors (query rows x the heads that share a kv head), so that K and V are
// read once per tile. Positions are taken in blocks of kBlockPages pages that start at absolute multiples.
//
// Row determinism: a query vector's state (max, lane sums, output) changes only in blocks that hold a position it
// attends to; inside, its scores are one chain over head_dim, masked lanes add exact zeros to the lane sums, and the
// output takes only the tokens it attends to, in ascending order. So neither the other vectors of the tile, nor how a
// prompt was cut, nor what lies in free slots has any effect.
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"
#include "lk/tensor/limits.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int kTile = kNumVectors >= 32 ? 12 : kNumVectors >= 8 ? 4 : 2;
constexpr int kValueRows = kNumVectors >= 32 ? 6 : kNumVectors >= 8 ? 2 : 1;  // x kValueVecs: tile of P V
constexpr int kValueVecs = kNumVectors >= 32 ? 4 : 2;
constexpr int64_t kBlockPages = 4;
constexpr int64_t kBlock = kBlockPages * kPageTokens;
static_assert(kMaxHeadDim % 16 == 0, "vectors of the last dimensions stay inside the arrays below");
constexpr float kMinusInf = -__builtin_inff();

// The element types of the two modes. A K step is one vector of 16 tokens: a pair of dimensions, or one.
struct Bf16Kv {
  using T = uint16_t;
  using Q = uint32_t;
  static constexpr int64_t kDims = 2;
  LK_INLINE F32x16 mac(F32x16 acc, const std::byte* k, Q q) {
    return dot_bf16(acc, load_pairs(reinterpret_cast<const uint16_t*>(k)), broadcast_pair(q));
  }
};
struct F32Kv {
  using T = float;
  using Q = float;
  static constexpr int64_t kDims = 1;
  LK_INLINE F32x16 mac(F32x16 acc, const std::byte* k, Q q) {
    return fma(load(reinterpret_cast<const float*>(k)), broadcast(q), acc);
  }
};

template <class P>
struct State {
  int count = 0;         // query vectors in the tile
  int64_t begin[kTile];  // positions a vector attends to: [begin, end)
  int64_t end[kTile];
  float max[kTile];
  alignas(64) typename P::Q q[kMaxHeadDim / P::kDims][kTile];
  alignas(64) float sum[kTile][16];
  alignas(64) float score[kTile][kBlock];  // then the probabilities
  alignas(64) float out[kTile][kMaxHeadDim];
};

template <class P, int kRows>
void score_page(State<P>& st, int64_t page_idx, const std::byte* k, const std::byte* ahead_k, const std::byte* ahead_v,
                int64_t steps, float scale) {
  F32x16 acc[kRows];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) acc[row] = zero();
  for (int64_t d = 0; d < steps; ++d) {
    prefetch_l2(ahead_k + 64 * d);  // a page's K and V of one head are `steps` cache lines each
    prefetch_l2(ahead_v + 64 * d);
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) acc[row] = P::mac(acc[row], k + 64 * d, st.q[d][row]);
  }
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) store(&st.score[row][page_idx * kPageTokens], mul(acc[row], broadcast(scale)));
}

template <class P, int kRows, int kVecs>
LK_INLINE void add_values(State<P>& st, int first, int64_t page_idx, const typename P::T* v, int64_t head_dim,
                          int64_t dim) {
  F32x16 acc[kRows][kVecs];
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) acc[row][vec] = load(&st.out[first + row][dim + 16 * vec]);
  }
  for (int64_t t = 0; t < kPageTokens; ++t) {
    F32x16 vv[kVecs];
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) vv[vec] = load_as_f32(v + t * head_dim + dim + 16 * vec);
    LK_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const F32x16 p = broadcast(st.score[first + row][page_idx * kPageTokens + t]);
      LK_UNROLL
      for (int vec = 0; vec < kVecs; ++vec) acc[row][vec] = fma(p, vv[vec], acc[row][vec]);
    }
  }
  LK_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LK_UNROLL
    for (int vec = 0; vec < kVecs; ++vec) store(&st.out[first + row][dim + 16 * vec], acc[row][vec]);
  }
}

// A page that every vector of the tile attends to in full.
template <class P, int kRows>
void value_page(State<P>& st, int first, int64_t page_idx, const typename P::T* v, int64_t head_dim) {
  int64_t dim = 0;
  for (; dim + 16 * kValueVecs <= head_dim; dim += 16 * kValueVecs)
    add_values<P, kRows, kValueVecs>(st, first, page_idx, v, head_dim, dim);
  for (; dim + 16 <= head_dim; dim += 16) add_values<P, kRows, 1>(st, first, page_idx, v, head_dim, dim);
}

// Tokens [t_begin, t_end) of a page for one vector, dimensions [dim_begin, head_dim).
template <class P>
void value_tokens(State<P>& st, int row, int64_t page_idx, int64_t t_begin, int64_t t_end, const typename P::T* v,
                  int64_t head_dim, int64_t dim_begin) {
  const float* p = &st.score[row][page_idx * kPageTokens];
  for (int64_t dim = dim_begin; dim < head_dim; dim += 16) {
    const int64_t dims = min64(16, head_dim - dim);
    F32x16 acc = load(&st.out[row][dim]);
    for (int64_t t = t_begin; t < t_end; ++t) {
      const typename P::T* vt = v + t * head_dim + dim;
      acc = fma(broadcast(p[t]), dims == 16 ? load_as_f32(vt) : load_as_f32(vt, dims), acc);
    }
    store(&st.out[row][dim], acc);
  }
}

// Scores of one block -> probabilities relative to the new maximum; rescales what was summed so far.
template <class P>
void softmax_block(State<P>& st, int row, int64_t block_begin, int64_t head_dim) {
  const int64_t begin = st.begin[row] - block_begin, end = st.end[row] - block_begin;
  if (end <= 0 || begin >= kBlock) return;
  F32x16 s[kBlockPages];
  LK_UNROLL
  for (int64_t page = 0; page < kBlockPages; ++page) {
    s[page] = load(&st.score[row][page * kPageTokens]);
    const int64_t lo = begin - page * kPageTokens, hi = end - page * kPageTokens;
    if (lo > 0 || hi < kPageTokens)
      s[page] = keep_lanes(s[page], min64(max64(lo, 0), 16), min64(max64(hi, 0), 16), kMinusInf);
  }
  const float block_max = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
  F32x16 sum = load(st.sum[row]);
  if (block_max > st.max[row]) {
    const F32x16 rescale = exp(broadcast(st.max[row] - block_max));
    st.max[row] = block_max;
    sum = mul(sum, rescale);
    for (int64_t dim = 0; dim < head_dim; dim += 16) store(&st.out[row][dim], mul(load(&st.out[row][dim]), rescale));
  }
  const F32x16 max_now = broadcast(st.max[row]);
  LK_UNROLL
  for (int64_t page = 0; page < kBlockPages; ++page) {
    const F32x16 p = exp(sub(s[page], max_now));
    store(&st.score[row][page * kPageTokens], p);
    sum = add(sum, p);
  }
  store(st.sum[row], sum);
}

template <class P>
using ScoreFn = void (*)(State<P>&, int64_t, const std::byte*, const std::byte*, const std::byte*, int64_t, float);
template <class P>
using ValueFn = void (*)(State<P>&, int, int64_t, const typename P::T*, int64_t);
template <class P>
ScoreFn<P> score_for(int count) {
#define LK_FN(rows) score_page<P, rows <= kTile ? rows : kTile>
  static constexpr ScoreFn<P> kTable[] = {LK_FN(1), LK_FN(2), LK_FN(3), LK_FN(4),  LK_FN(5),  LK_FN(6),
                                          LK_FN(7), LK_FN(8), LK_FN(9), LK_FN(10), LK_FN(11), LK_FN(12)};
#undef LK_FN
  return kTable[count - 1];
}
template <class P>
ValueFn<P> value_for(int64_t count) {
#define LK_FN(rows) value_page<P, rows <= kValueRows ? rows : kValueRows>
  static constexpr ValueFn<P> kTable[] = {LK_FN(1), LK_FN(2), LK_FN(3), LK_FN(4), LK_FN(5), LK_FN(6)};
#undef LK_FN
  return kTable[count - 1];
}

void load_q(State<Bf16Kv>& st, int row, const float* q, int64_t head_dim) {
  alignas(64) uint16_t rounded[kMaxHeadDim];
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t dims = min64(16, head_dim - d);
    store_bf16(rounded + d, load_partial(q + d, dims));
  }
  for (int64_t d = 0; d < head_dim / 2; ++d) __builtin_memcpy(&st.q[d][row], rounded + 2 * d, 4);
}
void load_q(State<F32Kv>& st, int row, const float* q, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; ++d) st.q[d][row] = q[d];
}

// Query vectors [first, first + count) of the sequence under one kv head; vector = row * group + head in the group.
template <class P>
void run_tile(const AttentionArgs& args, const AttentionSeq& seq, int64_t kv_head, int64_t first, int64_t count) {
  using T = typename P::T;
  const KvLayer& kv = args.kv;
  const int64_t head_dim = kv.head_dim, group = args.num_heads / kv.num_kv_heads;
  const int64_t steps = head_dim / P::kDims, head_bytes = kPageTokens * head_dim * static_cast<int64_t>(sizeof(T));
  State<P> st;
  st.count = static_cast<int>(count);
  for (int i = 0; i < st.count; ++i) {
    const int64_t row = (first + i) / group, head = kv_head * group + (first + i) % group;
    st.end[i] = seq.first_position + row + 1;
    st.begin[i] = args.window > 0 ? max64(0, st.end[i] - args.window) : 0;
    st.max[i] = kMinusInf;
    store(st.sum[i], zero());
    for (int64_t d = 0; d < head_dim; d += 16) store(&st.out[i][d], zero());
    load_q(st, i, args.q + (seq.row_begin + row) * args.q_stride + head * head_dim, head_dim);
  }
  // Positions ascend with i, so the ends of the tile are those of its first and last vector.
  const int64_t tile_begin = st.begin[0], tile_end = st.end[count - 1];
  const int64_t all_begin = st.begin[count - 1], all_end = st.end[0];  // attended to by every vector
  const int64_t first_page = tile_begin / kPageTokens, end_page = ceil_div(tile_end, kPageTokens);
  const ScoreFn<P> score = score_for<P>(st.count);
  const auto page_k = [&](int64_t page) {
    return kv.base + seq.block_table[page] * kv.page_stride + kv_head * head_bytes;
  };

  for (int64_t block = first_page / kBlockPages; block * kBlockPages < end_page; ++block) {
    const int64_t block_begin = block * kBlock;
    const int64_t page_begin = max64(first_page, block * kBlockPages);
    const int64_t page_end = min64(end_page, (block + 1) * kBlockPages);
    for (int64_t page = page_begin; page < page_end; ++page) {
      const std::byte* k = page_k(page);
      const std::byte* ahead = page_k(min64(page + 2, end_page - 1));
      score(st, page % kBlockPages, k, ahead, ahead + kv.v_offset, steps, args.scale);
    }
    // Lanes of pages outside [page_begin, page_end) hold old values; softmax_block masks them.
    for (int row = 0; row < st.count; ++row) softmax_block(st, row, block_begin, head_dim);
    for (int64_t page = page_begin; page < page_end; ++page) {
      const T* v = reinterpret_cast<const T*>(page_k(page) + kv.v_offset);
      const int64_t page_idx = page % kBlockPages, position = page * kPageTokens;
      int64_t done_dims = 0;
      if (all_begin <= position && position + kPageTokens <= all_end) {
        const int64_t tiles = ceil_div(count, kValueRows);
        int64_t row = 0;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t rows = count / tiles + (t < count % tiles ? 1 : 0);
          value_for<P>(rows)(st, static_cast<int>(row), page_idx, v, head_dim);
          row += rows;
        }
        done_dims = head_dim / 16 * 16;
        if (done_dims == head_dim) continue;
      }
      for (int row = 0; row < st.count; ++row)
        value_tokens(st, row, page_idx, max64(st.begin[row] - position, 0), min64(st.end[row] - position, kPageTokens),
                     v, head_dim, done_dims);
    }
  }
  for (int i = 0; i < st.count; ++i) {
    const int64_t row = (first + i) / group, head = kv_head * group + (first + i) % group;
    T* y = static_cast<T*>(args.y) + (seq.row_begin + row) * args.y_stride + head * head_dim;
    const F32x16 inverse = broadcast(1.0f / reduce_add(load(st.sum[i])));
    for (int64_t d = 0; d < head_dim; d += 16)
      store_from_f32(y + d, mul(load(&st.out[i][d]), inverse), min64(16, head_dim - d));
  }
}

// Items in the order of their length class (power of two of the context), long ones first, so that the last items to
// be taken are short. Within a sequence late rows, which see more positions, come first.
struct Items {
  const AttentionArgs& args;
  int64_t group, tile;
  int top_class = 0, low_class = 63;

  explicit Items(const AttentionArgs& a) : args(a), group(a.num_heads / a.kv.num_kv_heads), tile(kTile) {
    for (size_t s = 0; s < args.seqs.size(); ++s) {
      const int c = length_class(args.seqs.data()[s]);
      if (c > top_class) top_class = c;
      if (c < low_class) low_class = c;
    }
  }
  static int length_class(const AttentionSeq& seq) {
    return 63 - __builtin_clzll(static_cast<uint64_t>(seq.first_position + seq.row_end - seq.row_begin) | 1);
  }
  int64_t num_tiles(const AttentionSeq& seq) const { return ceil_div((seq.row_end - seq.row_begin) * group, tile); }
  int64_t num_items() const {
    int64_t total = 0;
    for (size_t s = 0; s < args.seqs.size(); ++s) total += num_tiles(args.seqs.data()[s]) * args.kv.num_kv_heads;
    return total;
  }
};

template <class P>
void run(const AttentionArgs& args, ThreadPool& pool) {
  const Items items(args);
  parallel(pool, items.num_items(), 1, [&](int64_t begin, int64_t end) {
    int64_t first_item = 0;
    for (int c = items.top_class; c >= items.low_class; --c) {
      for (size_t s = 0; s < args.seqs.size(); ++s) {
        const AttentionSeq& seq = args.seqs.data()[s];
        if (Items::length_class(seq) != c) continue;
        const int64_t tiles = items.num_tiles(seq), count = tiles * args.kv.num_kv_heads;
        for (int64_t item = max64(begin, first_item); item < min64(end, first_item + count); ++item) {
          const int64_t vectors = (seq.row_end - seq.row_begin) * items.group;
          const int64_t tile = tiles - 1 - (item - first_item) / args.kv.num_kv_heads;
          const int64_t first = vectors * tile / tiles, last = vectors * (tile + 1) / tiles;
          run_tile<P>(args, seq, (item - first_item) % args.kv.num_kv_heads, first, last - first);
        }
        first_item += count;
        if (first_item >= end) return;
      }
    }
  });
}

template <class T>
void store_rows(const StoreKvArgs& args, int64_t begin, int64_t end) {
  const KvLayer& kv = args.kv;
  constexpr int64_t kDims = sizeof(T) == 2 ? 2 : 1;  // dimensions per 4 bytes of a K slot
  const int64_t head_dim = kv.head_dim;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t page = args.slots[row] / kPageTokens, slot = args.slots[row] % kPageTokens;
    std::byte* base = kv.base + page * kv.page_stride;
    for (int64_t head = 0; head < kv.num_kv_heads; ++head) {
      const float* k = args.k + row * args.k_stride + head * head_dim;
      const float* v = args.v + row * args.v_stride + head * head_dim;
      T* k_out = reinterpret_cast<T*>(base) + head * head_dim * kPageTokens + slot * kDims;
      T* v_out = reinterpret_cast<T*>(base + kv.v_offset) + (head * kPageTokens + slot) * head_dim;
      for (int64_t d = 0; d < head_dim; d += 16) {
        const int64_t dims = min64(16, head_dim - d);
        alignas(64) T lanes[16];
        store_from_f32(lanes, load_partial(k + d, dims));
        for (int64_t i = 0; i < dims; i += kDims)
          __builtin_memcpy(k_out + (d + i) * kPageTokens, lanes + i, kDims * sizeof(T));
        store_from_f32(v_out + d, load_partial(v + d, dims), dims);
      }
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args, ThreadPool& pool) {
  if (args.seqs.empty()) return;
  if (args.kv.dtype == DType::kBF16)
    run<Bf16Kv>(args, pool);
  else
    run<F32Kv>(args, pool);
}

void store_kv(const StoreKvArgs& args, ThreadPool& pool) {
  parallel(pool, args.num_rows, args.num_rows <= 8 ? 8 : 16, [&](int64_t begin, int64_t end) {
    if (args.kv.dtype == DType::kBF16)
      store_rows<uint16_t>(args, begin, end);
    else
      store_rows<float>(args, begin, end);
  });
}

}  // namespace lk::LK_ISA_NAMESPACE
