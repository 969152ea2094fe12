// SPDX-License-Identifier: Apache-2.0
// ModelWeights: the base model in device memory, packed for the kernels once at load and immutable from then on (design
// principle 1).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "lk/io/model_config.h"
#include "lk/io/rank_slice.h"
#include "lk/io/safetensors.h"
#include "lk/kernels/args.h"
#include "lk/lora/adapter.h"
#include "lk/ops/backend.h"

namespace lk {

// Columns rounded up to whole panels.
constexpr int64_t align_panel(int64_t columns) { return (columns + kPanelCols - 1) / kPanelCols * kPanelCols; }
// The n columns of a packed matrix that start at `column`, a multiple of kPanelCols.
inline PackedWeight columns_of(const PackedWeight& w, int64_t column, int64_t n) {
  PackedWeight columns = w;
  columns.n = n;
  const int64_t first = packed_weight_bytes(w.format, column, w.k);
  if (w.pages)
    columns.begin += first;
  else
    columns.data = static_cast<const std::byte*>(w.data) + first;
  return columns;
}

// Projections that read the same input share one packed matrix and one LoRA call.
enum class ProjGroup : uint8_t { kQkv, kO, kGateUp, kDown };
inline constexpr int kNumProjGroups = 4;
ProjGroup group_of(Proj proj);
// First output column of a projection inside its group's product; a multiple of kPanelCols.
int64_t group_column(Proj proj, const ModelShape& shape);
int64_t group_columns(ProjGroup group, const ModelShape& shape);  // padded width of the product
std::span<const Proj> projs_of(ProjGroup group);

struct LayerWeights {
  std::array<PackedWeight, kNumProjGroups> linear;  // n = group_columns
  std::array<const float*, kNumProjGroups> bias{};  // [group_columns] or null
  const float* input_norm = nullptr;                // [hidden_dim]
  const float* post_norm = nullptr;                 // [hidden_dim]
  const float* q_norm = nullptr;                    // [head_dim] or null (Qwen3)
  const float* k_norm = nullptr;
};

struct ModelWeights {
  ModelConfig config;        // what the file says
  ModelShape shape;          // what is here: of the whole model, or of a rank
  RankId rank;               // whose
  DType act = DType::kBF16;  // compute type: bf16 or f32
  std::vector<LayerWeights> layers;
  TensorView embedding;  // [vocab_size, hidden_dim], any dtype
  PackedWeight lm_head;  // n = vocab_size, or 0 without one (ModelConfig::has_lm_head, ranks but the first)
  const float* final_norm = nullptr;
  int64_t packed_bytes = 0;

  std::shared_ptr<const TensorStore> checkpoint;  // the weights, by weight_name(); null for dummy weights
  std::vector<std::string> warnings;              // of open_checkpoint(): which tensors are not used, and why
  std::vector<DeviceBuffer> storage;
  std::shared_ptr<const DeviceBuffer> embedding_rows;  // what `embedding` is in; ranks of a process share it

  WeightFormat format() const { return weight_format_of(act); }
  // Bytes of weights read for one decode step (all linears and the head).
  int64_t decode_bytes() const { return packed_bytes; }
};

// Reads and packs a Hugging Face directory: all of it, or what rank 0 of `num_ranks` has of it. Errors name the tensor:
// missing, misshapen, not finite; kInvalidArgument when the shape does not allow so many ranks (check_num_ranks()).
// progress: called with (done, total) bytes, may be null.
Result<std::shared_ptr<const ModelWeights>> load_weights(const std::string& directory, DType act, Backend& backend,
                                                         void (*progress)(int64_t done, int64_t total) = nullptr,
                                                         int num_ranks = 1);
// What another rank of this process has, from the file that rank 0's were read from. Shares rank 0's embedding.
std::shared_ptr<const ModelWeights> load_rank(const ModelWeights& first, int rank, Backend& backend);
// Seeded random weights of the given shape; for benchmarks. Those of ranks are no parts of those of one.
std::shared_ptr<const ModelWeights> make_dummy_weights(const ModelConfig& config, DType act, uint64_t seed,
                                                       Backend& backend, RankId rank = {});

}  // namespace lk
