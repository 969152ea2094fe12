// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_linear.h"

#include <algorithm>

#include "lk/base/rng.h"

namespace lk {
namespace {

// Rows whose output DoRA computes again at a time: enough for the product to be compute bound.
constexpr int64_t kDoraRows = 128;

}  // namespace

TrainLinears::TrainLinears(const ModelWeights& weights, Backend& backend, AdaptedOps& adapted, const PassNeeds& needs)
    : weights_(weights),
      backend_(backend),
      ops_(backend.train_ops()),
      adapted_(adapted),
      needs_(needs),
      act_(weights.act),
      act_bytes_(dtype_bytes(weights.act)) {}

LinearGroup TrainLinears::group(int64_t layer, ProjGroup group) const {
  const auto g = static_cast<size_t>(group);
  return {.layer = layer,
          .projs = projs_of(group),
          .base = &weights_.layers[static_cast<size_t>(layer)].linear[g],
          .columns = group_columns(group, weights_.shape),
          .in = in_dim(projs_of(group)[0], weights_.shape),
          .rank_stride = rank_stride(g),
          .module = static_cast<uint64_t>(layer) * kNumProjGroups + g + 1};
}

LinearGroup TrainLinears::head() const {
  return {.layer = LinearCall::kHead,
          .projs = {},
          .base = &weights_.lm_head,
          .columns = align_panel(weights_.shape.vocab_size),
          .in = weights_.shape.hidden_dim,
          .rank_stride = rank_stride(PassNeeds::kHead),
          .module = 0};
}

std::vector<std::pair<DeviceBuffer*, int64_t>> TrainLinears::buffers(int64_t max_rows, int64_t max_elements) {
  int64_t widest = 0;
  for (size_t g = 0; g < needs_.ranks.size(); ++g) widest = std::max(widest, rank_stride(g));
  std::vector<std::pair<DeviceBuffer*, int64_t>> all{{&dproducts_, max_rows * widest * 4}};
  if (needs_.dropout) all.insert(all.end(), {{&dropped_, max_elements * act_bytes_}, {&ddropped_, max_elements * 4}});
  if (needs_.dora_columns > 0) all.push_back({&dora_outputs_, std::min(max_rows, kDoraRows) * needs_.dora_columns * 4});
  return all;
}

LinearCall TrainLinears::call(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products) {
  const bool adapted =
      std::ranges::any_of(view.runs, [&](const TokenBlock::Run& run) { return group.adapted(run.adapter); });
  return {.layer = group.layer,
          .group = group.layer >= 0 ? group_of(group.projs[0]) : ProjGroup::kQkv,
          .x = x,
          .x_stride = group.in,
          .x_of_deltas = adapted ? drop(group, view, x) : x,
          .y = y,
          .num_rows = view.num_rows,
          .runs = view.adapters,
          .rank_rows = products,
          .rank_stride = group.rank_stride};
}

void TrainLinears::forward(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products) {
  if (observer_ && group.layer >= 0)
    observer_(group.layer, group_of(group.projs[0]), x, view.first_row, view.num_rows, group.in);
  adapted_.linear(call(group, view, x, y, products));
  add_sparse(group, view, x, y);
}

template <class F>
void TrainLinears::for_each_sparse(const LinearGroup& group, const RowView& view, const F& f) {
  if (group.layer < 0) return;
  for (const TokenBlock::Run& run : view.runs)
    for (const Proj proj : group.projs)
      if (run.adapter)
        if (const auto& slot = run.adapter->layer(group.layer).sparse[static_cast<size_t>(proj)]) f(*slot, run);
}

void TrainLinears::add_sparse(const LinearGroup& group, const RowView& view, const void* x, float* y) {
  for_each_sparse(group, view, [&](const TrainableAdapter::SparseSlot& slot, const TokenBlock::Run& run) {
    ops_.sparse_product({.s = slot.pattern,
                         .values = run.adapter->value(slot.values),
                         .x = row_of(x, run.begin, group.in, act_bytes_),
                         .act = act_,
                         .x_stride = group.in,
                         .y = y + run.begin * group.columns + slot.out_begin,
                         .y_stride = group.columns,
                         .num_rows = run.end - run.begin});
  });
}

void TrainLinears::backward_sparse(const LinearGroup& group, const RowView& view, const void* x, const void* dy,
                                   int64_t dy_stride, float* dx, bool through) {
  for_each_sparse(group, view, [&](const TrainableAdapter::SparseSlot& slot, const TokenBlock::Run& run) {
    const std::byte* own_dy = row_of(dy, run.begin, dy_stride, act_bytes_) + slot.out_begin * act_bytes_;
    const int64_t num_rows = run.end - run.begin;
    if (through)
      ops_.sparse_input_gradient({.s = slot.pattern,
                                  .values = run.adapter->value(slot.values),
                                  .dy = own_dy,
                                  .act = act_,
                                  .dy_stride = dy_stride,
                                  .dx = dx + run.begin * group.in,
                                  .dx_stride = group.in,
                                  .num_rows = num_rows});
    ops_.sparse_gradient({.s = slot.pattern,
                          .dy = own_dy,
                          .x = row_of(x, run.begin, group.in, act_bytes_),
                          .act = act_,
                          .dy_stride = dy_stride,
                          .x_stride = group.in,
                          .gradient = run.adapter->gradient(slot.values),
                          .num_rows = num_rows});
  });
}

void TrainLinears::add_deltas(const LinearGroup& group, const RowView& view, const void* x, float* y, float* products) {
  adapted_.add_deltas(call(group, view, x, y, products));
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
  if (through) backward_base(group, view, dy, dy_stride, dx);
  backward_sparse(group, view, x, dy, dy_stride, dx, through);
  const bool adapted =
      std::ranges::any_of(view.runs, [&](const TokenBlock::Run& run) { return group.adapted(run.adapter); });
  if (!adapted) return;
  backward_deltas(group, view, dy, dy_stride, dx, through);
  add_slot_gradients(group, view, x, dy, dy_stride, products);
}

// dx = dy W. Rows of adapters with weights of their own (a head, or an overlay below the adapter) go through these, all
// others share one product.
void TrainLinears::backward_base(const LinearGroup& group, const RowView& view, const void* dy, int64_t dy_stride,
                                 float* dx) {
  struct Source {
    const PackedWeight* whole;  // of the group, or null:
    const ResidentAdapter::Layer* own;
    bool operator==(const Source&) const = default;
  };
  const auto choose = [&](const AdapterRun& run) -> Source {
    if (group.layer == LinearCall::kHead)
      return {run.adapter && run.adapter->replaced_lm_head ? run.adapter->replaced_lm_head : group.base, nullptr};
    const auto* own = run.adapter ? &run.adapter->layers[static_cast<size_t>(group.layer)] : nullptr;
    if (own && own->replaces(group_of(group.projs[0]))) return {nullptr, own};
    return {group.base, nullptr};
  };
  for_each_stretch(view.adapters, view.num_rows, choose, [&](const Source& source, int64_t begin, int64_t end) {
    const auto product = [&](const PackedWeight& w, int64_t column, bool add) {
      ops_.gemm_transposed({.x = row_of(dy, begin, dy_stride, act_bytes_) + column * act_bytes_,
                            .act = act_,
                            .x_stride = dy_stride,
                            .w = w,
                            .y = dx + begin * group.in,
                            .y_stride = group.in,
                            .num_rows = end - begin,
                            .add = add});
    };
    if (source.whole) return product(*source.whole, 0, false);
    for (const Proj proj : group.projs) {
      const int64_t column = group_column(proj, weights_.shape);
      const PackedWeight* own = source.own->replaced[static_cast<size_t>(proj)];
      product(own ? *own : columns_of(*group.base, column, out_dim(proj, weights_.shape)), column,
              proj != group.projs[0]);
    }
  });
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
    float* y = dora_outputs_.as<float>();
    for (int64_t begin = run.begin; begin < run.end; begin += kDoraRows) {
      const int64_t num_rows = std::min<int64_t>(run.end - begin, kDoraRows);
      const auto count = static_cast<int32_t>(num_rows);
      const RowView rows{.num_rows = num_rows,
                         .runs = {{0, count, run.adapter}},
                         .adapters = {{0, count, &run.adapter->resident()}},
                         .dropout = {}};
      const void* input = row_of(x, begin, group.in, act_bytes_);
      const LinearCall output = call(group, rows, input, y, dproducts_.as<float>());
      adapted_.add_products(output);
      adapted_.add_deltas(output);
      for (int64_t s = 0; s < group.num_slots(); ++s) {
        const auto* slot = group.slot(run.adapter, s);
        if (!slot || !slot->dora()) continue;
        std::byte* own = row_of(dy, begin, dy_stride, act_bytes_) + slot->forward.out_begin * act_bytes_;
        ops_.dora_magnitude_grad({.dy = own,
                                  .dy_dtype = act_,
                                  .dy_stride = dy_stride,
                                  .y = y + slot->forward.out_begin,
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
      call->segments.push_back({run.begin, run.end, run.adapter->resident().rank_rows, std::span(&slot->backward, 1)});
    }
    for (const Call& call : calls)
      backend_.lora({.x = static_cast<const std::byte*>(dy) + out_begin * act_bytes_,
                     .act = act_,
                     .x_stride = dy_stride,
                     .y = call.dropped ? ddropped_.as<float>() : dx,
                     .y_stride = group.in,
                     .segments = call.segments,
                     .v = dproducts_.as<float>() + call.column,
                     .v_stride = group.rank_stride});
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
        outers.push_back({.c = dproducts_.as<float>() + run.begin * group.rank_stride + column,
                          .c_stride = group.rank_stride,
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
        outers.push_back({.c = products + run.begin * group.rank_stride + column,
                          .c_stride = group.rank_stride,
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
