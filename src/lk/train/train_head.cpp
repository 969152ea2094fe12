// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_head.h"

#include <algorithm>

#include "lk/train/scratch.h"

namespace lk {
namespace {

// Rows of logits at a time: beyond the most a product gains nothing, below the least it is bound by reading the head.
constexpr int64_t kMostRows = 256, kLeastRows = 32;
// Rows whose gradient a head that is trained as a whole takes at a time, as f32.
constexpr int64_t kWideRows = 32;

}  // namespace

TrainHead::TrainHead(PassTools& tools, const PassNeeds& needs, int64_t max_rows, int64_t free_bytes)
    : tools_(tools),
      linear_(tools.linears.head()),
      logits_stride_(align_panel(tools.weights.shape.vocab_size)),
      token_columns_(needs.token_columns) {
  rows_ = std::min(max_rows, kLeastRows);
  while (rows_ < std::min(max_rows, kMostRows) && lay_out(rows_ + 1, needs).bytes <= free_bytes) ++rows_;
  places_ = lay_out(rows_, needs);
}

TrainHead::Places TrainHead::lay_out(int64_t rows, const PassNeeds& needs) const {
  const int64_t hidden = tools_.weights.shape.hidden_dim;
  ScratchLayout layout;
  Places p{};
  p.logits = layout.take(rows * logits_stride_ * 4);
  p.gathered = layout.take(rows * hidden * 4);
  p.dgathered = layout.take(rows * hidden * 4);
  p.input = layout.take(rows * hidden * tools_.act_bytes);
  p.products = layout.take(rows * linear_.rank_stride * 4);
  p.losses = layout.take(rows * 4);
  p.greedy = layout.take(rows);
  p.token_gradients = layout.take(rows * token_columns_ * 4);
  p.token_rounded = layout.take(rows * token_columns_ * tools_.act_bytes);
  p.wide = layout.take(needs.head_weight ? std::min(rows, kWideRows) * tools_.weights.shape.vocab_size * 4 : 0);
  p.bytes = layout.used();
  return p;
}

std::byte* TrainHead::logit_gradient(int64_t row) const {
  return row_of(scratch_ + places_.logits, row, gradient_stride(), tools_.act_bytes);
}

RowLosses TrainHead::run(const TokenBlock& block, float* hidden, std::byte* scratch, bool drops, bool backward) {
  scratch_ = scratch;
  const int64_t dim = tools_.weights.shape.hidden_dim;
  RowLosses result{std::vector<float>(block.tokens.size()), std::vector<uint8_t>(block.tokens.size())};
  std::vector<int32_t> all;
  for (size_t row = 0; row < block.weights.size(); ++row)
    if (block.weights[row] != 0) all.push_back(static_cast<int32_t>(row));
  int64_t done = 0;  // rows whose hidden state is a gradient already
  for (size_t begin = 0; begin < all.size(); begin += static_cast<size_t>(rows_)) {
    const auto rows =
        std::span<const int32_t>(all).subspan(begin, std::min(all.size() - begin, static_cast<size_t>(rows_)));
    const RowView view = rows_of(block, rows, drops);
    float* gathered = at<float>(places_.gathered);
    tools_.backend.gather_rows(
        {.x = hidden, .x_stride = dim, .rows = rows, .y = gathered, .y_stride = dim, .dim = dim});
    run_rows(block, rows, view, result, backward);
    if (!backward) continue;
    tools_.ops.fill(hidden + done * dim, (rows.back() + 1 - done) * dim, 0);
    done = rows.back() + 1;
    tools_.ops.scatter_rows({.x = at<float>(places_.dgathered),
                             .x_stride = dim,
                             .rows = rows,
                             .gradient = hidden,
                             .gradient_stride = dim,
                             .dim = dim});
  }
  if (backward && done < block.num_rows()) tools_.ops.fill(hidden + done * dim, (block.num_rows() - done) * dim, 0);
  return result;
}

void TrainHead::run_rows(const TokenBlock& block, std::span<const int32_t> rows, const RowView& view, RowLosses& result,
                         bool backward) {
  float* logits = at<float>(places_.logits);
  tools_.adapted.final_norm(at<float>(places_.gathered), view.num_rows, view.adapters, at<std::byte>(places_.input),
                            tools_.weights.act);
  tools_.linears.forward(linear_, view, at<std::byte>(places_.input), logits, at<float>(places_.products));
  std::vector<int32_t> targets(rows.size());
  std::vector<float> weights(rows.size()), losses(rows.size());
  std::vector<uint8_t> greedy(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    targets[i] = block.targets[static_cast<size_t>(rows[i])];
    weights[i] = block.weights[static_cast<size_t>(rows[i])];
  }
  // The gradient takes the place of the logits, row by row.
  tools_.ops.cross_entropy({.logits = logits,
                            .logits_stride = logits_stride_,
                            .vocab_size = tools_.weights.shape.vocab_size,
                            .padded = logits_stride_,
                            .targets = targets,
                            .weights = weights,
                            .losses = at<float>(places_.losses),
                            .greedy = at<uint8_t>(places_.greedy),
                            .gradient = backward ? logits : nullptr,
                            .act = tools_.weights.act,
                            .gradient_stride = gradient_stride()});
  tools_.backend.read(losses.data(), at<float>(places_.losses), view.num_rows * 4);
  tools_.backend.read(greedy.data(), at<uint8_t>(places_.greedy), view.num_rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    result.losses[static_cast<size_t>(rows[i])] = losses[i];
    result.greedy[static_cast<size_t>(rows[i])] = greedy[i];
  }
  if (backward) backward_rows(view);
}

void TrainHead::backward_rows(const RowView& view) {
  for (const TokenBlock::Run& run : view.runs) {
    if (!run.adapter) continue;
    if (run.adapter->resident().trained_head.n > 0) take_token_gradients(run);
    if (run.adapter->head_weight() >= 0) add_weight_gradient(run);
  }
  float* dx = at<float>(places_.dgathered);
  tools_.linears.backward(linear_, view, at<std::byte>(places_.input), at<std::byte>(places_.logits), gradient_stride(),
                          at<float>(places_.products), dx, true);
  for (const TokenBlock::Run& run : view.runs)
    if (run.adapter && run.adapter->resident().trained_head.n > 0) add_token_inputs(run);
  tools_.norms.final(view, at<float>(places_.gathered), dx);
}

// Trained rows of a tied embedding are columns of their own, which the base's head must not see.
void TrainHead::take_token_gradients(const TokenBlock::Run& run) {
  const ResidentAdapter& own = run.adapter->resident();
  const int64_t hidden = tools_.weights.shape.hidden_dim, columns = own.trained_head.n;
  float* c = at<float>(places_.token_gradients) + run.begin * token_columns_;
  tools_.ops.take_columns({.x = logit_gradient(run.begin),
                           .act = tools_.weights.act,
                           .x_stride = gradient_stride(),
                           .columns = own.trained_columns,
                           .c = c,
                           .c_stride = token_columns_,
                           .num_rows = run.end - run.begin,
                           .num_columns = columns});
  const OuterProduct outer{.c = c,
                           .c_stride = token_columns_,
                           .x = row_of(at<std::byte>(places_.input), run.begin, hidden, tools_.act_bytes),
                           .x_dtype = tools_.weights.act,
                           .x_stride = hidden,
                           .num_rows = run.end - run.begin,
                           .rank = columns,
                           .width = hidden,
                           .gradient = run.adapter->token_head_gradient(),
                           .gradient_stride = hidden};
  tools_.ops.outer(std::span(&outer, 1));
}

void TrainHead::add_token_inputs(const TokenBlock::Run& run) {
  const PackedWeight& own = run.adapter->resident().trained_head;
  const int64_t hidden = tools_.weights.shape.hidden_dim;
  std::byte* rounded = row_of(at<std::byte>(places_.token_rounded), run.begin, token_columns_, tools_.act_bytes);
  tools_.ops.round_rows({.x = at<float>(places_.token_gradients) + run.begin * token_columns_,
                         .x_stride = token_columns_,
                         .y = rounded,
                         .y_dtype = tools_.weights.act,
                         .y_stride = token_columns_,
                         .num_rows = run.end - run.begin,
                         .n = own.n,
                         .padded = own.n});
  tools_.ops.gemm_transposed({.x = rounded,
                              .act = tools_.weights.act,
                              .x_stride = token_columns_,
                              .w = own,
                              .y = at<float>(places_.dgathered) + run.begin * hidden,
                              .y_stride = hidden,
                              .num_rows = run.end - run.begin,
                              .add = true});
}

// The outer product wants f32, a few rows at a time: the sums over rows go on from one call to the next.
void TrainHead::add_weight_gradient(const TokenBlock::Run& run) {
  const int64_t vocab = tools_.weights.shape.vocab_size, hidden = tools_.weights.shape.hidden_dim;
  float* c = at<float>(places_.wide);
  for (int64_t begin = run.begin; begin < run.end; begin += kWideRows) {
    const int64_t count = std::min<int64_t>(run.end - begin, kWideRows);
    tools_.ops.round_rows({.x = logit_gradient(begin),
                           .x_dtype = tools_.weights.act,
                           .x_stride = gradient_stride(),
                           .y = c,
                           .y_dtype = DType::kF32,
                           .y_stride = vocab,
                           .num_rows = count,
                           .n = vocab,
                           .padded = vocab});
    const OuterProduct outer{.c = c,
                             .c_stride = vocab,
                             .x = row_of(at<std::byte>(places_.input), begin, hidden, tools_.act_bytes),
                             .x_dtype = tools_.weights.act,
                             .x_stride = hidden,
                             .num_rows = count,
                             .rank = vocab,
                             .width = hidden,
                             .gradient = run.adapter->gradient(run.adapter->head_weight()),
                             .gradient_stride = hidden};
    tools_.ops.outer(std::span(&outer, 1));
  }
}

}  // namespace lk
