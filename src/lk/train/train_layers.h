// SPDX-License-Identifier: Apache-2.0
// TrainLayers: one layer of a pass, forward with what its backward pass reads kept, and backward. All but attention
// itself takes a row by itself, so it is done in blocks of rows, and the widest tensors never exist as a whole.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lk/train/pass_tools.h"

namespace lk {

// What stays in memory between the forward and the backward pass of a layer (arXiv:1604.06174).
enum class Checkpointing : uint8_t {
  kNone,       // everything but what costs no product to compute again: outputs of norms, silu(gate) up
  kSelective,  // nor gate and up, half of all that is kept: their product runs again
  kFull,       // the layer's input only: all but its last product runs again
};
const char* to_string(Checkpointing level);

// Rows that go through a layer at a time: enough that reading (and, backwards, turning) the weights costs little beside
// the products.
inline constexpr int64_t kLayerRows = 256;

// Where in a layer the lowest trained parameter stands. Backward passes end there.
enum class LayerPoint : uint8_t { kBelow, kInputNorm, kQkv, kHeadNorms, kO, kPostNorm, kGateUp, kDown, kAbove };
LayerPoint lowest_point(const TrainableAdapter& adapter, int64_t layer);

class TrainLayers {
 public:
  TrainLayers(PassTools& tools, int64_t max_rows, int64_t first_kept, Checkpointing level);
  ~TrainLayers();
  // Its buffers with their bytes, and what it wants of the scratch, which others use when no layer runs.
  std::vector<std::pair<DeviceBuffer*, int64_t>> buffers();
  int64_t scratch_bytes() const { return places_.bytes; }
  int64_t rows_at_a_time() const { return chunk_; }
  int64_t max_input_elements() const;  // of a linear, of so many rows

  // Of the block in work.
  struct Rows {
    const TokenBlock& block;
    bool drops = false;
    const float *cos = nullptr, *sin = nullptr, *negative_sin = nullptr;  // f32 [rows, head_dim / 2]
    std::byte* scratch = nullptr;
    int64_t num_rows() const { return block.num_rows(); }
  };
  // hidden, f32 [rows, hidden_dim], becomes the layer's output. With `keep` the layer's backward pass may follow.
  void forward(int64_t layer, const Rows& rows, float* hidden, bool keep);
  // Where the caller puts the layer's input once more before its backward pass; null: it was kept. That of the first
  // layer, the embedding, costs no product, and is not.
  float* lost_input(int64_t layer) { return loses_input(layer) ? input_of(layer) : nullptr; }
  // dhidden, the gradient of its output, becomes that of its input, but for what is below `stop`, the lowest trained
  // parameter. The layers' backward passes run from the last one down.
  void backward(int64_t layer, const Rows& rows, float* dhidden, LayerPoint stop);

 private:
  struct Kept;                                         // activations of one layer
  struct Places {                                      // offsets in the scratch
    int64_t residual;                                  // f32 [max_rows, widest of hidden_dim and q_dim]
    int64_t normed, dy;                                // act [chunk, hidden_dim, padded]
    int64_t gate_up, gate_up_products, down_products;  // of a chunk, where no layer keeps them
    int64_t activated;                                 // act [chunk, intermediate_dim]
    int64_t wide;                                      // f32, a product of a chunk in the MLP, or a gradient in it
    int64_t qkv;  // f32 [max_rows, qkv columns] a gradient; forwards a product of a chunk
    int64_t bytes;
  };
  // The MLP's middle for rows from `begin` on: kept, or of this chunk only.
  struct MlpPlace {
    std::byte* gate_up;
    float *gate_up_products, *down_products;
  };
  Places lay_out() const;
  template <class F>
  void for_each_chunk(const Rows& rows, const F& f) const;
  Kept& kept_of(int64_t layer, bool keep);
  bool loses_input(int64_t layer) const { return layer == 0 && tools_.weights.shape.num_layers > 1; }
  float* input_of(int64_t layer);
  MlpPlace mlp_place(const Rows& rows, Kept& kept, int64_t begin) const;
  float* products(Kept& kept, ProjGroup group, int64_t begin) const;
  void forward_attention(int64_t layer, const Rows& rows, Kept& kept, float* residual);
  void forward_qkv(int64_t layer, const Rows& rows, Kept& kept, const float* residual);
  void forward_mlp(int64_t layer, const Rows& rows, Kept& kept, float* residual);
  void forward_gate_up(int64_t layer, const RowView& view, const std::byte* normed, float* wide, const MlpPlace& place,
                       std::byte* activated);
  void activate(const RowView& view, const float* x, const MlpPlace& place, std::byte* activated);
  void backward_mlp(int64_t layer, const Rows& rows, Kept& kept, const float* x2, float* dhidden, LayerPoint stop);
  void backward_o(int64_t layer, const Rows& rows, Kept& kept, const float* dhidden, float* dattended, bool through);
  void backward_attention(int64_t layer, const Rows& rows, const Kept& kept, const float* dattended);
  void backward_qkv(int64_t layer, const Rows& rows, Kept& kept, float* dhidden, LayerPoint stop);
  BlockAttention attention(int64_t layer, const Rows& rows, const Kept& kept) const;
  void keep_raw(const RowView& view, float* qkv, std::byte* raw);
  void round(const float* x, int64_t x_stride, void* y, int64_t y_stride, int64_t num_rows, int64_t n);
  void round_qkv(const float* qkv, std::byte* y, int64_t num_rows);
  void copy(const float* from, float* to, int64_t num_rows);
  template <class T>
  static T* at(const Rows& rows, int64_t offset) {
    return reinterpret_cast<T*>(rows.scratch + offset);
  }
  int64_t angle(int64_t row) const { return row * tools_.weights.shape.head_dim / 2; }

  PassTools& tools_;
  const int64_t max_rows_, first_kept_, chunk_;
  const Checkpointing level_;
  Places places_{};
  std::vector<std::unique_ptr<Kept>> kept_;  // by layer
  std::unique_ptr<Kept> live_;               // of the layer that runs, where it has none of its own
};

}  // namespace lk
