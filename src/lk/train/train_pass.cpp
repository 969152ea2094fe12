// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_pass.h"

#include <algorithm>

namespace lk {

// --- Creation

TrainPass::TrainPass(std::shared_ptr<const ModelWeights> weights, Backend& backend, const TrainPassOptions& options)
    : weights_(std::move(weights)),
      backend_(backend),
      options_(options),
      tools_(*weights_, backend, options.needs, options.max_rows),
      layers_(tools_, options.max_rows, std::min(options.needs.lowest_layer, weights_->shape.num_layers - 1),
              options.checkpointing),
      head_(tools_, options.needs, options.max_rows, layers_.scratch_bytes()),
      rope_(make_rope_table(weights_->config, 0)) {}

std::vector<std::pair<DeviceBuffer*, int64_t>> TrainPass::buffers() {
  const ModelShape& shape = weights_->shape;
  std::vector<std::pair<DeviceBuffer*, int64_t>> all = layers_.buffers();
  const int64_t rows = std::max(layers_.rows_at_a_time(), head_.max_rows());
  const int64_t elements = std::max(layers_.max_input_elements(), head_.max_rows() * shape.hidden_dim);
  for (const auto& item : tools_.linears.buffers(rows, elements)) all.push_back(item);
  const int64_t angles = max_rows() * shape.head_dim / 2 * 4;
  all.insert(all.end(), {{&cos_, angles},
                         {&sin_, angles},
                         {&negative_sin_, angles},
                         {&hidden_, max_rows() * shape.hidden_dim * 4},
                         {&scratch_, std::max(layers_.scratch_bytes(), head_.scratch_bytes())}});
  return all;
}

Result<std::unique_ptr<TrainPass>> TrainPass::create(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                                     const TrainPassOptions& options) {
  LK_CHECK(options.max_rows > 0);
  std::unique_ptr<TrainPass> pass(new TrainPass(std::move(weights), backend, options));
  for (const auto& [buffer, bytes] : pass->buffers()) {
    LK_ASSIGN_OR_RETURN(*buffer, backend.try_allocate(bytes));
  }
  return pass;
}

int64_t TrainPass::memory_bytes(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                const TrainPassOptions& options) {
  TrainPass pass(std::move(weights), backend, options);
  int64_t sum = 0;
  for (const auto& [buffer, bytes] : pass.buffers()) sum += bytes;
  const ModelShape& shape = pass.weights_->shape;
  const int64_t longest =
      options.longest_sample > 0 ? std::min(options.longest_sample, options.max_rows) : options.max_rows;
  const RowRange sample{0, static_cast<int32_t>(longest)};
  return sum + backend.train_ops().block_attention_scratch_bytes({.act = pass.weights_->act,
                                                                  .num_heads = shape.num_heads,
                                                                  .num_kv_heads = shape.num_kv_heads,
                                                                  .head_dim = shape.head_dim,
                                                                  .sequences = std::span(&sample, 1)});
}

// --- The walk

Status TrainPass::accepts(std::span<const int32_t> sample_tokens) const {
  if (static_cast<int64_t>(sample_tokens.size()) > max_rows())
    return invalid_argument(
        "a sample of {} tokens does not fit a block of {}; raise block_tokens or set data.max_length",
        sample_tokens.size(), max_rows());
  const auto outside =
      std::ranges::find_if(sample_tokens, [&](int32_t id) { return id < 0 || id >= weights_->shape.vocab_size; });
  if (outside != sample_tokens.end())
    return invalid_argument("the tokenizer gives token {}, the model knows {}: they do not belong together", *outside,
                            weights_->shape.vocab_size);
  return Status();
}

RowLosses TrainPass::forward_backward(const TokenBlock& block) { return run(block, Mode::kTrain); }
RowLosses TrainPass::evaluate(const TokenBlock& block) { return run(block, Mode::kEvaluate); }

void TrainPass::observe(const TokenBlock& block, InputObserver observer) {
  tools_.linears.set_observer(std::move(observer));
  run(block, Mode::kEvaluate);
  tools_.linears.set_observer(nullptr);
}

RowLosses TrainPass::run(const TokenBlock& block, Mode mode) {
  const Extent extent = check(block, mode);
  upload_angles(block);
  const TrainLayers::Rows rows{.block = block,
                               .drops = extent.drops,
                               .cos = cos_.as<float>(),
                               .sin = sin_.as<float>(),
                               .negative_sin = negative_sin_.as<float>(),
                               .scratch = scratch_.data()};
  const RowView all = rows_of(block, 0, block.num_rows(), false);
  float* hidden = hidden_.as<float>();
  tools_.adapted.embed(block.tokens, all.adapters, hidden);
  const int64_t num_layers = weights_->shape.num_layers;
  for (int64_t layer = 0; layer < num_layers; ++layer)
    layers_.forward(layer, rows, hidden, mode == Mode::kTrain && layer >= extent.lowest_layer);
  RowLosses result = head_.run(block, hidden, scratch_.data(), extent.drops, mode == Mode::kTrain);
  if (mode == Mode::kEvaluate) return result;
  float* dhidden = hidden;
  for (int64_t layer = num_layers - 1; layer >= extent.lowest_layer; --layer) {
    if (float* x = layers_.lost_input(layer)) tools_.adapted.embed(block.tokens, all.adapters, x);
    layers_.backward(layer, rows, dhidden, layer == extent.lowest_layer ? extent.lowest_point : LayerPoint::kBelow);
  }
  if (extent.embedding) backward_embedding(block);
  return result;
}

TrainPass::Extent TrainPass::check(const TokenBlock& block, Mode mode) const {
  const int64_t num_layers = weights_->shape.num_layers;
  LK_CHECK(block.num_rows() > 0 && block.num_rows() <= max_rows(), "{} rows", block.num_rows());
  LK_CHECK(block.targets.size() == block.tokens.size() && block.weights.size() == block.tokens.size() &&
           block.sample_keys.size() == block.samples.size());
  Extent extent{.lowest_layer = num_layers};
  for (const TokenBlock::Run& run : block.runs) {
    if (!run.adapter) continue;
    const PassNeeds& needs = run.adapter->needs();
    LK_CHECK(options_.needs.include(needs) == options_.needs, "the pass was not made for this adapter");
    extent.lowest_layer = std::min(extent.lowest_layer, run.adapter->lowest_layer());
    extent.embedding |= run.adapter->trains_embedding();
    extent.drops |= mode == Mode::kTrain && run.adapter->dropout() > 0;
  }
  for (const TokenBlock::Run& run : block.runs)
    if (run.adapter && extent.lowest_layer < num_layers)
      extent.lowest_point = std::min(extent.lowest_point, lowest_point(*run.adapter, extent.lowest_layer));
  if (extent.embedding) extent.lowest_point = LayerPoint::kBelow;
  return extent;
}

// Positions restart with every sample.
void TrainPass::upload_angles(const TokenBlock& block) {
  const int64_t half = weights_->shape.head_dim / 2;
  std::vector<float> cos(static_cast<size_t>(block.num_rows() * half)), sin(cos.size());
  for (const RowRange& sample : block.samples) {
    const int64_t length = sample.end - sample.begin;
    const int64_t rope_length = weights_->config.rope_length(length);
    RopeTable own;
    if (rope_length > 0) own = make_rope_table(weights_->config, rope_length);
    for (int64_t position = 0; position < length; ++position) {
      float* cos_row = cos.data() + (sample.begin + position) * half;
      float* sin_row = sin.data() + (sample.begin + position) * half;
      if (rope_length > 0) {
        rope_row(own, position, cos_row, sin_row);
        continue;
      }
      if (static_cast<int64_t>(cos_rows_.size()) <= position * half) {
        cos_rows_.resize(cos_rows_.size() + static_cast<size_t>(half));
        sin_rows_.resize(cos_rows_.size());
        rope_row(rope_, position, cos_rows_.data() + position * half, sin_rows_.data() + position * half);
      }
      std::copy_n(cos_rows_.data() + position * half, half, cos_row);
      std::copy_n(sin_rows_.data() + position * half, half, sin_row);
    }
  }
  backend_.upload(cos_.as<float>(), std::span<const float>(cos));
  backend_.upload(sin_.as<float>(), std::span<const float>(sin));
  for (float& value : sin) value = -value;
  backend_.upload(negative_sin_.as<float>(), std::span<const float>(sin));
}

// The gradient of the embedded rows is in hidden_.
void TrainPass::backward_embedding(const TokenBlock& block) {
  const ModelShape& shape = weights_->shape;
  TrainOps& ops = backend_.train_ops();
  const int64_t dim = shape.hidden_dim;
  for (const TokenBlock::Run& run : block.runs) {
    if (!run.adapter || !run.adapter->trains_embedding()) continue;
    TrainableAdapter& own = *run.adapter;
    const std::span tokens =
        std::span(block.tokens).subspan(static_cast<size_t>(run.begin), static_cast<size_t>(run.end - run.begin));
    const float* dy = hidden_.as<float>() + run.begin * dim;
    std::vector<int32_t> trained, plain;
    for (int32_t token : tokens) {
      trained.push_back(static_cast<int32_t>(own.token_row(token)));
      plain.push_back(trained.back() >= 0 ? -1 : token);
    }
    const auto scatter = [&](int param, std::span<const int32_t> rows) {
      ops.scatter_rows({.x = dy,
                        .x_stride = dim,
                        .rows = rows,
                        .gradient = own.gradient(param),
                        .gradient_stride = dim,
                        .dim = dim});
    };
    if (own.tokens() >= 0) scatter(own.tokens(), trained);
    if (own.embedding_table() >= 0) scatter(own.embedding_table(), plain);
    if (own.embedding_a() >= 0)
      ops.embedding_delta_backward({.dy = dy,
                                    .dy_stride = dim,
                                    .tokens = tokens,
                                    .a = own.value(own.embedding_a()),
                                    .b = own.value(own.embedding_b()),
                                    .a_gradient = own.gradient(own.embedding_a()),
                                    .b_gradient = own.gradient(own.embedding_b()),
                                    .rank = own.param(own.embedding_a()).rows,
                                    .vocab_size = shape.vocab_size,
                                    .dim = dim,
                                    .scaling = static_cast<float>(own.embedding_scaling())});
  }
}

}  // namespace lk
