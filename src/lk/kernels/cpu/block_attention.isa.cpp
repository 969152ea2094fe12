// SPDX-License-Identifier: Apache-2.0
// Attention over whole sequences and its backward pass, blocked over queries and keys (Dao, arXiv:2307.08691).
//
// Query vectors (rows x the heads that share a kv head) lie in the lanes, kLanes of them at a time, keys in the rows:
// S^T = K Q^T. So softmax needs no sums across lanes, and every product is gemm's tile over rows that lie in memory as
// they are and a small panel made on the way:
//   forward     S^T = K Q^T      O^T += V^T P^T
//   backward    S^T = K Q^T      dP^T = V dO^T      dV += P^T dO      dK += dS^T Q      dQ^T += K^T dS^T
// In bf16 P, dS and dO are rounded for these products; softmax, D and all sums are f32.
//
// Keys are taken in blocks that start at multiples of kKeys, counted from the sequence's first row, and every output is
// one chain over keys or query vectors in ascending order in which what is masked is an exact zero. So a sequence's
// bits depend on the sequence alone.
#include "lk/kernels/cpu/gemm_tile.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kLanes = 64;  // two panels
constexpr int64_t kKeys = 64;
constexpr int64_t kForwardVectors = 512;  // of a work item of the forward pass: K and V are prepared for each
constexpr int64_t kBackwardVectors = 512, kBackwardKeys = 256;  // likewise, where a head is more than one item
constexpr float kNoScore = -1e30f;                              // the maximum of nothing
constexpr float kMinusInf = -__builtin_inff();

// Steps [0, num_steps) of 16 rows as vectors of 16 rows each: v[s] is step `step` + s of rows 0 .. 15. row(i): where
// row i lies, or null for zeros. A step is 4 bytes: two bf16 or one f32.
template <class RowAt>
LK_INLINE void turn_rows(const RowAt& row, int64_t step, int64_t num_steps, F32x16 (&v)[16]) {
  const int64_t count = min64(16, num_steps - step);
  LK_UNROLL
  for (int i = 0; i < 16; ++i) {
    const auto* from = reinterpret_cast<const float*>(row(i));
    v[i] = from == nullptr ? zero() : count == 16 ? load(from + step) : load_partial(from + step, count);
  }
  transpose(v);
}

// to[j][i] = rows[i][j], for num_rows rows and on to a multiple of 32 with zeros.
void transpose_rows(const uint16_t* rows, int64_t num_rows, int64_t width, uint16_t* to, int64_t to_stride) {
  for (int64_t first = 0; first < num_rows; first += 32) {
    for (int64_t step = 0; step < width / 2; step += 16) {
      F32x16 a[16], b[16];
      const auto row_at = [&](int64_t i) { return i < num_rows ? rows + i * width : nullptr; };
      turn_rows([&](int i) { return row_at(first + i); }, step, width / 2, a);
      turn_rows([&](int i) { return row_at(first + 16 + i); }, step, width / 2, b);
      for (int64_t s = 0; s < min64(16, width / 2 - step); ++s) {
        Pairs even = pairs_of(a[s]), odd = pairs_of(b[s]);
        deinterleave(even, odd);
        store_pairs(to + 2 * (step + s) * to_stride + first, even);
        store_pairs(to + (2 * (step + s) + 1) * to_stride + first, odd);
      }
    }
  }
}
void transpose_rows(const float* rows, int64_t num_rows, int64_t width, float* to, int64_t to_stride) {
  for (int64_t first = 0; first < ceil_div(num_rows, 32) * 32; first += 16) {
    for (int64_t step = 0; step < width; step += 16) {
      F32x16 v[16];
      turn_rows([&](int i) { return first + i < num_rows ? rows + (first + i) * width : nullptr; }, step, width, v);
      for (int64_t s = 0; s < min64(16, width - step); ++s) store(to + (step + s) * to_stride + first, v[s]);
    }
  }
}

// Two values of 16 columns, of an even row and the one after it, to their step of a panel.
LK_INLINE void store_step(Bf16Panels, char* panel, int64_t row, F32x16 even, F32x16 odd) {
  store_pairs(reinterpret_cast<uint16_t*>(panel + row / 2 * kStepBytes), round_to_pairs(even, odd));
}
LK_INLINE void store_step(F32Panels, char* panel, int64_t row, F32x16 even, F32x16 odd) {
  store(reinterpret_cast<float*>(panel + row * kStepBytes), even);
  store(reinterpret_cast<float*>(panel + (row + 1) * kStepBytes), odd);
}

// Pieces of the thread's scratch. Without memory it only counts.
struct Arena {
  std::byte* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t n) {
    T* place = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += ceil_div(n * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return place;
  }
};

// One kv head of one sequence.
template <class P>
struct Head {
  using T = typename P::X;
  const BlockAttention& in;
  int64_t begin, length;  // rows of the sequence
  int64_t kv_head, group, dim, steps;

  Head(const BlockAttention& a, const RowRange& rows, int64_t kv)
      : in(a),
        begin(rows.begin),
        length(rows.end - rows.begin),
        kv_head(kv),
        group(a.num_heads / a.num_kv_heads),
        dim(a.head_dim),
        steps(a.head_dim / P::kPerStep) {}

  int64_t padded_keys() const { return ceil_div(length, 32) * 32; }
  // Of a row of keys. A multiple of 4 KiB would put all rows into the same sets of L1.
  int64_t key_stride() const {
    return padded_keys() * static_cast<int64_t>(sizeof(T)) % 1024 == 0 ? padded_keys() + 32 : padded_keys();
  }
  int64_t row_of(int64_t vector) const { return begin + vector / group; }
  int64_t head_of(int64_t vector) const { return kv_head * group + vector % group; }
  const T* query(int64_t vector) const {
    return static_cast<const T*>(in.q) + row_of(vector) * in.q_stride + head_of(vector) * dim;
  }
  // Rows [first, first + num_rows) of the sequence's keys or values.
  void copy_rows(const void* from, int64_t stride, int64_t first, int64_t num_rows, T* to) const {
    const T* row = static_cast<const T*>(from) + (begin + first) * stride + kv_head * dim;
    for (int64_t i = 0; i < num_rows; ++i)
      __builtin_memcpy(to + i * dim, row + i * stride, static_cast<size_t>(dim) * sizeof(T));
  }
};

// kLanes query vectors from `first` on, `count` of them real.
struct Block {
  int64_t first, count, group, window;
  // The vectors of 16 lanes from `lane` on that attend to key `key` of the sequence: [from, to).
  LK_INLINE int64_t clamp(int64_t lane) { return min64(max64(lane, 0), 16); }
  int64_t from(int64_t key, int64_t lane) const { return clamp(key * group - first - lane); }
  int64_t to(int64_t key, int64_t lane) const {
    const int64_t end = window > 0 ? min64(first + count, (key + window) * group) : first + count;
    return clamp(end - first - lane);
  }
  int64_t first_row() const { return first / group; }
  int64_t last_row() const { return (first + count - 1) / group; }
  int64_t first_key() const { return window > 0 ? max64(0, first_row() + 1 - window) / kKeys * kKeys : 0; }
  // All lanes attend to all of these keys.
  bool full(int64_t key, int64_t num_keys) const {
    return count == kLanes && key + num_keys - 1 <= first_row() && (window == 0 || key + window > last_row());
  }
};

// Panels of 32 vectors each whose columns are vectors, row(i) or null: steps of `steps`.
template <class RowAt>
void make_columns(const RowAt& row, int64_t steps, char* panels) {
  for (int64_t lane = 0; lane < kLanes; lane += 16) {
    char* panel = panels + lane / 32 * steps * kStepBytes + lane % 32 * 4;
    for (int64_t step = 0; step < steps; step += 16) {
      F32x16 v[16];
      turn_rows([&](int i) { return row(lane + i); }, step, steps, v);
      for (int64_t s = 0; s < min64(16, steps - step); ++s)
        store(reinterpret_cast<float*>(panel + (step + s) * kStepBytes), v[s]);
    }
  }
}

// Panels of 32 dimensions each whose inner dimension is the vectors.
template <class RowAt>
void make_rows(Bf16Panels, const RowAt& row, int64_t dim, char* panels) {
  for (int64_t d = 0; d < dim; d += 32) {
    const int64_t dims = min64(32, dim - d);
    for (int64_t lane = 0; lane < kLanes; lane += 2) {
      const auto load_row = [&](const uint16_t* p) {
        return p == nullptr ? broadcast_pair(0) : dims == 32 ? load_pairs(p + d) : load_pairs_partial(p + d, dims);
      };
      Pairs even = load_row(row(lane)), odd = load_row(row(lane + 1));
      interleave(even, odd);
      auto* step = reinterpret_cast<uint16_t*>(panels + (d / 32 * kLanes / 2 + lane / 2) * kStepBytes);
      store_pairs(step, even);
      store_pairs(step + 32, odd);
    }
  }
}
template <class RowAt>
void make_rows(F32Panels, const RowAt& row, int64_t dim, char* panels) {
  for (int64_t d = 0; d < dim; d += 16) {
    const int64_t dims = min64(16, dim - d);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float* p = row(lane);
      store(reinterpret_cast<float*>(panels + (d / 32 * kLanes + lane) * kStepBytes + d % 32 * 4),
            p == nullptr ? zero() : load_partial(p + d, dims));
    }
  }
}

// 16 vectors of an output that lies transposed, `columns` [dim][32] from lane 0 on: to(i) is where vector i goes.
template <class To>
void store_vectors(const float* columns, int64_t dim, F32x16 factor, const To& to) {
  for (int64_t d = 0; d < dim; d += 16) {
    F32x16 v[16];
    const int64_t dims = min64(16, dim - d);
    LK_UNROLL
    for (int i = 0; i < 16; ++i) v[i] = i < dims ? mul(load(columns + (d + i) * 32), factor) : zero();
    transpose(v);
    LK_UNROLL
    for (int i = 0; i < 16; ++i) {
      if (auto* place = to(i)) store_from_f32(place + d, v[i], dims);
    }
  }
}

// --- Forward

template <class P>
struct Forward {
  using T = typename P::X;
  T *k, *v_transposed;  // [keys][dim], [dim][key_stride]
  char *q, *p;          // panels: columns of q; P^T of one panel of lanes
  float *score, *out;   // [kKeys][32]; [2][dim][32]
  Forward(const Head<P>& head, int64_t keys, Arena& arena) {
    k = arena.take<T>(keys * head.dim);
    v_transposed = arena.take<T>(head.dim * head.key_stride());
    q = arena.take<char>(2 * head.steps * kStepBytes);
    p = arena.take<char>(kKeys / P::kPerStep * kStepBytes);
    score = arena.take<float>(kKeys * 32);
    out = arena.take<float>(2 * head.dim * 32);
  }
};

// Scores of 16 lanes x num_keys -> probabilities against the new maximum, as a panel; what was summed up is rescaled.
template <class P, bool kMasked>
void softmax_lanes(const Block& block, int64_t lane, int64_t key, int64_t num_keys, float scale, float* score,
                   F32x16& max_now, F32x16& sum, char* panel, float* out, int64_t dim) {
  const F32x16 scales = broadcast(scale);
  F32x16 highest = max_now;
  for (int64_t i = 0; i < num_keys; ++i) {
    F32x16 s = mul(load(score + 32 * i), scales);
    if (kMasked) s = keep_lanes(s, block.from(key + i, lane), block.to(key + i, lane), kMinusInf);
    store(score + 32 * i, s);
    highest = max(s, highest);
  }
  if (lanes_above(highest, max_now) != 0) {
    const F32x16 rescale = exp(sub(max_now, highest));
    sum = mul(sum, rescale);
    for (int64_t d = 0; d < dim; ++d) store(out + 32 * d, mul(load(out + 32 * d), rescale));
    max_now = highest;
  }
  for (int64_t i = 0; i < num_keys; i += 2) {
    const F32x16 even = exp(sub(load(score + 32 * i), max_now));
    sum = add(sum, even);
    F32x16 odd = zero();
    if (i + 1 < num_keys) {
      odd = exp(sub(load(score + 32 * (i + 1)), max_now));
      sum = add(sum, odd);
    }
    store_step(P(), panel, i, even, odd);
  }
}

template <class P>
void forward_block(const BlockAttentionArgs& args, const Head<P>& head, const Forward<P>& f, int64_t first,
                   int64_t num_vectors) {
  using T = typename P::X;
  const Block block = {first, num_vectors, head.group, args.in.window};
  const int64_t dim = head.dim, end = block.last_row() + 1, key_stride = head.key_stride();
  make_columns([&](int64_t i) { return i < block.count ? head.query(first + i) : nullptr; }, head.steps, f.q);
  for (int64_t d = 0; d < 2 * dim * 32; d += 16) store(f.out + d, zero());
  F32x16 max_now[4], sum[4];
  for (int i = 0; i < 4; ++i) {
    max_now[i] = broadcast(kNoScore);
    sum[i] = zero();
  }
  const int64_t panels = ceil_div(block.count, 32);
  for (int64_t key = block.first_key(); key < end; key += kKeys) {
    const int64_t keys = min64(kKeys, end - key);
    const bool full = block.full(key, keys);
    for (int64_t panel = 0; panel < panels; ++panel) {
      float* out = f.out + panel * dim * 32;
      multiply_panel<P>(f.k + key * dim, dim, keys, dim, f.q + panel * head.steps * kStepBytes, f.score, 32, 32, false);
      for (int half = 0; half < 2; ++half) {
        const int64_t lane = 32 * panel + 16 * half;
        const auto softmax = full ? softmax_lanes<P, false> : softmax_lanes<P, true>;
        softmax(block, lane, key, keys, args.in.scale, f.score + 16 * half, max_now[lane / 16], sum[lane / 16],
                f.p + 64 * half, out + 16 * half, dim);
      }
      multiply_panel<P>(f.v_transposed + key, key_stride, dim, ceil_div(keys, 2) * 2, f.p, out, 32, 32, true);
    }
  }
  for (int64_t lane = 0; lane < block.count; lane += 16) {
    const F32x16 total = sum[lane / 16];
    alignas(64) float sums[16], highest[16];
    store(sums, total);
    store(highest, max_now[lane / 16]);
    for (int64_t i = 0; i < min64(16, block.count - lane); ++i) {
      const int64_t vector = first + lane + i;
      args.log_sum_exp[head.row_of(vector) * args.in.num_heads + head.head_of(vector)] =
          highest[i] + __builtin_logf(sums[i]);
    }
    store_vectors(f.out + lane / 32 * dim * 32 + lane % 32, dim, div(broadcast(1.0f), total), [&](int i) {
      const int64_t vector = first + lane + i;
      return lane + i < block.count
                 ? static_cast<T*>(args.y) + head.row_of(vector) * args.y_stride + head.head_of(vector) * dim
                 : nullptr;
    });
  }
}

// Rows [row_begin, row_end) of the sequence, relative to it.
template <class P>
void forward_rows(const BlockAttentionArgs& args, const Head<P>& head, int64_t row_begin, int64_t row_end) {
  Arena count = {nullptr};
  (void)Forward<P>(head, row_end, count);
  Arena arena = {thread_scratch(count.used)};
  const Forward<P> f(head, row_end, arena);
  head.copy_rows(args.in.v, args.in.v_stride, 0, row_end, f.k);
  transpose_rows(f.k, row_end, head.dim, f.v_transposed, head.key_stride());
  head.copy_rows(args.in.k, args.in.k_stride, 0, row_end, f.k);
  for (int64_t first = row_begin * head.group; first < row_end * head.group; first += kLanes)
    forward_block<P>(args, head, f, first, min64(kLanes, row_end * head.group - first));
}

// --- Backward

// What a work item computes: gradients of query vectors, or of keys and values, or all of a head's at once, which saves
// scores and dP of the second pass. The chains are the same.
struct BackwardPart {
  bool queries, keys;
  int64_t first_vector, end_vector;  // multiples of kLanes, or the end
  int64_t first_key, end_key;        // multiples of kKeys, or the end; from 0 on with `queries`
};

template <class P>
struct Backward {
  using T = typename P::X;
  T *k, *v, *k_transposed;  // of the part's keys
  T* dy;                    // [kLanes][dim], rounded
  char *q_columns, *dy_columns, *q_rows, *dy_rows;
  char* ds_panels;    // dS^T, [2] panels
  T *p, *ds;          // P^T, dS^T: [kKeys][kLanes]
  float *score, *dp;  // [kKeys][32]
  float* dq;          // [2][dim][32]
  Backward(const Head<P>& head, const BackwardPart& part, Arena& arena) {
    const int64_t num_keys = part.end_key - part.first_key;
    const int64_t dim = head.dim, row_panels = ceil_div(dim, 32) * (kLanes / P::kPerStep) * kStepBytes;
    k = arena.take<T>(num_keys * dim);
    v = arena.take<T>(num_keys * dim);
    k_transposed = arena.take<T>(part.queries ? dim * head.key_stride() : 0);
    dy = arena.take<T>(kLanes * dim);
    q_columns = arena.take<char>(2 * head.steps * kStepBytes);
    dy_columns = arena.take<char>(2 * head.steps * kStepBytes);
    q_rows = arena.take<char>(row_panels);
    dy_rows = arena.take<char>(row_panels);
    ds_panels = arena.take<char>(2 * kKeys / P::kPerStep * kStepBytes);
    p = arena.take<T>(kKeys * kLanes);
    ds = arena.take<T>(kKeys * kLanes);
    score = arena.take<float>(kKeys * 32);
    dp = arena.take<float>(kKeys * 32);
    dq = arena.take<float>(2 * dim * 32);
  }
};

// P and dS of 16 lanes x num_keys, from their scores and dP.
template <class P, bool kMasked>
void score_gradients(const Block& block, int64_t lane, int64_t key, int64_t num_keys, float scale, const float* score,
                     const float* dp, F32x16 log_sum_exp, F32x16 dot_y, typename P::X* p_out, typename P::X* ds_out,
                     char* ds_panel) {
  const F32x16 scales = broadcast(scale);
  const auto one = [&](int64_t i) __attribute__((always_inline)) {
    F32x16 p = exp(sub(mul(load(score + 32 * i), scales), log_sum_exp));
    F32x16 ds = mul(mul(p, sub(load(dp + 32 * i), dot_y)), scales);
    if (kMasked) {
      const int64_t from = block.from(key + i, lane), to = block.to(key + i, lane);
      p = keep_lanes(p, from, to, 0.0f);
      ds = keep_lanes(ds, from, to, 0.0f);
    }
    store_from_f32(p_out + i * kLanes, p);
    store_from_f32(ds_out + i * kLanes, ds);
    return ds;
  };
  for (int64_t i = 0; i < num_keys; i += 2) {
    const F32x16 even = one(i), odd = i + 1 < num_keys ? one(i + 1) : zero();
    store_step(P(), ds_panel, i, even, odd);
  }
}

template <class P>
void backward_block(const BlockAttentionBackwardArgs& args, const Head<P>& head, const BackwardPart& part,
                    const Backward<P>& b, int64_t first) {
  using T = typename P::X;
  const BlockAttention& in = args.in;
  const Block block = {first, min64(kLanes, head.length * head.group - first), head.group, in.window};
  const int64_t dim = head.dim, end = min64(block.last_row() + 1, part.end_key), key_stride = head.key_stride();
  const int64_t row_panel = kLanes / P::kPerStep * kStepBytes, ds_panel = kKeys / P::kPerStep * kStepBytes;
  alignas(64) float log_sum_exp[kLanes] = {}, dot_y[kLanes] = {};
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t row = head.row_of(first + i), column = head.head_of(first + i) * dim;
    const float* dy = args.dy + row * args.dy_stride + column;
    const T* y = static_cast<const T*>(args.y) + row * args.y_stride + column;
    T* rounded = b.dy + i * dim;
    F32x16 sum = zero();
    for (int64_t d = 0; d < dim; d += 16) {
      const int64_t dims = min64(16, dim - d);
      store_from_f32(rounded + d, load_partial(dy + d, dims), dims);
      sum = fma(load_as_f32(rounded + d, dims), load_as_f32(y + d, dims), sum);
    }
    dot_y[i] = reduce_add(sum);
    log_sum_exp[i] = args.log_sum_exp[row * in.num_heads + head.head_of(first + i)];
  }
  const auto q_at = [&](int64_t i) { return i < block.count ? head.query(first + i) : nullptr; };
  const auto dy_at = [&](int64_t i) { return i < block.count ? static_cast<const T*>(b.dy) + i * dim : nullptr; };
  make_columns(q_at, head.steps, b.q_columns);
  make_columns(dy_at, head.steps, b.dy_columns);
  make_rows(P(), q_at, dim, b.q_rows);
  make_rows(P(), dy_at, dim, b.dy_rows);

  bool resume = false;
  for (int64_t key = max64(block.first_key(), part.first_key); key < end; key += kKeys, resume = true) {
    const int64_t keys = min64(kKeys, end - key);
    const bool full = block.full(key, keys);
    const int64_t at = (key - part.first_key) * dim;
    for (int64_t panel = 0; panel < 2; ++panel) {
      const int64_t columns = panel * head.steps * kStepBytes;
      multiply_panel<P>(b.k + at, dim, keys, dim, b.q_columns + columns, b.score, 32, 32, false);
      multiply_panel<P>(b.v + at, dim, keys, dim, b.dy_columns + columns, b.dp, 32, 32, false);
      for (int half = 0; half < 2; ++half) {
        const int64_t lane = 32 * panel + 16 * half;
        const auto gradients = full ? score_gradients<P, false> : score_gradients<P, true>;
        gradients(block, lane, key, keys, in.scale, b.score + 16 * half, b.dp + 16 * half, load(log_sum_exp + lane),
                  load(dot_y + lane), b.p + lane, b.ds + lane, b.ds_panels + panel * ds_panel + 64 * half);
      }
      if (!part.queries) continue;
      multiply_panel<P>(b.k_transposed + key, key_stride, dim, ceil_div(keys, 2) * 2, b.ds_panels + panel * ds_panel,
                        b.dq + panel * dim * 32, 32, 32, resume);
    }
    if (!part.keys) continue;
    const int64_t row = head.begin + key, column = head.kv_head * dim;
    for (int64_t d = 0; d < dim; d += 32) {
      multiply_panel<P>(b.p, kLanes, keys, kLanes, b.dy_rows + d / 32 * row_panel,
                        args.dv + row * args.dv_stride + column + d, args.dv_stride, dim - d, true);
      multiply_panel<P>(b.ds, kLanes, keys, kLanes, b.q_rows + d / 32 * row_panel,
                        args.dk + row * args.dk_stride + column + d, args.dk_stride, dim - d, true);
    }
  }
  for (int64_t lane = 0; part.queries && lane < block.count; lane += 16)
    store_vectors(b.dq + lane / 32 * dim * 32 + lane % 32, dim, broadcast(1.0f), [&](int i) {
      const int64_t vector = first + lane + i;
      return lane + i < block.count ? args.dq + head.row_of(vector) * args.dq_stride + head.head_of(vector) * dim
                                    : nullptr;
    });
}

template <class P>
void backward_part(const BlockAttentionBackwardArgs& args, const Head<P>& head, const BackwardPart& part) {
  Arena count = {nullptr};
  (void)Backward<P>(head, part, count);
  Arena arena = {thread_scratch(count.used)};
  const Backward<P> b(head, part, arena);
  const int64_t num_keys = part.end_key - part.first_key;
  head.copy_rows(args.in.k, args.in.k_stride, part.first_key, num_keys, b.k);
  head.copy_rows(args.in.v, args.in.v_stride, part.first_key, num_keys, b.v);
  if (part.queries) transpose_rows(b.k, num_keys, head.dim, b.k_transposed, head.key_stride());
  for (int64_t key = part.first_key; part.keys && key < part.end_key; ++key) {
    for (int64_t d = 0; d < head.dim; ++d) {
      args.dk[(head.begin + key) * args.dk_stride + head.kv_head * head.dim + d] = 0;
      args.dv[(head.begin + key) * args.dv_stride + head.kv_head * head.dim + d] = 0;
    }
  }
  for (int64_t first = part.first_vector; first < part.end_vector; first += kLanes)
    backward_block<P>(args, head, part, b, first);
}

// Calls run(sequence, part) for parts [0, parts(sequence)) of all sequences on the threads, those of the longest
// sequences (by powers of two) first, so that the last ones to be taken are short.
template <class Parts, class Run>
void for_parts(const BlockAttention& in, ThreadPool& pool, const Parts& parts, const Run& run) {
  const auto length_class = [](const RowRange& s) {
    return 31 - __builtin_clz(static_cast<uint32_t>(s.end - s.begin) | 1u);
  };
  const RowRange* sequences = in.sequences.data();
  const auto num_sequences = static_cast<int64_t>(in.sequences.size());
  int64_t total = 0;
  int top = 0;
  for (int64_t s = 0; s < num_sequences; ++s) {
    total += parts(sequences[s]);
    if (length_class(sequences[s]) > top) top = length_class(sequences[s]);
  }
  parallel(pool, total, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (int c = top; c >= 0 && first < end; --c) {
      for (int64_t s = 0; s < num_sequences; ++s) {
        if (length_class(sequences[s]) != c) continue;
        const int64_t count = parts(sequences[s]);
        for (int64_t item = max64(begin, first); item < min64(end, first + count); ++item)
          run(sequences[s], item - first);
        first += count;
      }
    }
  });
}

template <class P>
void run_forward(const BlockAttentionArgs& args, ThreadPool& pool) {
  const int64_t part_rows = ceil_div(kForwardVectors, args.in.num_heads / args.in.num_kv_heads);
  const auto row_parts = [&](const RowRange& s) { return ceil_div(s.end - s.begin, part_rows); };
  for_parts(
      args.in, pool, [&](const RowRange& s) { return row_parts(s) * args.in.num_kv_heads; },
      [&](const RowRange& s, int64_t part) {
        // Late rows, which see more keys, come first.
        const int64_t first = (row_parts(s) - 1 - part / args.in.num_kv_heads) * part_rows;
        forward_rows<P>(args, Head<P>(args.in, s, part % args.in.num_kv_heads), first,
                        min64(first + part_rows, s.end - s.begin));
      });
}

// All of a head's gradients in one item, unless a few long sequences would leave threads without work: then keys and
// queries apart, seven products instead of five.
template <class P>
void run_backward(const BlockAttentionBackwardArgs& args, ThreadPool& pool) {
  const BlockAttention& in = args.in;
  const int64_t group = in.num_heads / in.num_kv_heads, kv_heads = in.num_kv_heads;
  const RowRange* sequences = in.sequences.data();
  int64_t longest = 0, total = 0;  // about what an item costs
  for (size_t s = 0; s < in.sequences.size(); ++s) {
    const int64_t length = sequences[s].end - sequences[s].begin;
    longest = max64(longest, length * length);
    total += length * length * kv_heads;
  }
  if (5 * longest * pool_size(pool) <= 7 * total) {
    for_parts(
        in, pool, [&](const RowRange&) { return kv_heads; },
        [&](const RowRange& s, int64_t kv_head) {
          const int64_t length = s.end - s.begin;
          backward_part<P>(args, Head<P>(in, s, kv_head), {true, true, 0, length * group, 0, length});
        });
    return;
  }
  const auto key_parts = [](const RowRange& s) { return ceil_div(s.end - s.begin, kBackwardKeys); };
  const auto query_parts = [&](const RowRange& s) { return ceil_div((s.end - s.begin) * group, kBackwardVectors); };
  for_parts(
      in, pool, [&](const RowRange& s) { return (key_parts(s) + query_parts(s)) * kv_heads; },
      [&](const RowRange& s, int64_t item) {
        const Head<P> head(in, s, item % kv_heads);
        const int64_t length = s.end - s.begin, part = item / kv_heads;
        if (part < key_parts(s)) {  // early keys first, which more rows see
          const int64_t first = part * kBackwardKeys, end = min64(first + kBackwardKeys, length);
          const int64_t end_row = in.window > 0 ? min64(length, end - 1 + in.window) : length;
          return backward_part<P>(args, head,
                                  {false, true, first * group / kLanes * kLanes, end_row * group, first, end});
        }
        // Late rows first, which see more keys.
        const int64_t first = (query_parts(s) - 1 - (part - key_parts(s))) * kBackwardVectors;
        const int64_t end = min64(first + kBackwardVectors, length * group);
        backward_part<P>(args, head, {true, false, first, end, 0, (end - 1) / group + 1});
      });
}

// A whole sequence in one item needs the most, of the backward pass or, where heads are small, of the forward one.
template <class P>
int64_t scratch_bytes(const BlockAttention& in) {
  int64_t most = 0;
  for (size_t s = 0; s < in.sequences.size(); ++s) {
    const RowRange& rows = in.sequences.data()[s];
    const int64_t length = rows.end - rows.begin;
    const Head<P> head(in, rows, 0);
    Arena forward = {nullptr}, backward = {nullptr};
    (void)Forward<P>(head, length, forward);
    (void)Backward<P>(head, {true, true, 0, length * head.group, 0, length}, backward);
    most = max64(most, max64(forward.used, backward.used));
  }
  return most;
}

}  // namespace

int64_t block_attention_scratch(const BlockAttention& in) {
  return in.act == DType::kBF16 ? scratch_bytes<Bf16Panels>(in) : scratch_bytes<F32Panels>(in);
}

void block_attention(const BlockAttentionArgs& args, ThreadPool& pool) {
  if (args.in.sequences.empty()) return;
  if (args.in.act == DType::kBF16)
    run_forward<Bf16Panels>(args, pool);
  else
    run_forward<F32Panels>(args, pool);
}

void block_attention_backward(const BlockAttentionBackwardArgs& args, ThreadPool& pool) {
  if (args.in.sequences.empty()) return;
  if (args.in.act == DType::kBF16)
    run_backward<Bf16Panels>(args, pool);
  else
    run_backward<F32Panels>(args, pool);
}

}  // namespace lk::LK_ISA_NAMESPACE
