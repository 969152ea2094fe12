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
#include <vector>

#include "lk/model/rope.h"
#include "lk/train/token_block.h"
#include "lk/train/train_linear.h"

namespace lk {

// What stays in memory between the forward and the backward pass of a layer (arXiv:1604.06174).
enum class Checkpointing : uint8_t {
  kNone,       // everything but what costs no product to compute again: outputs of norms, silu(gate) up
  kSelective,  // nor gate and up, half of all that is kept: their product runs again
  kFull,       // the layer's input only: all but its last product runs again
};
const char* to_string(Checkpointing level);

// Per row of the block: what its target cost. Rows without loss have 0.
struct RowLosses {
  std::vector<float> losses;    // unweighted negative log-likelihood, nats
  std::vector<uint8_t> greedy;  // 1: the target was the most likely token
};

struct TrainPassOptions {
  int64_t max_rows = 0;        // of a block
  int64_t max_group_rank = 0;  // of the adapters
  int64_t lowest_layer = 0;    // of the adapters; layers below keep nothing
  bool dropout = false;        // some adapter has it
  Checkpointing checkpointing = Checkpointing::kNone;
};

class TrainPass {
 public:
  static Result<std::unique_ptr<TrainPass>> create(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                                   const TrainPassOptions& options);
  ~TrainPass();
  // Device memory that create() takes.
  static int64_t memory_bytes(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                              const TrainPassOptions& options);

  // kInvalidArgument for a sample that no block can hold: too long, or with ids that the model does not have.
  Status accepts(std::span<const int32_t> sample_tokens) const;
  int64_t max_rows() const { return max_rows_; }

  // Forward, loss and backward: adds to the gradients of the runs' adapters, unnormalised (sums of weighted tokens).
  RowLosses forward_backward(const TokenBlock& block);
  // Forward and loss only.
  RowLosses evaluate(const TokenBlock& block);
  // Forward, and shows the inputs of the linears.
  using InputObserver = TrainLinears::InputObserver;
  void observe(const TokenBlock& block, InputObserver observer);

 private:
  using Run = TokenBlock::Run;
  enum class Mode : uint8_t { kEvaluate, kTrain };
  struct Kept;  // activations of one layer
  using NormParam = int (*)(const TrainableAdapter& adapter, int64_t layer);

  TrainPass(std::shared_ptr<const ModelWeights> weights, Backend& backend, const TrainPassOptions& options);
  // Every buffer with its size in bytes.
  std::vector<std::pair<DeviceBuffer*, int64_t>> buffers();

  RowLosses run(const TokenBlock& block, Mode mode);
  void prepare(const TokenBlock& block, Mode mode);
  void embed(const TokenBlock& block);
  // Where a layer without place of its own puts what it keeps.
  Kept& shared() { return level_ == Checkpointing::kFull ? *live_ : *kept_.back(); }
  // The MLP's middle for rows from `begin` on: kept, or of this block of rows only.
  struct MlpPlace {
    std::byte* gate_up;
    float *gate_up_products, *down_products;
  };
  MlpPlace mlp_place(Kept& kept, int64_t begin);
  void forward_attention(int64_t layer, const TokenBlock& block, Kept& kept);
  void forward_mlp(int64_t layer, const TokenBlock& block, Kept& kept);
  // gate, up and silu(gate) up (in activated_) of rows whose norm is in `normed`.
  void forward_gate_up(int64_t layer, const RowView& rows, const void* normed, const MlpPlace& place);
  void activate(const RowView& rows, const float* x, const MlpPlace& place);
  void backward_layer(int64_t layer, const TokenBlock& block, const float* x, Kept& kept);
  // Down to `stop` (Point) at most.
  void backward_mlp(int64_t layer, const TokenBlock& block, Kept& kept, int stop);
  void backward_attention(int64_t layer, const TokenBlock& block, const float* x, Kept& kept, int stop);
  BlockAttention attention(int64_t layer, const TokenBlock& block, const Kept& kept) const;
  void backward_embedding(const TokenBlock& block);
  void head(const TokenBlock& block, Mode mode, RowLosses& result);
  void head_chunk(const TokenBlock& block, std::span<const int32_t> rows, Mode mode, RowLosses& result);
  void backward_head(const RowView& view, std::span<const int32_t> rows);

  void norm(const RowView& view, const float* x, const float* base, NormParam own, int64_t layer, void* y);
  void norm_backward(const RowView& view, const float* x, const float* base, NormParam own, int64_t layer,
                     const float* dy, float* dx, bool add);
  void head_norms(const RowView& view, int64_t layer, const void* raw, float* qkv);
  void head_norms_backward(const RowView& view, int64_t layer, const void* raw, float* dqkv);
  void rotate(float* qkv, const float* sin);
  void copy(const float* from, float* to, int64_t columns);

  std::shared_ptr<const ModelWeights> weights_;
  Backend& backend_;
  TrainOps& ops_;
  const int64_t max_rows_, rank_stride_;
  const int64_t first_kept_;  // layer; at least one keeps
  int64_t head_rows_;
  const bool dropout_;
  const Checkpointing level_;
  int64_t act_bytes_;
  TrainLinears linears_;
  RopeTable rope_;
  std::vector<float> cos_rows_, sin_rows_;  // [positions so far, head_dim / 2]
  // Of the block in work.
  int64_t num_rows_ = 0;
  int64_t lowest_layer_ = 0;  // nothing is trained below
  int lowest_point_ = 0;      // in it (Point)
  bool embedding_trained_ = false, drops_ = false;

  std::vector<std::unique_ptr<Kept>> kept_;  // by layer
  std::unique_ptr<Kept> live_;               // with kFull: of the layer that runs
  DeviceBuffer cos_, sin_, negative_sin_;    // f32 [rows, head_dim / 2]
  DeviceBuffer hidden_;                      // f32 [rows, hidden_dim] residual stream
  DeviceBuffer dhidden_;                     // its gradient
  DeviceBuffer normed_;                      // act [rows, hidden_dim]
  DeviceBuffer qkv_;                         // f32 [rows, qkv columns], then its gradient
  DeviceBuffer dqkv_;                        // act, likewise
  DeviceBuffer wide_;                  // f32 [MLP rows, gate_up columns]: a product, or a gradient of the MLP's middle
  DeviceBuffer gate_up_;               // act likewise, where no layer keeps it
  DeviceBuffer activated_;             // act [MLP rows, intermediate_dim]
  DeviceBuffer mlp_products_;          // f32 [2, MLP rows, rank stride] where no layer keeps them
  DeviceBuffer product_;               // f32 [rows, widest of hidden_dim and q_dim, padded]
  DeviceBuffer dy_;                    // act [rows, hidden_dim padded]
  DeviceBuffer logits_;                // f32 [head rows, vocab_size padded], then their gradient
  DeviceBuffer gathered_, dgathered_;  // f32 [head rows, hidden_dim]
  DeviceBuffer head_input_;            // act likewise
  DeviceBuffer head_products_;         // f32 [head rows, rank stride]
  DeviceBuffer losses_, greedy_;       // [head rows]
};

}  // namespace lk
