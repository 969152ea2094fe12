// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_linear.h"

#include <algorithm>

#include "lk/base/rng.h"

namespace lk {
namespace {

// Rows whose output DoRA computes again at a time: enough for the product to be compute bound.
constexpr int64_t kDoraRows = 128;

}  // namespace

LinearGroup layer_group(const ModelWeights& weights, int64_t layer, ProjGroup group) {
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  const auto g = static_cast<size_t>(group);
  return {.layer = layer,
          .projs = projs_of(group),
          .base = &w.linear[g],
          .bias = w.bias[g],
          .columns = group_columns(group, weights.shape),
          .in = in_dim(projs_of(group)[0], weights.shape),
          .module = static_cast<uint64_t>(layer) * kNumProjGroups + g + 1};
}

LinearGroup head_group(const ModelWeights& weights) {
  return {.layer = -1,
          .projs = {},
          .base = &weights.lm_head,
          .bias = nullptr,
          .columns = align_panel(weights.shape.vocab_size),
          .in = weights.shape.hidden_dim,
          .module = 0};
}

std::vector<std::pair<DeviceBuffer*, int64_t>> TrainLinears::buffers(int64_t max_rows, int64_t max_dropped) {
  std::vector<std::pair<DeviceBuffer*, int64_t>> all{{&dproducts_, max_rows * rank_stride_ * 4}};
  if (max_dropped > 0) all.insert(all.end(), {{&dropped_, max_dropped * act_bytes_}, {&ddropped_, max_dropped * 4}});
  return all;
}

void TrainLinears::forward(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products) {
  if (observer_ && group.layer >= 0)
    observer_(group.layer, group_of(group.projs[0]), x, view.first_row, view.num_rows, group.in);
  add_base_products(group, view, x, y);
  add_deltas(group, view, x, y, products);
  if (group.bias) backend_.add_bias(y, group.columns, group.bias, view.num_rows, group.columns);
}

// Rows of adapters with a head of their own go through it, all others share one product.
template <class F>
void TrainLinears::for_each_weight(const LinearGroup& group, const RowView& view, const F& apply) {
  size_t run = 0;
  while (run < view.runs.size()) {
    const PackedWeight* weight = group.weight(view.runs[run].adapter);
    const int64_t begin = view.runs[run].begin;
    int64_t end = begin;
    for (; run < view.runs.size() && group.weight(view.runs[run].adapter) == weight; ++run) end = view.runs[run].end;
    apply(*weight, begin, end);
  }
}

void TrainLinears::add_base_products(const LinearGroup& group, const RowView& view, const void* x, float* y) {
  for_each_weight(group, view, [&](const PackedWeight& w, int64_t begin, int64_t end) {
    backend_.gemm({.x = row_of(x, begin, group.in, act_bytes_),
                   .act = act_,
                   .x_stride = group.in,
                   .w = w,
                   .y = y + begin * group.columns,
                   .y_stride = group.columns,
                   .num_rows = end - begin});
  });
}

void TrainLinears::lora(std::span<const LoraSegment> segments, const void* x, int64_t x_stride, float* y,
                        int64_t y_stride, float* products) {
  // Offsets of rank rows are relative to their adapter's copies, and so is each segment's base.
  backend_.lora({.x = x,
                 .act = act_,
                 .x_stride = x_stride,
                 .y = y,
                 .y_stride = y_stride,
                 .segments = segments,
                 .v = products,
                 .v_stride = rank_stride_});
}

void TrainLinears::add_deltas(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products) {
  std::vector<std::array<LoraProj, 3>> projs(view.runs.size());
  std::vector<LoraSegment> segments;
  for (size_t index = 0; index < view.runs.size(); ++index) {
    const TokenBlock::Run& run = view.runs[index];
    size_t count = 0;
    for (int64_t s = 0; s < group.num_slots(); ++s)
      if (const auto* slot = group.slot(run.adapter, s)) projs[index][count++] = slot->forward;
    if (count > 0)
      segments.push_back({run.begin, run.end, run.adapter->copies(), std::span(projs[index]).subspan(0, count)});
  }
  if (!segments.empty()) lora(segments, drop(group, view, x), group.in, y, group.columns, products);
}

std::vector<DropoutRows> TrainLinears::keyed(const LinearGroup& group, const RowView& view) const {
  std::vector<DropoutRows> rows = view.dropout;
  for (DropoutRows& row : rows) row.key = mix64(row.key + group.module * 0x9e3779b97f4a7c15ull);
  return rows;
}

const void* TrainLinears::drop(const LinearGroup& group, const RowView& view, const void* x) {
  if (view.dropout.empty()) return x;
  // Rows without dropout are copied: one kernel reads them all.
  ops_.round_rows({.x = x,
                   .x_dtype = act_,
                   .x_stride = group.in,
                   .y = dropped_.data(),
                   .y_dtype = act_,
                   .y_stride = group.in,
                   .num_rows = view.num_rows,
                   .n = group.in,
                   .padded = group.in});
  ops_.dropout({.x = x,
                .x_dtype = act_,
                .x_stride = group.in,
                .y = dropped_.data(),
                .y_dtype = act_,
                .y_stride = group.in,
                .add = false,
                .dim = group.in,
                .rows = keyed(group, view)});
  return dropped_.data();
}

void TrainLinears::backward(const LinearGroup& group, const RowView& view, const void* x, void* dy, int64_t dy_stride,
                            const float* products, float* dx, bool through) {
  backward_dora(group, view, x, dy, dy_stride);
  if (through)
    for_each_weight(group, view, [&](const PackedWeight& w, int64_t begin, int64_t end) {
      ops_.gemm_transposed({.x = row_of(dy, begin, dy_stride, act_bytes_),
                            .act = act_,
                            .x_stride = dy_stride,
                            .w = w,
                            .y = dx + begin * group.in,
                            .y_stride = group.in,
                            .num_rows = end - begin});
    });
  const bool adapted =
      std::ranges::any_of(view.runs, [&](const TokenBlock::Run& run) { return group.adapted(run.adapter); });
  if (!adapted) return;
  backward_deltas(group, view, dy, dy_stride, dx, through);
  add_slot_gradients(group, view, x, dy, dy_stride, products);
}

// The magnitudes' gradients need the output before the base's bias, which is not kept. Then dy becomes the gradient of
// what the magnitudes scale: the norms count as constants (arXiv:2402.09353, 4.3).
void TrainLinears::backward_dora(const LinearGroup& group, const RowView& some, const void* x, void* dy,
                                 int64_t dy_stride) {
  for (const TokenBlock::Run& run : some.runs) {
    bool scaled = false;
    for (int64_t s = 0; s < group.num_slots(); ++s) {
      const auto* slot = group.slot(run.adapter, s);
      scaled |= slot && slot->dora();
    }
    if (!scaled) continue;
    // A few rows at a time: the sums over rows go on from one to the next, and a head's output is wide.
    DeviceBuffer y = backend_.allocate(std::min<int64_t>(run.end - run.begin, kDoraRows) * group.columns * 4);
    for (int64_t begin = run.begin; begin < run.end; begin += kDoraRows) {
      const int64_t num_rows = std::min<int64_t>(run.end - begin, kDoraRows);
      const RowView rows{
          .num_rows = num_rows, .runs = {{0, static_cast<int32_t>(num_rows), run.adapter}}, .dropout = {}};
      const void* input = row_of(x, begin, group.in, act_bytes_);
      add_base_products(group, rows, input, y.as<float>());
      add_deltas(group, rows, input, y.as<float>(), dproducts_.as<float>());
      for (int64_t s = 0; s < group.num_slots(); ++s) {
        const auto* slot = group.slot(run.adapter, s);
        if (!slot || !slot->dora()) continue;
        std::byte* own = row_of(dy, begin, dy_stride, act_bytes_) + slot->forward.out_begin * act_bytes_;
        ops_.dora_magnitude_grad({.dy = own,
                                  .dy_dtype = act_,
                                  .dy_stride = dy_stride,
                                  .y = y.as<float>() + slot->forward.out_begin,
                                  .y_stride = group.columns,
                                  .magnitudes = run.adapter->value(slot->magnitude),
                                  .gradient = run.adapter->gradient(slot->magnitude),
                                  .num_rows = num_rows,
                                  .n = slot->out});
        ops_.round_rows({.x = own,
                         .x_dtype = act_,
                         .x_stride = dy_stride,
                         .scale = slot->scales,
                         .y = own,
                         .y_dtype = act_,
                         .y_stride = dy_stride,
                         .num_rows = num_rows,
                         .n = slot->out,
                         .padded = slot->out});
      }
    }
  }
}

// dproducts_ = scaling dy B of every slot, and dx += (scaling dy B) A, through dropout's mask where there is
// one.
void TrainLinears::backward_deltas(const LinearGroup& group, const RowView& some, void* dy, int64_t dy_stride,
                                   float* dx, bool through) {
  const bool dropping = !some.dropout.empty();
  if (dropping) ops_.fill(ddropped_.as<float>(), some.num_rows * group.in, 0);
  // One call for all runs whose products stand in the same column (the ranks before them in the group) and which write
  // to the same place.
  struct Call {
    int64_t column;
    bool dropped;
    std::vector<LoraSegment> segments;
  };
  for (int64_t s = 0; s < group.num_slots(); ++s) {
    std::vector<Call> calls;
    int64_t out_begin = 0;
    for (const TokenBlock::Run& run : some.runs) {
      const auto* slot = group.slot(run.adapter, s);
      if (!slot) continue;
      out_begin = slot->forward.out_begin;
      const int64_t column = product_column(group, *run.adapter, s);
      const bool dropped = dropping && run.adapter->dropout() > 0;
      auto call =
          std::ranges::find_if(calls, [&](const Call& c) { return c.column == column && c.dropped == dropped; });
      if (call == calls.end()) call = calls.insert(calls.end(), {column, dropped, {}});
      call->segments.push_back({run.begin, run.end, run.adapter->copies(), std::span(&slot->backward, 1)});
    }
    for (const Call& call : calls)
      lora(call.segments, static_cast<const std::byte*>(dy) + out_begin * act_bytes_, dy_stride,
           call.dropped ? ddropped_.as<float>() : dx, group.in, dproducts_.as<float>() + call.column);
  }
  if (dropping && through)
    ops_.dropout({.x = ddropped_.data(),
                  .x_dtype = DType::kF32,
                  .x_stride = group.in,
                  .y = dx,
                  .y_dtype = DType::kF32,
                  .y_stride = group.in,
                  .add = true,
                  .dim = group.in,
                  .rows = keyed(group, some)});
}

int64_t TrainLinears::product_column(const LinearGroup& group, const TrainableAdapter& adapter, int64_t index) {
  int64_t column = 0;
  for (int64_t s = 0; s < index; ++s)
    if (const auto* slot = group.slot(&adapter, s)) column += slot->rank;
  return column;
}

void TrainLinears::add_slot_gradients(const LinearGroup& group, const RowView& some, const void* x, const void* dy,
                                      int64_t dy_stride, const float* products) {
  const void* input = drop(group, some, x);
  std::vector<OuterProduct> outers;
  for (const TokenBlock::Run& run : some.runs) {
    for (int64_t s = 0; s < group.num_slots(); ++s) {
      const auto* slot = group.slot(run.adapter, s);
      if (!slot) continue;
      TrainableAdapter& own = *run.adapter;
      const int64_t num_rows = run.end - run.begin, column = product_column(group, own, s);
      const std::byte* own_dy = row_of(dy, run.begin, dy_stride, act_bytes_) + slot->forward.out_begin * act_bytes_;
      if (own.param(slot->a).trained_rows > 0)
        outers.push_back({.c = dproducts_.as<float>() + run.begin * rank_stride_ + column,
                          .c_stride = rank_stride_,
                          .x = row_of(input, run.begin, group.in, act_bytes_),
                          .x_dtype = act_,
                          .x_stride = group.in,
                          .num_rows = num_rows,
                          .rank = slot->trained_rank,
                          .width = slot->in,
                          .gradient = own.gradient(slot->a),
                          .gradient_stride = slot->in});
      // The sigma of MultiLoRA is unfolded from B's gradient, frozen or not.
      if (own.param(slot->b).trained_rows > 0 || slot->sigma >= 0)
        outers.push_back({.c = products + run.begin * rank_stride_ + column,
                          .c_stride = rank_stride_,
                          .x = own_dy,
                          .x_dtype = act_,
                          .x_stride = dy_stride,
                          .num_rows = num_rows,
                          .rank = slot->trained_rank,
                          .width = slot->out,
                          .gradient = own.gradient(slot->b),
                          .gradient_stride = slot->out});
      if (slot->bias >= 0)
        ops_.column_sum({.x = own_dy,
                         .x_dtype = act_,
                         .x_stride = dy_stride,
                         .scale = slot->scaling,
                         .gradient = own.gradient(slot->bias),
                         .num_rows = num_rows,
                         .n = slot->out});
    }
  }
  ops_.outer(outers);
}

}  // namespace lk
