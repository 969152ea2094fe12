// SPDX-License-Identifier: Apache-2.0
// Causal attention over a paged KV pool, grouped heads. One kernel for decode rows and prefill chunks: keys are taken
// in tiles of 64 absolute positions, each quarter of a tile by its own warp, and merged in a fixed order. A row
// therefore has the same bits alone, in a batch, in a chunk of any length and with either number of row tiles.
#pragma once

#include <cstdint>

namespace lk::cuda {

inline constexpr int kPageTokens = 16;

struct AttentionTile {  // consecutive positions of one sequence; num_rows * (num_heads / num_kv_heads) <= 16 * row
                        // tiles
  int32_t row_begin;
  int32_t num_rows;
  int32_t first_position;
  int32_t pages;  // first entry of the sequence in page_table
};
struct AttentionArgs {
  const uint16_t* q;     // bf16 [rows][num_heads][head_dim]
  const uint16_t* pool;  // page p: K at p * page_stride, V v_offset further, both bf16 [16][num_kv_heads][head_dim]
  int64_t page_stride, v_offset;
  const int32_t* page_table;
  const AttentionTile* tiles;
  const int32_t* num_tiles;
  uint16_t* y;  // bf16 [rows][num_heads][head_dim]
  int32_t num_heads, num_kv_heads;
  float scale_log2;  // log2(e) / sqrt(head_dim)
};

// head_dim 64 or 128; row_tiles 1 (decode) or 2.
void attention(const AttentionArgs& args, int head_dim, int row_tiles, int num_blocks);

}  // namespace lk::cuda
