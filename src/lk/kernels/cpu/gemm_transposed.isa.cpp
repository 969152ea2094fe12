// SPDX-License-Identifier: Apache-2.0
// y[m, i] = sum_n x[m, n] w[n, i] from the panels that gemm reads: the gradient of its input.
//
// A thread owns input features i. It turns blocks of kBlockN outputs n x up to kPanels * 32 features of w into panels
// whose inner dimension is n, in scratch that stays in L2, and runs gemm's tiles over them. Turning a block costs about
// as much as its products with 8 rows of x.
#include "lk/kernels/cpu/gemm_tile.h"
#include "lk/kernels/cpu/isa.h"
#include "lk/kernels/cpu/simd.h"

namespace lk::LK_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlockN = 2048;  // a multiple of kPanelCols
constexpr int64_t kPanels = 4;     // turned at once, so that a tile's rows of x come from L3 once for all of them

// Panel `from` has the columns n .. n + 31 of w, one step of 128 bytes per kPerStep features. Writes the same 32 n of
// the features of the first num_steps steps, at most 32 features, in steps along n.
void turn(const std::byte* from, int64_t num_steps, Bf16Panels, char* to) {
  const auto* units = reinterpret_cast<const float*>(from);  // pairs of features
  LK_UNROLL
  for (int half = 0; half < 2; ++half) {
    F32x16 v[16];
    LK_UNROLL
    for (int s = 0; s < 16; ++s) v[s] = s < num_steps ? load(units + s * kPanelCols + 16 * half) : zero();
    transpose(v);  // v[n]: its 32 features
    LK_UNROLL
    for (int n = 0; n < 16; n += 2) {
      Pairs a = pairs_of(v[n]), b = pairs_of(v[n + 1]);
      interleave(a, b);
      char* step = to + (8 * half + n / 2) * kStepBytes;
      store_pairs(reinterpret_cast<uint16_t*>(step), a);
      store_pairs(reinterpret_cast<uint16_t*>(step + 64), b);
    }
  }
}
void turn(const std::byte* from, int64_t num_steps, F32Panels, char* to) {
  const auto* w = reinterpret_cast<const float*>(from);
  for (int64_t first = 0; first < 32; first += 16) {
    LK_UNROLL
    for (int half = 0; half < 2; ++half) {
      F32x16 v[16];
      LK_UNROLL
      for (int s = 0; s < 16; ++s)
        v[s] = first + s < num_steps ? load(w + (first + s) * kPanelCols + 16 * half) : zero();
      transpose(v);
      LK_UNROLL
      for (int n = 0; n < 16; ++n) store(reinterpret_cast<float*>(to + (16 * half + n) * kStepBytes) + first, v[n]);
    }
  }
}

template <class P>
void run(const GemmTransposedArgs& args, ThreadPool& pool) {
  using T = Tiles<P>;
  using X = typename P::X;
  const auto* x = static_cast<const X*>(args.x);
  const auto* w = static_cast<const std::byte*>(args.w.data);
  const int64_t n = args.w.n, k = args.w.k, num_steps = ceil_div(k, P::kPerStep);
  const int64_t panel_bytes = num_steps * kStepBytes;
  constexpr int64_t kColSteps = kPanelCols / P::kPerStep;  // of a source panel, for 32 features
  const int64_t num_blocks = ceil_div(k, kPanelCols);
  const int64_t group = min64(kPanels, max64(1, num_blocks / (4 * pool_size(pool))));
  const int64_t num_tiles = num_row_tiles<P>(args.num_rows, args.x_stride);
  constexpr int64_t kRoomBytes = T::kMaxRows * T::gathered_stride(kBlockN) * static_cast<int64_t>(sizeof(X));
  constexpr int64_t kTurnedBytes = kBlockN / P::kPerStep * kStepBytes;

  parallel(pool, ceil_div(num_blocks, group), 1, [&](int64_t begin, int64_t end) {
    // The near prefetch runs past the end.
    auto* turned = reinterpret_cast<char*>(thread_scratch(group * kTurnedBytes + 4096 + kRoomBytes));
    char* const room = turned + group * kTurnedBytes + 4096;
    typename T::Registers registers;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first_block = item * group, blocks = min64(group, num_blocks - first_block);
      for (int64_t first_n = 0; first_n < n; first_n += kBlockN) {
        const int64_t part = min64(kBlockN, n - first_n);
        for (int64_t at = 0; at < part; at += kPanelCols) {
          const std::byte* panel = w + (first_n + at) / kPanelCols * panel_bytes;
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t step = (first_block + b) * kColSteps;
            const std::byte* from = panel + step * kStepBytes;
            // The same features of the panel after the next one.
            if (at + 2 * kPanelCols < part)
              for (int64_t line = 0; line < kColSteps * kStepBytes; line += 64) prefetch(from + 2 * panel_bytes + line);
            turn(from, num_steps - step, P(), turned + b * kTurnedBytes + at / P::kPerStep * kStepBytes);
          }
        }
        for_row_tiles(args.num_rows, num_tiles, [&](int64_t, int64_t row, int64_t rows) {
          registers.hold(rows);
          const TileRows<P> tile =
              T::gather(rows, x + row * args.x_stride + first_n, args.x_stride, part, reinterpret_cast<X*>(room));
          for (int64_t b = 0; b < blocks; ++b) {
            for (int64_t half = 0; half < kHalves; ++half) {
              const int64_t col = (first_block + b) * kPanelCols + half * 16;
              if (col >= k) break;
              T::multiply(rows, tile.data, tile.stride, part, turned + b * kTurnedBytes + 64 * half,
                          args.y + row * args.y_stride + col, args.y_stride, k - col, {2048, nullptr, 0},
                          args.add || first_n > 0);
            }
          }
        });
      }
    }
  });
}

}  // namespace

void gemm_transposed(const GemmTransposedArgs& args, ThreadPool& pool) {
  if (args.num_rows == 0 || args.w.k == 0) return;
  switch (args.w.format) {
    case WeightFormat::kBF16Panels:
      return run<Bf16Panels>(args, pool);
    case WeightFormat::kF32Panels:
      return run<F32Panels>(args, pool);
  }
}

}  // namespace lk::LK_ISA_NAMESPACE
