// SPDX-License-Identifier: Apache-2.0
// What one rank of a model has of a tensor: rows where a linear's outputs are divided, columns where its inputs are
// (docs/design/tensor_parallel.md). Rows are views; columns are copied, so that everything else sees whole rows.
#pragma once

#include <vector>

#include "lk/base/status.h"
#include "lk/io/weight_names.h"
#include "lk/tensor/buffer.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

struct RankId {
  int rank = 0;
  int size = 1;
  bool alone() const { return size == 1; }
  bool leads() const { return rank == 0; }
};

// kInvalidArgument, with the numbers that the shape allows, when it cannot be divided among so many ranks.
Status check_num_ranks(const ModelShape& whole, int num_ranks);

// o and down read what the ranks have parts of; all other linears read what every rank has, and give a part.
constexpr bool divides_inputs(Proj proj) { return proj == Proj::kO || proj == Proj::kDown; }

// The part of `rank` of rows, or of columns, of a tensor [n, ...]; undefined stays undefined. Requires: divisible.
TensorView rank_rows(const TensorView& whole, RankId rank);
// The copy goes to `owned`.
TensorView rank_columns(const TensorView& whole, RankId rank, std::vector<Buffer>& owned);

// Of a linear's weight [out, in] and of a vector [out] (a bias, a scale of its outputs).
inline TensorView rank_weight(const TensorView& whole, Proj proj, RankId rank, std::vector<Buffer>& owned) {
  return divides_inputs(proj) ? rank_columns(whole, rank, owned) : rank_rows(whole, rank);
}
inline TensorView rank_outputs(const TensorView& whole, Proj proj, RankId rank) {
  return divides_inputs(proj) ? whole : rank_rows(whole, rank);
}

}  // namespace lk
