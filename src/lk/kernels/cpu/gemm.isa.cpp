// SPDX-License-Identifier: Apache-2.0
// y = x w^T over packed panels of 32 output columns.
//
// Row determinism: an output element is one accumulator lane that starts at zero and takes the inner dimension in
// ascending order (pairs for bf16), whatever the tile height. The tiling is free; the arithmetic is not. With
// num_shards the inner dimension is so many of these chains, which a tile adds up in their binary tree while they are
// in L1.
//
// A thread takes a run of panels; per panel it walks the rows in tiles of nearly equal height, so that the panel comes
// from memory once and stays in L2 for the remaining tiles, while those tiles prefetch the next panel. Where a panel
// passes from one page to the next (PackedWeight), a tile stops, leaves its sums in y and takes them up again, which is
// exact: the arithmetic is that of a matrix in one block.
#include "lk/kernels/cpu/gemm_tile.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kCachedBytes = int64_t{5} << 18;  // of the 2 MiB of an L2 where it is used

// Steps of a panel that are read, and whose prefetches lie, without passing from one page to another.
struct Stretch {
  const char* w;
  int64_t num_steps;
  Prefetch ahead;
};
// Those from byte `at` of the panels on, `num_steps` at most, with prefetches `near_bytes` ahead and at byte `far`.
Stretch stretch_at(const PackedWeight& weight, int64_t total_bytes, int64_t at, int64_t num_steps, int64_t near_bytes,
                   int64_t far, int lines) {
  const PanelBytes own = panel_bytes_at(weight, at);
  num_steps = min64(num_steps, own.size / kStepBytes);
  // A place to prefetch from. It moves by `group_bytes` with each group, and the stretch ends where its page does.
  const auto place = [&](int64_t byte, int64_t group_bytes) {
    const PanelBytes bytes = panel_bytes_at(weight, min64(byte, total_bytes - kStepBytes));  // past the end: anything
    if (group_bytes > 0 && byte + bytes.size < total_bytes)
      num_steps = min64(num_steps, ceil_div(bytes.size, group_bytes) * kGroup);
    return reinterpret_cast<const char*>(bytes.data);
  };
  const auto* w = reinterpret_cast<const char*>(own.data);
  const char* const near_place = place(at + near_bytes, kGroup * kStepBytes);
  const char* const far_place = place(far, 64 * lines);
  return {w, num_steps, {near_place - w, far_place, lines}};
}

// One block of the inner dimension that lies in two pages.
LK_INLINE const char* block_at(const PackedWeight& weight, int64_t at, int64_t num_steps, char* block) {
  for (int64_t done = 0, bytes = num_steps * kStepBytes; done < bytes;) {
    const PanelBytes own = panel_bytes_at(weight, at + done);
    const int64_t part = min64(own.size, bytes - done);
    __builtin_memcpy(block + done, own.data, static_cast<size_t>(part));
    done += part;
  }
  return block;
}

// The sums of a tile's shards that wait for the other half of their tree: a stack whose first entry is y itself.
template <int kMaxRows>
class ShardSums {
 public:
  ShardSums(float* y, int64_t y_stride, int64_t rows, int64_t cols)
      : y_(y), y_stride_(y_stride), rows_(rows), cols_(cols) {}
  struct Place {
    float* data;
    int64_t stride;
  };
  Place next() { return place(depth_); }  // where the next shard's sums go
  // Those of shard `shard` lie there: adds up what is complete now.
  void push(int64_t shard) {
    for (int64_t bits = shard; (bits & 1) != 0; bits >>= 1, --depth_) add_to(place(depth_ - 1), place(depth_).data);
    ++depth_;
  }

 private:
  Place place(int64_t depth) { return depth == 0 ? Place{y_, y_stride_} : Place{rest_[depth - 1], kPanelCols}; }
  void add_to(Place sum, const float* more) const {
    for (int64_t row = 0; row < rows_; ++row, sum.data += sum.stride, more += kPanelCols) {
      for (int64_t col = 0; col < cols_; col += 16) {
        float* to = sum.data + col;
        const int64_t cols = cols_ - col;
        if (cols >= 16)
          store(to, add(load(to), load(more + col)));
        else
          store_partial(to, add(load_partial(to, cols), load_partial(more + col, cols)), cols);
      }
    }
  }

  float* const y_;
  const int64_t y_stride_, rows_, cols_;
  int64_t depth_ = 0;
  alignas(64) float rest_[3][kMaxRows * kPanelCols];  // log2(kMaxShards)
};

// More rows than L2 holds beside a panel: panels in groups that stay in L2, so that the rows come from memory once for
// each group (Tiles::kManyPanels). Requires: the weight is in one block.
template <class P>
void run_groups(const GemmArgs& args, ThreadPool& pool) {
  using T = Tiles<P>;
  using X = typename P::X;
  const int64_t n = args.w.n, k = args.w.k, panel_bytes = args.w.panel_bytes(), num_panels = ceil_div(n, kPanelCols);
  const int64_t num_tiles = num_row_tiles<P>(args.num_rows, args.x_stride), shard_cols = k / args.num_shards;
  const int64_t fair = num_panels / (4 * pool_size(pool));  // so that the threads end together
  const int64_t group = max64(1, min64(kCachedBytes / panel_bytes, fair));
  const int64_t room_bytes = T::kMaxRows * T::gathered_stride(k) * static_cast<int64_t>(sizeof(X));
  parallel(pool, ceil_div(num_panels, group), 64, [&](int64_t begin, int64_t end) {
    auto* room = reinterpret_cast<X*>(thread_scratch(room_bytes));
    typename T::Registers registers;
    for (int64_t item = begin; item < end; ++item) {
      for_row_tiles(args.num_rows, num_tiles, [&](int64_t, int64_t row, int64_t rows) {
        registers.hold(rows);
        const TileRows<P> x =
            T::gather(rows, static_cast<const X*>(args.x) + row * args.x_stride, args.x_stride, k, room);
        for (int64_t panel = item * group; panel < min64(num_panels, (item + 1) * group); ++panel) {
          const int64_t col = panel * kPanelCols, cols = min64(kPanelCols, n - col);
          const char* w = static_cast<const char*>(args.w.data) + panel * panel_bytes;
          ShardSums<T::kMaxRows> sums(args.y + row * args.y_stride + col, args.y_stride, rows, cols);
          for (int64_t shard = 0; shard < args.num_shards; ++shard) {
            const int64_t first = shard * shard_cols;
            const auto to = sums.next();
            T::multiply(rows, x.data + first, x.stride, shard_cols, w + first / P::kPerStep * kStepBytes, to.data,
                        to.stride, cols, {4096, nullptr, 0}, false);
            sums.push(shard);
          }
        }
      });
    }
  });
}

template <class P>
void run(const GemmArgs& args, ThreadPool& pool) {
  using T = Tiles<P>;
  const auto* x = static_cast<const typename P::X*>(args.x);
  const int64_t n = args.w.n, k = args.w.k, num_rows = args.num_rows;
  const int64_t panel_bytes = ceil_div(k, P::kPerStep) * kStepBytes;
  const int64_t num_panels = ceil_div(n, kPanelCols), total_bytes = num_panels * panel_bytes;
  const int64_t num_tiles = num_row_tiles<P>(num_rows, args.x_stride);
  const int64_t shard_cols = k / args.num_shards;
  constexpr int kGroupLines = kGroup * kStepBytes / 64;
  // One pass: run ahead in the same stream; into L2 first when the product takes longer than L1 keeps lines in flight.
  // More passes: each fetches its share of the next panel.
  constexpr int64_t kAheadBytes = 4096, kNearBytes = 2048;
  const int lines = static_cast<int>(ceil_div(kGroupLines, num_tiles));
  const int64_t pass_bytes = lines * 64 * (ceil_div(k, P::kPerStep) / kGroup);

  if constexpr (T::kManyPanels) {
    if (args.w.pages == nullptr && num_rows * k * static_cast<int64_t>(sizeof(*x)) > kCachedBytes)
      return run_groups<P>(args, pool);
  }
  parallel(pool, num_panels, 64, [&](int64_t begin, int64_t end) {
    typename T::Registers registers;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first_byte = panel * panel_bytes, first_col = panel * kPanelCols;
      for_row_tiles(num_rows, num_tiles, [&](int64_t t, int64_t row, int64_t rows) {
        registers.hold(rows);
        int64_t near_bytes = kAheadBytes, far = first_byte;
        int far_lines = 0;
        if (num_tiles > 1) {
          near_bytes = kNearBytes;
          far += panel_bytes + t * pass_bytes;
          if (t * pass_bytes < panel_bytes && panel + 1 < num_panels) far_lines = lines;
        } else if (rows > 4) {
          near_bytes = kAheadBytes / 4;
          far += 2 * kAheadBytes;
          far_lines = kGroupLines;
        }
        ShardSums<T::kMaxRows> sums(args.y + row * args.y_stride + first_col, args.y_stride, rows,
                                    min64(kPanelCols, n - first_col));
        for (int64_t shard = 0, done = 0; shard < args.num_shards; ++shard) {
          const int64_t first = done, end = first + shard_cols;
          const auto to = sums.next();
          while (done < end) {
            const int64_t at = first_byte + done / P::kPerStep * kStepBytes;
            const Stretch stretch =
                stretch_at(args.w, total_bytes, at, ceil_div(end - done, P::kPerStep), near_bytes, far, far_lines);
            int64_t part = min64(end - done, stretch.num_steps * P::kPerStep);
            if (part < end - done) part -= part % T::kInner;
            const char* w = stretch.w;
            Prefetch ahead = stretch.ahead;
            alignas(64) char block[T::kInner / P::kPerStep * kStepBytes];
            if (part == 0) {
              part = min64(end - done, T::kInner);
              w = block_at(args.w, at, ceil_div(part, P::kPerStep), block);
              ahead = {0, nullptr, 0};
            }
            for (int64_t half = 0; half < kHalves; ++half) {
              const int64_t col = half * 16;
              if (first_col + col >= n) break;
              T::multiply(rows, x + row * args.x_stride + done, args.x_stride, part, w + 64 * half, to.data + col,
                          to.stride, n - first_col - col, ahead, done > first);
            }
            done += part;
            far += ceil_div(part, P::kPerStep) / kGroup * 64 * far_lines;
          }
          sums.push(shard);
        }
      });
    }
  });
}

}  // namespace

void gemm(const GemmArgs& args, ThreadPool& pool) {
  if (args.num_rows == 0 || args.w.n == 0) return;
  switch (args.w.format) {
    case WeightFormat::kBF16Panels:
      return run<Bf16Panels>(args, pool);
    case WeightFormat::kF32Panels:
      return run<F32Panels>(args, pool);
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
