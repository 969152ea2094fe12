// SPDX-License-Identifier: Apache-2.0
// TokenBlock: the rows of one pass, and views of some of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lk/kernels/train_args.h"
#include "lk/model/adapter_run.h"

namespace lk {

class TrainableAdapter;

// Samples one after the other, without padding; those of one adapter stand together. Targets are the following tokens,
// shifted already: a row predicts targets[row] and counts weights[row] (0: no loss; the target is then ignored).
struct TokenBlock {
  std::vector<int32_t> tokens, targets;
  std::vector<float> weights;
  std::vector<RowRange> samples;      // ascending; together they are all rows
  std::vector<uint64_t> sample_keys;  // of dropout: job, step and sample, but nothing of the block
  struct Run {
    int32_t begin = 0, end = 0;           // rows, whole samples
    TrainableAdapter* adapter = nullptr;  // null: the bare base, which trains nothing
  };
  std::vector<Run> runs;  // ascending, disjoint; together they are all rows

  int64_t num_rows() const { return static_cast<int64_t>(tokens.size()); }
  // Appends a sample to the last run's rows (or to a new run, when its adapter differs).
  void add(std::span<const int32_t> sample_tokens, std::span<const float> target_weights, uint64_t key,
           TrainableAdapter* adapter);
};

// Some rows of a block, counted from the first of them.
struct RowView {
  int64_t first_row = 0;  // of the block, where they are neighbours
  int64_t num_rows = 0;
  std::vector<TokenBlock::Run> runs;
  std::vector<AdapterRun> adapters;  // the same, as a forward pass takes them
  std::vector<DropoutRows> dropout;  // of rows whose adapter has dropout; keys are not of a module yet
};
// Rows [begin, end) of the block, or those named, ascending. Without `dropout` nothing is dropped.
RowView rows_of(const TokenBlock& block, int64_t begin, int64_t end, bool dropout);
RowView rows_of(const TokenBlock& block, std::span<const int32_t> rows, bool dropout);

}  // namespace lk
