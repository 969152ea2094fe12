// SPDX-License-Identifier: Apache-2.0
#include "lk/io/rank_slice.h"

#include <cstring>

namespace lk {

Status check_num_ranks(const ModelShape& whole, int num_ranks) {
  if (num_ranks >= 1 && whole.num_shards % num_ranks == 0) return Status();
  std::string allowed = "1";
  for (int64_t ranks = 2; ranks <= whole.num_shards; ranks *= 2)
    allowed += fmt::format("{}{}", 2 * ranks <= whole.num_shards ? ", " : " or ", ranks);
  return invalid_argument("{} heads, {} KV heads and an MLP of {} allow --tensor-parallel {}, not {}", whole.num_heads,
                          whole.num_kv_heads, whole.intermediate_dim, allowed, num_ranks);
}

TensorView rank_rows(const TensorView& whole, RankId rank) {
  if (!whole.defined() || rank.alone()) return whole;
  LK_CHECK(whole.dim(0) % rank.size == 0, "{} on {} ranks", whole.shape_string(), rank.size);
  const int64_t rows = whole.dim(0) / rank.size;
  return whole.slice(rank.rank * rows, (rank.rank + 1) * rows);
}

TensorView rank_columns(const TensorView& whole, RankId rank, std::vector<Buffer>& owned) {
  if (!whole.defined() || rank.alone()) return whole;
  LK_CHECK(whole.num_dims() == 2 && whole.dim(1) % rank.size == 0, "{} on {} ranks", whole.shape_string(), rank.size);
  const int64_t rows = whole.dim(0), columns = whole.dim(1) / rank.size, elem = dtype_bytes(whole.dtype());
  Buffer& copy = owned.emplace_back(rows * columns * elem);
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(copy.data() + row * columns * elem,
                static_cast<const std::byte*>(whole.row(row)) + rank.rank * columns * elem,
                static_cast<size_t>(columns * elem));
  return TensorView(copy.data(), whole.dtype(), {rows, columns});
}

}  // namespace lk
