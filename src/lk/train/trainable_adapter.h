// SPDX-License-Identifier: Apache-2.0
// TrainableAdapter: one job's adapter while it trains. What is learnt are its TrainParams; what the kernels compute
// with is a copy in the compute type that refresh() makes after each optimiser step. Everything lies in device memory.
//
// Both factors are kept as rank rows (A [rank, in], B transposed [rank, out]), the layout of the LoRA kernels, so that
// a gradient is a sum of outer products over rows and needs no transposition.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/lora/adapter.h"
#include "lk/model/resident_adapter.h"
#include "lk/ops/backend.h"
#include "lk/ops/train_ops.h"
#include "lk/train/base_overlay.h"
#include "lk/train/sparse_mask.h"
#include "lk/train/train_params.h"

namespace lk {

struct TrainableOptions {
  int64_t num_modules = 0;  // MultiLoRA: the rank rows of every delta are that many modules, each with a sigma
  bool freeze_a = false, freeze_b = false;  // factors that stay as they are (A: LoRA-FA, arXiv:2308.03303)
  bool frozen_half = false;                 // of every delta's rank rows the second half never changes (PiSSA, OLoRA)
  double dropout = 0;                       // of a delta's input
  uint64_t dropout_seed = 0;
  // W' below the adapter instead of the base's own; null: the base as it is. Not with DoRA.
  std::shared_ptr<const BaseOverlay> overlay;
  // Trains values on a mask, added to the weights, from these on; both or none.
  std::shared_ptr<const DeviceMask> mask;
  std::shared_ptr<const SparseValues> sparse;
  bool proximal = false;  // AdamwStep::proximal will be asked for
};

// What a pass must have room for, so that an adapter can take part in it.
struct PassNeeds {
  static constexpr size_t kHead = kNumProjGroups;
  std::array<int64_t, kNumProjGroups + 1> ranks{};  // largest sum of ranks of a group, by ProjGroup; and of the head
  int64_t lowest_layer = 0;                         // with something trained
  bool dropout = false;
  int64_t dora_columns = 0;   // of the widest group, or the head, with DoRA
  int64_t token_columns = 0;  // trained tokens that a tied head follows
  bool head_weight = false;   // the head is trained as a whole

  PassNeeds include(const PassNeeds& other) const;  // room for both
  bool operator==(const PassNeeds&) const = default;
};

class TrainableAdapter {
 public:
  // A delta of one projection or of the head, in the kernels' terms.
  struct Slot {
    ModuleId module;
    int64_t rank = 0, trained_rank = 0, in = 0, out = 0;
    float scaling = 0;
    int a = -1, b = -1, bias = -1, magnitude = -1, sigma = -1;  // indices of params, -1 = none
    // Compute copies, as the kernels' arguments; addresses are relative to resident().rank_rows.
    std::byte *a_rows = nullptr, *b_rows = nullptr;  // act [rank, in and out, padded to panels]
    LoraProj forward;                                // x -> y
    LoraProj backward;                               // dy -> dx: the factors exchanged, neither bias nor scale
    float* folded_b = nullptr;                       // [rank, out] b sigma, MultiLoRA only
    float* scaled_bias = nullptr;                    // [out] scaling * bias
    // DoRA: squares of W's rows, the norms of W + scaling B A, and magnitude / norm.
    float *squares = nullptr, *norms = nullptr, *scales = nullptr;
    bool dora() const { return magnitude >= 0; }
  };
  // Values on a mask, beside or instead of a delta.
  struct SparseSlot {
    SparsePattern pattern;
    int values = -1;        // index of params
    int64_t out_begin = 0;  // column of the group's product
  };
  struct Layer {
    std::array<std::optional<Slot>, kNumProjs> slots;
    std::array<std::optional<SparseSlot>, kNumProjs> sparse;
    // Indices of params, -1 = the base's own weight.
    int input_norm = -1, post_norm = -1, q_norm = -1, k_norm = -1;
  };

  // Trains all that `initial` holds, from the values it has. kUnsupported for what cannot be trained: replaced
  // matrices of a layer, MultiLoRA with DoRA.
  static Result<std::unique_ptr<TrainableAdapter>> create(const Adapter& initial, const ModelWeights& weights,
                                                          Backend& backend, const TrainableOptions& options);

  // What create() would take, without taking it.
  struct Sizes {
    int64_t bytes = 0;       // of device memory: parameters, gradients, moments, compute copies
    int64_t copy_bytes = 0;  // of host memory: the adapter as a file, while it is made or saved
    int64_t parameters = 0;  // trained
    PassNeeds needs;
  };
  static Result<Sizes> sizes(const Adapter& initial, const ModelWeights& weights, Backend& backend,
                             const TrainableOptions& options);
  int64_t state_bytes() const;  // that it has taken

  const std::vector<Param>& params() const { return params_.all(); }
  const Param& param(int index) const { return params_.at(index); }
  float* value(int index) { return params_.value(index); }
  float* gradient(int index) { return params_.gradient(index); }
  // As in TrainParams.
  int64_t num_elements() const { return params_.num_elements(); }
  float* values() { return params_.values(); }
  int64_t num_states() const { return params_.num_states(); }
  float* gradients() { return params_.gradients(); }
  float* first_moments() { return params_.first_moments(); }
  float* second_moments() { return params_.second_moments(); }
  int64_t num_trained() const { return params_.num_trained(); }

  const Layer& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  const std::optional<Slot>& head() const { return head_; }
  int64_t group_rank(ProjGroup group, int64_t layer) const;  // sum over its slots
  bool trains_group(ProjGroup group, int64_t layer) const;   // a delta, or values on a mask
  const PassNeeds& needs() const { return needs_; }
  // As a forward pass sees it: the compute copies, and the values themselves of what is not copied.
  const ResidentAdapter& resident() const { return resident_; }

  // Of the whole model; indices of params or -1.
  int final_norm() const { return final_norm_; }
  int head_weight() const { return head_weight_; }
  int embedding_table() const { return embedding_table_; }
  int embedding_a() const { return embedding_a_; }
  int embedding_b() const { return embedding_b_; }
  double embedding_scaling() const { return embedding_scaling_; }
  int tokens() const { return tokens_; }
  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  int64_t token_row(int32_t token) const;  // of the trained rows, -1 = none
  // What a tied head adds to their gradient is summed apart until step(): otherwise the order of the two sums would
  // depend on where blocks are cut.
  float* token_head_gradient() { return token_head_gradient_.as<float>(); }
  // Then the backward pass goes down to the embedding.
  bool trains_embedding() const { return embedding_table_ >= 0 || embedding_a_ >= 0 || tokens_ >= 0; }
  // The lowest layer with something trained; num_layers when only the end of the model has.
  int64_t lowest_layer() const { return needs_.lowest_layer; }

  double dropout() const { return options_.dropout; }
  uint64_t dropout_seed() const { return options_.dropout_seed; }

  // Divides the gradient by `weight` (the sum of the tokens' weights), clips it and applies AdamW; then the gradient is
  // 0 and the compute copies are new. A gradient that is not finite changes nothing.
  StepReport step(const AdamwStep& dials, double weight);
  int64_t num_steps() const { return num_steps_; }  // so far; AdamW's bias correction counts them
  void set_num_steps(int64_t steps) { num_steps_ = steps; }
  void zero_gradient();
  // Turns what the passes summed into the gradients of the parameters; step() does it when nobody has.
  void finish_gradient();
  // Makes the compute copies from the masters.
  void refresh();

  // What is trained, as an adapter that can be saved and served: values as they are now. MultiLoRA is one delta of
  // all modules' ranks.
  Adapter snapshot() const;
  SparseValues sparse_values() const;  // that it trains, as they are now

 private:
  TrainableAdapter(const ModelWeights& weights, Backend& backend, const TrainableOptions& options)
      : weights_(weights), backend_(backend), ops_(backend.train_ops()), options_(options), params_(backend) {}

  Status collect(const Adapter& initial);
  Status collect_slot(ModuleId module, const LoraDelta& delta, std::optional<Slot>& slot);
  Status collect_sparse();
  void collect_weight(WeightId weight, const TensorView& view);
  void collect_embedding(const Adapter::EmbeddingDelta& delta);
  Status check_factors(int a, int b) const;
  Status allocate();
  void collect_needs();
  void place_copies();
  void make_resident();
  void refresh_slot(Slot& slot);
  void refresh_dora(Slot& slot);
  template <class F>
  void for_each_slot(const F& f);
  PackedWeight base_weight(const Slot& slot) const;
  void pack_rows(int param, const PackedWeight& dst);
  std::byte* take(int64_t bytes);
  LoraMatrix rank_rows(int64_t rank, int64_t width, DType dtype, std::byte** first);

  const ModelWeights& weights_;
  Backend& backend_;
  TrainOps& ops_;
  TrainableOptions options_;
  TrainParams params_;
  std::vector<Layer> layers_;
  std::optional<Slot> head_;
  int final_norm_ = -1, head_weight_ = -1, embedding_table_ = -1, embedding_a_ = -1, embedding_b_ = -1, tokens_ = -1;
  std::vector<int32_t> token_ids_;
  double embedding_scaling_ = 0;
  int64_t embedding_rank_ = 0;
  PackedWeight packed_head_, token_head_;
  int32_t* token_columns_ = nullptr;
  bool gradient_finished_ = false;
  int64_t num_steps_ = 0;
  PassNeeds needs_;
  ResidentAdapter resident_;
  DeviceBuffer token_head_gradient_;
  DeviceBuffer copies_;             // what the kernels compute with
  int64_t copies_bytes_ = 0;        // taken of it so far
  float* dora_products_ = nullptr;  // f32 [rank, out padded] scratch, of dora_columns_ elements
  int64_t dora_columns_ = 0;
  AdapterConfig config_;  // of the snapshot: rsLoRA, names
};

}  // namespace lk
