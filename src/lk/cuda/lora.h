// SPDX-License-Identifier: Apache-2.0
// Heterogeneous LoRA on tensor cores: v = x A^T (shrink), y += scaling v B^T (expand), each row with its segment's
// adapter. Both A and B^T are stored as rank rows: bf16, scattered over pages of one pool, as many as the adapter's
// rank.
//
// Row determinism: v and y of a row depend on that row and its adapter only, bit for bit. Splits and planes are fixed
// per site, sums run in a fixed order, rows are columns (shrink) or rows (expand) of the mma, which never mix.
#pragma once

#include <cstdint>

namespace lk::cuda {

inline constexpr int kGranule = 256;  // elements: 512 bytes, the unit in which pages are given out

// Where a rank row starts. It is contiguous: the packer lets no row straddle a page.
struct RowRef {
  uint16_t page;     // into the slot's page list
  uint16_t granule;  // into the page
};
struct Slot {      // one resident adapter at one projection
  int32_t pages;   // first entry in Pool::page_lists
  int32_t a_rows;  // first entry in Pool::row_refs, `rank` entries
  int32_t b_rows;
  int32_t rank;
  float scaling;
};
struct Pool {
  const uint16_t* base;
  int64_t page_elements;
  const int32_t* page_lists;
  const RowRef* row_refs;
  const Slot* slots;
};
struct Tile {  // consecutive rows of one slot
  int32_t row_begin;
  int16_t num_rows;
  int16_t slot;
};

// v[plane][row][r] = sum over the plane's part of k of x[row][k] A[r][k]
struct ShrinkArgs {
  const uint16_t* x;  // bf16 [rows][x_stride], rows 16-byte aligned
  int64_t x_stride;
  int32_t in_dim;  // multiple of 8
  Pool pool;
  const Tile* tiles;  // of at most kDecodeRows (shrink_decode) or kPrefillRows (shrink_prefill) rows
  const int32_t* num_tiles;
  float* v;
  int64_t v_stride, plane_stride;
  int32_t planes;  // constant per site; 1 for shrink_prefill
};
// y[row][n] += scaling sum_r (sum over planes of v[plane][row][r]) B[n][r]
struct ExpandArgs {
  const float* v;
  int64_t v_stride, plane_stride;
  int32_t planes;
  Pool pool;
  const Tile* tiles;  // of at most kExpandRows rows
  const int32_t* num_tiles;
  float* y;  // [rows][y_stride], rows 16-byte aligned
  int64_t y_stride;
  int32_t out_dim;  // multiple of 64
};

inline constexpr int kDecodeRows = 8, kPrefillRows = 64, kExpandRows = 16;

// num_blocks is free: blocks loop over the tiles.
void shrink_decode(const ShrinkArgs& args, int num_blocks);
void shrink_prefill(const ShrinkArgs& args, int num_blocks);
void expand(const ExpandArgs& args, int num_blocks);

}  // namespace lk::cuda
