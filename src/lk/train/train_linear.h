// SPDX-License-Identifier: Apache-2.0
// The adapted linears of a pass: forward what serving computes, with each run's rank products kept, and backwards the
// gradients of both factors. What is in it of kinds (DoRA, MultiLoRA, frozen halves, dropout, biases) is here.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "lk/model/adapted_ops.h"
#include "lk/train/token_block.h"
#include "lk/train/trainable_adapter.h"

namespace lk {

inline std::byte* row_of(void* base, int64_t row, int64_t stride, int64_t element_bytes) {
  return static_cast<std::byte*>(base) + row * stride * element_bytes;
}
inline const std::byte* row_of(const void* base, int64_t row, int64_t stride, int64_t element_bytes) {
  return static_cast<const std::byte*>(base) + row * stride * element_bytes;
}

// The linears that read one input: a group of a layer, or the head.
struct LinearGroup {
  int64_t layer = LinearCall::kHead;
  std::span<const Proj> projs;
  const PackedWeight* base = nullptr;
  int64_t columns = 0, in = 0;
  int64_t rank_stride = 0;  // columns of rank products, at least the largest sum of ranks of an adapter
  uint64_t module = 0;      // of dropout's keys

  int64_t num_slots() const { return layer >= 0 ? static_cast<int64_t>(projs.size()) : 1; }
  const TrainableAdapter::Slot* slot(const TrainableAdapter* adapter, int64_t index) const {
    if (!adapter) return nullptr;
    const auto& slot = layer >= 0 ? adapter->layer(layer).slots[static_cast<size_t>(projs[static_cast<size_t>(index)])]
                                  : adapter->head();
    return slot ? &*slot : nullptr;
  }
  bool adapted(const TrainableAdapter* adapter) const {
    for (int64_t index = 0; index < num_slots(); ++index)
      if (slot(adapter, index)) return true;
    return false;
  }
};

class TrainLinears {
 public:
  // Sees the input of each layer's groups: act [num_rows, width], rows from first_row on.
  using InputObserver = std::function<void(int64_t layer, ProjGroup group, const void* x, int64_t first_row,
                                           int64_t num_rows, int64_t width)>;

  TrainLinears(const ModelWeights& weights, Backend& backend, AdaptedOps& adapted, const PassNeeds& needs);
  LinearGroup group(int64_t layer, ProjGroup group) const;
  LinearGroup head() const;
  int64_t rank_stride(size_t group) const { return (needs_.ranks[group] + 15) / 16 * 16; }  // as in PassNeeds
  // Its buffers with their bytes, for views of at most max_rows rows, or max_elements elements of an input.
  std::vector<std::pair<DeviceBuffer*, int64_t>> buffers(int64_t max_rows, int64_t max_elements);
  void set_observer(InputObserver observer) { observer_ = std::move(observer); }

  // y [rows, columns of the group] = what the base and the adapters make of x [rows, in]; the adapters' rank products
  // stay in `products` [rows, rank stride of the group].
  void forward(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products);
  // The adapters' low-rank part of it alone.
  void add_deltas(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products);
  // Adds to the gradients of the group's slots, given the act-typed gradient of y (which DoRA scales in place). With
  // `through`, dx [rows, in] becomes the gradient of x, f32; else its content is of no use.
  void backward(const LinearGroup& group, const RowView& view, const void* x, void* dy, int64_t dy_stride,
                const float* products, float* dx, bool through);

 private:
  // Of values on a mask: f(slot, run) for each run that has one.
  template <class F>
  static void for_each_sparse(const LinearGroup& group, const RowView& view, const F& f);
  void add_sparse(const LinearGroup& group, const RowView& view, const void* x, float* y);
  void backward_sparse(const LinearGroup& group, const RowView& view, const void* x, const void* dy, int64_t dy_stride,
                       float* dx, bool through);
  void backward_base(const LinearGroup& group, const RowView& view, const void* dy, int64_t dy_stride, float* dx);
  LinearCall call(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products);
  void backward_dora(const LinearGroup& group, const RowView& view, const void* x, void* dy, int64_t dy_stride);
  void backward_deltas(const LinearGroup& group, const RowView& view, void* dy, int64_t dy_stride, float* dx,
                       bool through);
  void add_slot_gradients(const LinearGroup& group, const RowView& view, const void* x, const void* dy,
                          int64_t dy_stride, const float* products);
  // First column of a slot's rank products among its adapter's of the group.
  static int64_t product_column(const LinearGroup& group, const TrainableAdapter& adapter, int64_t index);
  // x with the features of the view's dropout rows dropped, in dropped_; x itself without such rows.
  const void* drop(const LinearGroup& group, const RowView& view, const void* x);
  std::vector<DropoutRows> keyed(const LinearGroup& group, const RowView& view) const;

  const ModelWeights& weights_;
  Backend& backend_;
  TrainOps& ops_;
  AdaptedOps& adapted_;
  const PassNeeds needs_;
  const DType act_;
  const int64_t act_bytes_;
  InputObserver observer_;
  DeviceBuffer dropped_;       // act [rows, in]
  DeviceBuffer ddropped_;      // f32 likewise
  DeviceBuffer dproducts_;     // f32 [rows, widest rank stride]
  DeviceBuffer dora_outputs_;  // f32 [kDoraRows, widest output with DoRA]
};

}  // namespace lk
