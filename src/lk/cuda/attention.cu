// SPDX-License-Identifier: Apache-2.0
#include "lk/cuda/attention.h"

#include "lk/cuda/device.h"

namespace lk::cuda {
namespace {

constexpr int kThreads = 128, kWarps = 4, kTile = 16 * kWarps;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// exp2(x - m) where m is the largest x so far; nothing seen yet gives 0.
__device__ float weight(float x, float m) { return m == kMinusInfinity ? 0.0f : exp2f(x - m); }

template <int kDim, int kRowTiles>
__global__ void __launch_bounds__(kThreads) attention_kernel(AttentionArgs a) {
  constexpr int kPad = 8;
  union Shared {
    struct {
      uint16_t k[kTile][kDim + kPad], v[kTile][kDim + kPad];
    } tile;
    struct {
      float o[kWarps][16][kDim], max[kWarps][16], sum[kWarps][16];
    } merge;  // of one row tile
  };
  SIMT_SHARED(Shared, shared);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int group = a.num_heads / a.num_kv_heads;

  for (int item = blockIdx.x; item < *a.num_tiles * a.num_kv_heads; item += gridDim.x) {
    const AttentionTile tile = a.tiles[item / a.num_kv_heads];
    const int kv_head = item % a.num_kv_heads, num_rows = tile.num_rows * group,
              end = tile.first_position + tile.num_rows;
    const auto row_offset = [&](int r) {  // r: token * group + head within the group
      return (int64_t{tile.row_begin + r / group} * a.num_heads + kv_head * group + r % group) * kDim;
    };
    uint32_t q[kRowTiles][kDim / 16][4];
    SIMT_UNROLL
    for (int m = 0; m < kRowTiles; ++m)
      for (int d = 0; d < kDim / 16; ++d)
        for (int i = 0; i < 4; ++i) {
          const int r = 16 * m + g + 8 * (i % 2);
          q[m][d][i] =
              r < num_rows ? *reinterpret_cast<const uint32_t*>(a.q + row_offset(r) + 16 * d + 2 * t + 8 * (i / 2)) : 0;
        }
    float o[kRowTiles][kDim / 8][4] = {}, max[kRowTiles][2], sum[kRowTiles][2] = {};
    SIMT_UNROLL
    for (int m = 0; m < kRowTiles; ++m) max[m][0] = max[m][1] = kMinusInfinity;

    for (int begin = 0; begin < end; begin += kTile) {
      for (int c = thread; c < kTile * kDim / 8; c += kThreads) {
        const int i = c / (kDim / 8), col = c % (kDim / 8) * 8, position = begin + i;
        const bool valid = position < end;  // zeros behind: 0 * NaN is NaN
        const uint16_t* k = a.pool;
        if (valid)
          k += a.page_table[tile.pages + position / kPageTokens] * a.page_stride +
               (position % kPageTokens * a.num_kv_heads + kv_head) * kDim + col;
        simt::cp_async_16(&shared.tile.k[i][col], k, valid);
        simt::cp_async_16(&shared.tile.v[i][col], k + (valid ? a.v_offset : 0), valid);
      }
      simt::cp_async_commit();
      simt::cp_async_wait<0>();
      __syncthreads();
      SIMT_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        float s[2][4] = {};  // 16 rows x the warp's 16 keys
        SIMT_UNROLL
        for (int d = 0; d < kDim / 16; ++d) {
          uint32_t k[4];
          simt::ldmatrix_x4(k, &shared.tile.k[16 * warp + lane % 8 + lane / 16 * 8][16 * d + lane / 8 % 2 * 8]);
          simt::mma_bf16(s[0], q[m][d], {k[0], k[1]});
          simt::mma_bf16(s[1], q[m][d], {k[2], k[3]});
        }
        for (int h = 0; h < 2; ++h) {  // rows g and g + 8
          const int last = tile.first_position + (16 * m + g + 8 * h) / group;
          float largest = max[m][h];
          for (int i = 0; i < 4; ++i) {
            float& x = s[i / 2][2 * h + i % 2];
            x = begin + 16 * warp + 8 * (i / 2) + 2 * t + i % 2 <= last ? x * a.scale_log2 : kMinusInfinity;
            largest = fmaxf(largest, x);
          }
          largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
          largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
          const float correction = weight(max[m][h], largest);
          max[m][h] = largest;
          sum[m][h] *= correction;
          for (int i = 0; i < 4; ++i) sum[m][h] += s[i / 2][2 * h + i % 2] = weight(s[i / 2][2 * h + i % 2], largest);
          SIMT_UNROLL
          for (int n = 0; n < kDim / 8; ++n) {
            o[m][n][2 * h] *= correction;
            o[m][n][2 * h + 1] *= correction;
          }
        }
        const uint32_t p[4] = {simt::pack_bf16(s[0][0], s[0][1]), simt::pack_bf16(s[0][2], s[0][3]),
                               simt::pack_bf16(s[1][0], s[1][1]), simt::pack_bf16(s[1][2], s[1][3])};
        SIMT_UNROLL
        for (int n = 0; n < kDim; n += 16) {
          uint32_t v[4];
          simt::ldmatrix_x4_trans(v, &shared.tile.v[16 * warp + lane % 16][n + lane / 16 * 8]);
          simt::mma_bf16(o[m][n / 8], p, {v[0], v[1]});
          simt::mma_bf16(o[m][n / 8 + 1], p, {v[2], v[3]});
        }
      }
      __syncthreads();  // the tile may be loaded again, or the merge use its memory
    }
    SIMT_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int h = 0; h < 2; ++h) {
        float total = sum[m][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (t == 0) {
          shared.merge.max[warp][g + 8 * h] = max[m][h];
          shared.merge.sum[warp][g + 8 * h] = total;
        }
        SIMT_UNROLL
        for (int n = 0; n < kDim / 8; ++n)
          for (int e = 0; e < 2; ++e) shared.merge.o[warp][g + 8 * h][8 * n + 2 * t + e] = o[m][n][2 * h + e];
      }
      __syncthreads();
      for (int i = thread; i < 16 * kDim / 2; i += kThreads) {
        const int row = i / (kDim / 2), d = i % (kDim / 2) * 2;
        if (16 * m + row >= num_rows) continue;
        float largest = kMinusInfinity, total = 0, out[2] = {};
        for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.merge.max[w][row]);
        for (int w = 0; w < kWarps; ++w) {
          const float f = weight(shared.merge.max[w][row], largest);
          total += shared.merge.sum[w][row] * f;
          for (int e = 0; e < 2; ++e) out[e] += shared.merge.o[w][row][d + e] * f;
        }
        *reinterpret_cast<uint32_t*>(a.y + row_offset(16 * m + row) + d) =
            simt::pack_bf16(out[0] / total, out[1] / total);
      }
      __syncthreads();  // the merge, or the next item's tile, uses the memory again
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args, int head_dim, int row_tiles, int num_blocks) {
  if (head_dim == 64)
    simt::launch({static_cast<unsigned>(num_blocks), 1, 1}, {kThreads, 1, 1}, 0,
                 row_tiles == 1 ? attention_kernel<64, 1> : attention_kernel<64, 2>, args);
  else
    simt::launch({static_cast<unsigned>(num_blocks), 1, 1}, {kThreads, 1, 1}, 0,
                 row_tiles == 1 ? attention_kernel<128, 1> : attention_kernel<128, 2>, args);
}

}  // namespace lk::cuda
