// SPDX-License-Identifier: Apache-2.0
// TrainPass: one forward and backward pass of the frozen base over a block of rows, shared by many adapters; each row's
// gradient goes to its run's adapter alone. Formulas: docs/design/training.md.
//
// Isolation: what an adapter's gradient becomes depends on its own samples, in their order, and on nothing else: not on
// the samples of others in the block, on where blocks were cut between its samples, on which activations were kept or
// on the number of threads, bit for bit.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lk/model/rope.h"
#include "lk/train/token_block.h"
#include "lk/train/train_head.h"
#include "lk/train/train_layers.h"

namespace lk {

struct TrainPassOptions {
  int64_t max_rows = 0;        // of a block
  int64_t longest_sample = 0;  // rows of one, for memory_bytes() alone; 0: may fill a block
  PassNeeds needs;             // of the adapters
  Checkpointing checkpointing = Checkpointing::kNone;
};

class TrainPass {
 public:
  static Result<std::unique_ptr<TrainPass>> create(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                                   const TrainPassOptions& options);
  // Device memory that create() takes, and what the ops keep beside it.
  static int64_t memory_bytes(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                              const TrainPassOptions& options);

  // kInvalidArgument for a sample that no block can hold: too long, or with ids that the model does not have.
  Status accepts(std::span<const int32_t> sample_tokens) const;
  int64_t max_rows() const { return options_.max_rows; }

  // Forward, loss and backward: adds to the gradients of the runs' adapters, unnormalised (sums of weighted tokens).
  RowLosses forward_backward(const TokenBlock& block);
  // Forward and loss only.
  RowLosses evaluate(const TokenBlock& block);
  // Forward, and shows the inputs of the linears.
  using InputObserver = TrainLinears::InputObserver;
  void observe(const TokenBlock& block, InputObserver observer);

 private:
  enum class Mode : uint8_t { kEvaluate, kTrain };
  // What is trained of a block.
  struct Extent {
    int64_t lowest_layer = 0;
    LayerPoint lowest_point = LayerPoint::kAbove;  // in it
    bool embedding = false, drops = false;
  };

  TrainPass(std::shared_ptr<const ModelWeights> weights, Backend& backend, const TrainPassOptions& options);
  // Every buffer with its size in bytes.
  std::vector<std::pair<DeviceBuffer*, int64_t>> buffers();

  RowLosses run(const TokenBlock& block, Mode mode);
  Extent check(const TokenBlock& block, Mode mode) const;
  void upload_angles(const TokenBlock& block);
  void backward_embedding(const TokenBlock& block);

  std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  const TrainPassOptions options_;
  PassTools tools_;
  TrainLayers layers_;
  TrainHead head_;
  RopeTable rope_;
  std::vector<float> cos_rows_, sin_rows_;  // [positions so far, head_dim / 2]
  DeviceBuffer cos_, sin_, negative_sin_;   // f32 [rows, head_dim / 2]
  DeviceBuffer hidden_;   // f32 [rows, hidden_dim] the residual stream; from the head on, its gradient
  DeviceBuffer scratch_;  // of the layers and of the head, which take turns
};

}  // namespace lk
