// SPDX-License-Identifier: Apache-2.0
#include "lk/train/token_block.h"

#include <algorithm>

#include "lk/train/trainable_adapter.h"

namespace lk {
namespace {

AdapterRun adapter_run(const TokenBlock::Run& run) {
  return {.row_begin = run.begin, .row_end = run.end, .adapter = run.adapter ? &run.adapter->resident() : nullptr};
}

}  // namespace

void TokenBlock::add(std::span<const int32_t> sample_tokens, std::span<const float> target_weights, uint64_t key,
                     TrainableAdapter* adapter) {
  LK_CHECK(!sample_tokens.empty() && sample_tokens.size() == target_weights.size());
  const auto begin = static_cast<int32_t>(tokens.size());
  const auto end = static_cast<int32_t>(begin + static_cast<int32_t>(sample_tokens.size()));
  tokens.insert(tokens.end(), sample_tokens.begin(), sample_tokens.end());
  // Row t predicts token t + 1; the last one predicts nothing.
  for (size_t t = 1; t < sample_tokens.size(); ++t) {
    targets.push_back(sample_tokens[t]);
    weights.push_back(target_weights[t]);
  }
  targets.push_back(0);
  weights.push_back(0);
  samples.push_back({begin, end});
  sample_keys.push_back(key);
  if (runs.empty() || runs.back().adapter != adapter) runs.push_back({begin, begin, adapter});
  runs.back().end = end;
}

RowView rows_of(const TokenBlock& block, int64_t begin, int64_t end, bool dropout) {
  RowView view{.first_row = begin, .num_rows = end - begin, .runs = {}, .adapters = {}, .dropout = {}};
  for (const TokenBlock::Run& run : block.runs) {
    const auto first = static_cast<int32_t>(std::max<int64_t>(run.begin, begin) - begin);
    const auto last = static_cast<int32_t>(std::min<int64_t>(run.end, end) - begin);
    if (first >= last) continue;
    view.runs.push_back({first, last, run.adapter});
    view.adapters.push_back(adapter_run(view.runs.back()));
    if (!dropout || !run.adapter || run.adapter->dropout() == 0) continue;
    for (size_t index = 0; index < block.samples.size(); ++index) {
      const RowRange& sample = block.samples[index];
      const int64_t from = std::max<int64_t>(sample.begin, begin + first);
      const int64_t to = std::min<int64_t>(sample.end, begin + last);
      if (from >= to) continue;
      view.dropout.push_back({.begin = static_cast<int32_t>(from - begin),
                              .end = static_cast<int32_t>(to - begin),
                              .key = block.sample_keys[index] ^ run.adapter->dropout_seed(),
                              .first_position = from - sample.begin,
                              .p = static_cast<float>(run.adapter->dropout())});
    }
  }
  return view;
}

RowView rows_of(const TokenBlock& block, std::span<const int32_t> rows, bool dropout) {
  RowView view{.num_rows = static_cast<int64_t>(rows.size()), .runs = {}, .adapters = {}, .dropout = {}};
  size_t run_index = 0, sample_index = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    while (block.runs[run_index].end <= rows[i]) ++run_index;
    while (block.samples[sample_index].end <= rows[i]) ++sample_index;
    TrainableAdapter* adapter = block.runs[run_index].adapter;
    const auto row = static_cast<int32_t>(i);
    if (view.runs.empty() || view.runs.back().adapter != adapter) view.runs.push_back({row, row, adapter});
    view.runs.back().end = row + 1;
    if (!dropout || !adapter || adapter->dropout() == 0) continue;
    view.dropout.push_back({.begin = row,
                            .end = row + 1,
                            .key = block.sample_keys[sample_index] ^ adapter->dropout_seed(),
                            .first_position = rows[i] - block.samples[sample_index].begin,
                            .p = static_cast<float>(adapter->dropout())});
  }
  for (const TokenBlock::Run& run : view.runs) view.adapters.push_back(adapter_run(run));
  return view;
}

}  // namespace lk
