// SPDX-License-Identifier: Apache-2.0
// ResidentAdapter: an adapter as the forward pass sees it. Rank rows and replaced matrices lie in pool pages; embedding
// rows are looked up in the host tier, one row per token, like the base model's own.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "lk/kernels/args.h"
#include "lk/lora/adapter.h"
#include "lk/model/merged_weights.h"
#include "lk/model/weights.h"

namespace lk {

struct ResidentAdapter {
  struct Layer {
    std::array<std::vector<LoraProj>, kNumProjGroups> groups;  // projections with a delta; empty = untouched
    std::array<const PackedWeight*, kNumProjs> replaced{};     // modules_to_save of a linear, or null
    std::array<const float*, kNumProjs> replaced_bias{};       // or null
    const float* input_norm = nullptr;                         // replaced norms, or null
    const float* post_norm = nullptr;
    const float* q_norm = nullptr;
    const float* k_norm = nullptr;
    bool replaces(ProjGroup group) const {
      for (Proj proj : projs_of(group))
        if (replaced[static_cast<size_t>(proj)] || replaced_bias[static_cast<size_t>(proj)]) return true;
      return false;
    }
  };
  std::vector<Layer> layers;
  std::vector<LoraProj> lm_head;  // zero or one
  const PackedWeight* replaced_lm_head = nullptr;
  const float* final_norm = nullptr;
  int64_t max_group_rank = 0;  // largest sum of ranks over one group
  std::shared_ptr<const Adapter>
      host;  // of an embedding delta, replaced or trained embedding rows; null when it has none
  std::map<int32_t, int64_t> trained_rows;  // token id -> row of host->trained_token_rows

  // What the pointers above point to, besides pool pages.
  std::deque<std::vector<int64_t>> row_offsets;
  std::deque<PackedWeight> matrices;
  std::deque<std::vector<float>> vectors;
};

// Rows [row_begin, row_end) of the batch use `adapter`; null = the bare base model. With `merged` (of that adapter)
// they run on W' where it has one, instead of on W and the rank rows.
struct AdapterRun {
  int32_t row_begin = 0, row_end = 0;
  const ResidentAdapter* adapter = nullptr;
  const MergedWeights* merged = nullptr;
};

}  // namespace lk
