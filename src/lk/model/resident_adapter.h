// SPDX-License-Identifier: Apache-2.0
// ResidentAdapter: an adapter as the forward pass sees it. Rank rows and replaced matrices lie in pool pages; tables of
// embedding rows are shared with the host tier, like the base model's own is with its file.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "lk/kernels/args.h"
#include "lk/lora/adapter.h"
#include "lk/model/weights.h"
#include "lk/ops/device_buffer.h"

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
  std::vector<LoraProj> lm_head;         // zero or one
  const std::byte* rank_rows = nullptr;  // what offsets of rank rows count from; null: the layer's slice of the pool
  const PackedWeight* replaced_lm_head = nullptr;
  const float* final_norm = nullptr;

  struct Embedding {
    TensorView table;                                     // [vocabulary, hidden_dim] in the base's stead, or undefined
    TensorView trained_rows;                              // [n, hidden_dim] in the stead of the table's, or undefined
    std::unordered_map<int32_t, int64_t> trained_row_of;  // token id -> row of trained_rows
    std::optional<EmbeddingDelta> delta;
  } embedding;
  // With tied embeddings the trained rows are the head's, too: a product of its own for the columns of these tokens.
  PackedWeight trained_head;                 // n = 0: none
  const int32_t* trained_columns = nullptr;  // [trained_head.n] token ids

  // What the pointers above point to, besides pool pages.
  std::vector<int32_t> pages;  // all of them
  std::deque<PackedWeight> matrices;
  std::vector<DeviceBuffer> buffers;  // row tables, vectors, shared tables
};

}  // namespace lk
