// SPDX-License-Identifier: Apache-2.0
// MergeLayout: which groups of an adapter's layers can be merged, how many pages a merged layer takes, and the builder
// that fills them.
//
// Merged are the linears with a LoRA or DoRA delta. A group (q,k,v | o | gate,up | down) stays unmerged when the
// adapter replaces one of its matrices or biases: its rows go through the adapter's own matrix anyway. Embeddings,
// norms and the lm_head stay with the ResidentAdapter. Merged layers are built from the base and the host tier, so
// neither the adapter's pages nor its residency matter.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lk/lora/adapter.h"
#include "lk/memory/unified_pool.h"
#include "lk/model/merged_weights.h"
#include "lk/ops/backend.h"

namespace lk {

// What rounding to the base's type cost, relative to the change.
struct RoundingLoss {
  double total = 0;          // over the whole adapter
  double worst = 0;          // of the worst matrix
  std::string worst_module;  // "model.layers.3.self_attn.q_proj"
};

class MergeLayout {
 public:
  MergeLayout(const Adapter& adapter, const ModelShape& shape, WeightFormat format, int64_t page_bytes);

  bool empty() const { return merged_bytes_ == 0; }  // nothing to merge: no delta on a linear that is not replaced
  int64_t num_pages() const { return (merged_bytes_ + page_bytes_ - 1) / page_bytes_; }
  int64_t merged_bytes() const { return merged_bytes_; }
  // Multiply-adds of the merged deltas for one row, relative to those of all base linears.
  double relative_cost() const { return relative_cost_; }
  // Multiply-adds of building, relative to those of all base linears for one row.
  double build_cost_rows() const { return build_cost_rows_; }

  // Largest ||round(W') - W'|| / ||W' - W|| (Frobenius) of any one matrix; beyond it the merge is refused. What is lost
  // is noise of a size that an adapter's change should be well above; docs/results/merging.md has measurements.
  static constexpr double kMaxRoundingLoss = 0.1;
  // Where one rank's part of the copy goes: made from its shard of the adapter and of the base, by its layout.
  struct Target {
    const MergeLayout& layout;
    const Adapter& shard;
    const ModelWeights& base;
    std::byte* pool_base;
    Backend& backend;
  };
  // Writes W' into the pages of every rank, layer by layer, one matrix after the other without a gap; `stop` is asked
  // after each panel. kCancelled when it said so, kFailedPrecondition when rounding loses more than allowed of a whole
  // matrix, or when W' is not finite. *loss is what was measured so far, either way. By rank.
  static Result<std::vector<std::shared_ptr<const MergedWeights>>> build(std::span<const Target> ranks,
                                                                         std::span<const PageId> pages,
                                                                         const std::function<bool()>& stop,
                                                                         RoundingLoss* loss);

 private:
  class Builder;
  class Judge;
  ModelShape shape_;
  int64_t page_bytes_;
  std::vector<std::array<bool, kNumProjGroups>> merges_;  // by layer
  int64_t merged_bytes_ = 0;
  double relative_cost_ = 0, build_cost_rows_ = 0;
};

}  // namespace lk
