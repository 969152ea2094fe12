// SPDX-License-Identifier: Apache-2.0
// Baking one adapter into a copy of its base: W' = W + s B A (DoRA: row scales on top), embeddings,
// lm_head, full replacements and trained tokens. Works row block by row block; no tensor is held in
// memory as a whole.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/model_config.h"
#include "lk/io/safetensors.h"
#include "lk/lora/adapter.h"

namespace lk {

// Weights of the base whose value the adapter changes. A tied lm_head is among them when it changes, e.g. together with
// trained rows of the embedding.
std::vector<WeightId> changed_weights(const Adapter& adapter, const ModelConfig& config);

// Receives rows [first_row, first_row + num_rows) of a tensor as f32; a vector is one row.
using RowVisitor = std::function<Status(int64_t first_row, int64_t num_rows, const float* rows)>;

// The value of a base weight under the adapter, in row order. The lm_head of a tied base reads the embedding.
Status visit_merged_weight(WeightId weight, const Adapter& adapter, const ModelConfig& config, const TensorStore& base,
                           const RowVisitor& visit);

struct MergeOptions {
  std::optional<DType> dtype = {};  // of every tensor written; absent: each tensor keeps its own
};

// What rounding to the output dtype costs. The change is W' - W before rounding.
struct MergeLoss {
  std::string tensor;
  double change_norm = 0;    // ||W' - W||_F
  double rounding_norm = 0;  // ||round(W') - W'||_F
  double rounding_max = 0;   // largest |round(W') - W'|
  double relative() const { return change_norm > 0 ? rounding_norm / change_norm : 0; }
};
struct MergeReport {
  std::vector<MergeLoss> tensors;  // the changed ones
  MergeLoss total;
  bool untied = false;  // the merged model has an lm_head of its own although the base's was tied
  int64_t bytes_written = 0;
  std::vector<std::string> warnings;
};

// Writes out_dir as a complete model directory (config, tokenizer and generation files are copied).
// out_dir must not exist or be empty; it appears only when complete.
Result<MergeReport> merge_adapter(const std::string& base_dir, const Adapter& adapter, const std::string& out_dir,
                                  const MergeOptions& options = {});

// A few lines for people: overall and worst rounding loss.
std::string render_merge_report(const MergeReport& report);

}  // namespace lk
