// SPDX-License-Identifier: Apache-2.0
// The kernels of lora.h. nvcc compiles this file for the device, tests/cuda/lora_cuda_host.cpp for the emulator.
#include "lk/cuda/lora.h"

#include "lk/cuda/device.h"

namespace lk::cuda {
namespace {

constexpr int kDecodeThreads = 256, kPrefillThreads = 128, kExpandThreads = 128;

__device__ const uint16_t* rank_row(const Pool& pool, const Slot& slot, int first, int r) {
  const RowRef ref = pool.row_refs[first + r];
  return pool.base + pool.page_lists[slot.pages + ref.page] * pool.page_elements + ref.granule * kGranule;
}
__device__ float bf16_value(uint32_t bits) { return __uint_as_float(bits << 16); }

// Shrink of decode rows: weights stream from memory straight into the fragments. Warp w of 8 takes the chunks
// k = 32 w + 256 i. A lane loads 16 bytes of two rank rows and of one row of x at the same k: the mma then contracts
// over a permuted k, the same permutation on both sides.
__global__ void __launch_bounds__(kDecodeThreads) shrink_decode_kernel(ShrinkArgs a) {
  constexpr int kWarps = kDecodeThreads / 32, kRankTiles = 4, kRanks = 16 * kRankTiles;
  using Partial = float[kWarps][kRanks][kDecodeRows + 1];
  SIMT_SHARED(Partial, partial);
  const int thread = threadIdx.x, warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  const int plane_k = (a.in_dim + a.planes * kGranule - 1) / (a.planes * kGranule) * kGranule;

  for (int item = blockIdx.x; item < *a.num_tiles * a.planes; item += gridDim.x) {
    const Tile tile = a.tiles[item / a.planes];
    const Slot slot = a.pool.slots[tile.slot];
    const int plane = item % a.planes, k_begin = plane * plane_k, k_end = min(a.in_dim, k_begin + plane_k);
    const uint16_t* x = g < tile.num_rows ? a.x + (tile.row_begin + g) * a.x_stride : nullptr;

    for (int rank_begin = 0; rank_begin < slot.rank; rank_begin += kRanks) {
      const uint16_t* rows[kRankTiles][2];
      for (int i = 0; i < kRankTiles; ++i)
        for (int h = 0; h < 2; ++h) {
          const int r = rank_begin + 16 * i + 8 * h + g;
          rows[i][h] = r < slot.rank ? rank_row(a.pool, slot, slot.a_rows, r) : nullptr;
        }
      float sum[kRankTiles][4] = {};
      for (int chunk = k_begin + 32 * warp; chunk < k_end; chunk += 32 * kWarps) {
        const int k = chunk + 8 * t;
        const uint4 zero = {0, 0, 0, 0};
        const uint4 b = x && k < k_end ? *reinterpret_cast<const uint4*>(x + k) : zero;
        for (int i = 0; i < kRankTiles; ++i) {
          if (rank_begin + 16 * i >= slot.rank) break;  // the same for all lanes
          const uint4 u = rows[i][0] && k < k_end ? simt::load_stream_16(rows[i][0] + k) : zero;
          const uint4 v = rows[i][1] && k < k_end ? simt::load_stream_16(rows[i][1] + k) : zero;
          simt::mma_bf16(sum[i], {u.x, v.x, u.y, v.y}, {b.x, b.y});
          simt::mma_bf16(sum[i], {u.z, v.z, u.w, v.w}, {b.z, b.w});
        }
      }
      for (int i = 0; i < kRankTiles; ++i)
        for (int j = 0; j < 4; ++j) partial[warp][16 * i + 8 * (j / 2) + g][2 * t + j % 2] = sum[i][j];
      __syncthreads();
      for (int i = thread; i < kRanks * tile.num_rows; i += kDecodeThreads) {
        const int r = i % kRanks, row = i / kRanks;
        if (rank_begin + r >= slot.rank) continue;
        float total = 0;
        for (int w = 0; w < kWarps; ++w) total += partial[w][r][row];
        a.v[plane * a.plane_stride + (tile.row_begin + row) * a.v_stride + rank_begin + r] = total;
      }
      __syncthreads();  // partial is written again
    }
  }
}

// Shrink of prefill rows: 64 rows of x and up to 64 rank rows per stage of 64 k in shared memory, two stages.
__global__ void __launch_bounds__(kPrefillThreads) shrink_prefill_kernel(ShrinkArgs a) {
  constexpr int kRanks = 64, kStageK = 64, kPad = 8;  // kPad: rows start in different banks
  struct Stage {
    uint16_t x[kPrefillRows][kStageK + kPad], w[kRanks][kStageK + kPad];
  };
  using Stages = Stage[2];
  SIMT_SHARED(Stages, stages);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;

  for (int item = blockIdx.x; item < *a.num_tiles; item += gridDim.x) {
    const Tile tile = a.tiles[item];
    const Slot slot = a.pool.slots[tile.slot];
    const int num_stages = (a.in_dim + kStageK - 1) / kStageK;

    for (int rank_begin = 0; rank_begin < slot.rank; rank_begin += kRanks) {
      const auto load = [&](int i) {  // nothing past the last stage, but still a group
        for (int c = thread; i < num_stages && c < kRanks * kStageK / 8; c += kPrefillThreads) {
          const int row = c / 8, col = c % 8 * 8, k = i * kStageK + col;
          const bool has_x = row < tile.num_rows && k < a.in_dim, has_w = rank_begin + row < slot.rank && k < a.in_dim;
          simt::cp_async_16(&stages[i % 2].x[row][col], has_x ? a.x + (tile.row_begin + row) * a.x_stride + k : a.x,
                            has_x);
          simt::cp_async_16(&stages[i % 2].w[row][col],
                            has_w ? rank_row(a.pool, slot, slot.a_rows, rank_begin + row) + k : a.x, has_w);
        }
        simt::cp_async_commit();
      };
      float sum[kRanks / 8][4] = {};
      load(0);
      for (int i = 0; i < num_stages; ++i) {
        load(i + 1);
        simt::cp_async_wait<1>();
        __syncthreads();  // stage i has landed for all threads
        const Stage& stage = stages[i % 2];
        for (int k = 0; k < kStageK; k += 16) {
          uint32_t x[4], w[4];
          simt::ldmatrix_x4(x, &stage.x[16 * warp + lane % 16][k + lane / 16 * 8]);
          for (int n = 0; n < kRanks; n += 16) {
            simt::ldmatrix_x4(w, &stage.w[n + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
            simt::mma_bf16(sum[n / 8], x, {w[0], w[1]});
            simt::mma_bf16(sum[n / 8 + 1], x, {w[2], w[3]});
          }
        }
        __syncthreads();  // stage i may be loaded again
      }
      for (int n = 0; n < kRanks / 8; ++n)
        for (int j = 0; j < 4; ++j) {
          const int row = 16 * warp + 8 * (j / 2) + g, r = rank_begin + 8 * n + 2 * t + j % 2;
          if (row < tile.num_rows && r < slot.rank) a.v[(tile.row_begin + row) * a.v_stride + r] = sum[n][j];
        }
    }
  }
}

// Expand: a warp gives 16 rows x 64 outputs. A lane loads 8 consecutive outputs of 4 rank rows; mma j takes output
// 8 g + j of each, so that a lane ends with 16 consecutive outputs of rows g and g + 8. v goes in as a bf16 pair
// (high + low), which keeps 16 bits of it.
__global__ void __launch_bounds__(kExpandThreads) expand_kernel(ExpandArgs a) {
  constexpr int kCols = 64, kBlockCols = kCols * kExpandThreads / 32;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int col_tiles = (a.out_dim + kBlockCols - 1) / kBlockCols;

  for (int item = blockIdx.x; item < *a.num_tiles * col_tiles; item += gridDim.x) {
    const Tile tile = a.tiles[item / col_tiles];
    const Slot slot = a.pool.slots[tile.slot];
    const int n0 = item % col_tiles * kBlockCols + warp * kCols;
    if (n0 >= a.out_dim) continue;  // the same for all lanes; this kernel has no block barrier

    float sum[8][4] = {};
    for (int r0 = 0; r0 < slot.rank; r0 += 16) {
      uint32_t high[4], low[4];
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), r = r0 + 2 * t + 8 * (i / 2);
        float v[2] = {};
        for (int e = 0; e < 2; ++e)
          for (int p = 0; p < a.planes && row < tile.num_rows && r + e < slot.rank; ++p)
            v[e] += a.v[p * a.plane_stride + (tile.row_begin + row) * a.v_stride + r + e];
        v[0] *= slot.scaling;
        v[1] *= slot.scaling;
        high[i] = simt::pack_bf16(v[0], v[1]);
        low[i] = simt::pack_bf16(v[0] - bf16_value(high[i] & 0xffff), v[1] - bf16_value(high[i] >> 16));
      }
      uint4 w[4];
      for (int i = 0; i < 4; ++i) {
        const int r = r0 + 2 * t + i % 2 + 8 * (i / 2);
        w[i] = r < slot.rank ? simt::load_stream_16(rank_row(a.pool, slot, slot.b_rows, r) + n0 + 8 * g)
                             : uint4{0, 0, 0, 0};
      }
      const auto columns = [&](float(&d)[4], uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, unsigned half) {
        const uint32_t b[2] = {__byte_perm(w0, w1, half), __byte_perm(w2, w3, half)};
        simt::mma_bf16(d, high, b);
        simt::mma_bf16(d, low, b);
      };
      constexpr unsigned kLowHalves = 0x5410, kHighHalves = 0x7632;
      columns(sum[0], w[0].x, w[1].x, w[2].x, w[3].x, kLowHalves);
      columns(sum[1], w[0].x, w[1].x, w[2].x, w[3].x, kHighHalves);
      columns(sum[2], w[0].y, w[1].y, w[2].y, w[3].y, kLowHalves);
      columns(sum[3], w[0].y, w[1].y, w[2].y, w[3].y, kHighHalves);
      columns(sum[4], w[0].z, w[1].z, w[2].z, w[3].z, kLowHalves);
      columns(sum[5], w[0].z, w[1].z, w[2].z, w[3].z, kHighHalves);
      columns(sum[6], w[0].w, w[1].w, w[2].w, w[3].w, kLowHalves);
      columns(sum[7], w[0].w, w[1].w, w[2].w, w[3].w, kHighHalves);
    }
    for (int h = 0; h < 2; ++h) {
      if (g + 8 * h >= tile.num_rows) continue;
      float* y = a.y + (tile.row_begin + g + 8 * h) * a.y_stride + n0 + 16 * t;
      for (int q = 0; q < 4; ++q) {
        auto& out = reinterpret_cast<float4*>(y)[q];
        const int j = q % 2 * 4, c = 2 * h + q / 2;
        float4 value = out;
        value.x += sum[j][c];
        value.y += sum[j + 1][c];
        value.z += sum[j + 2][c];
        value.w += sum[j + 3][c];
        out = value;
      }
    }
  }
}

}  // namespace

void shrink_decode(const ShrinkArgs& args, int num_blocks) {
  simt::launch({static_cast<unsigned>(num_blocks), 1, 1}, {kDecodeThreads, 1, 1}, 0, shrink_decode_kernel, args);
}
void shrink_prefill(const ShrinkArgs& args, int num_blocks) {
  simt::launch({static_cast<unsigned>(num_blocks), 1, 1}, {kPrefillThreads, 1, 1}, 0, shrink_prefill_kernel, args);
}
void expand(const ExpandArgs& args, int num_blocks) {
  simt::launch({static_cast<unsigned>(num_blocks), 1, 1}, {kExpandThreads, 1, 1}, 0, expand_kernel, args);
}

}  // namespace lk::cuda
