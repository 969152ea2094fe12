// SPDX-License-Identifier: Apache-2.0
#include "lk/train/train_pass.h"

#include <algorithm>
#include <cmath>

namespace lk {
namespace {

// Rows of the MLP computed at a time. Its widest products are f32 and not kept, so this bounds them; enough rows that
// reading (and, backwards, repacking) the weights costs little beside the product.
constexpr int64_t kMlpRows = 512;
// Rows of logits at a time: at most so many, and at most so many bytes of them (32 rows at least).
constexpr int64_t kMaxHeadRows = 256;
constexpr int64_t kLogitsBytes = int64_t{32} << 20;

// Where in a layer the lowest trained parameter stands. Backward passes end there.
enum Point : int { kBelow = 0, kAtInputNorm, kAtQkv, kAtHeadNorms, kAtO, kAtPostNorm, kAtGateUp, kAtDown, kAbove };

int lowest_point(const TrainableAdapter& adapter, int64_t layer) {
  const TrainableAdapter::Layer& own = adapter.layer(layer);
  if (own.input_norm >= 0) return kAtInputNorm;
  if (adapter.group_rank(ProjGroup::kQkv, layer) > 0) return kAtQkv;
  if (own.q_norm >= 0 || own.k_norm >= 0) return kAtHeadNorms;
  if (adapter.group_rank(ProjGroup::kO, layer) > 0) return kAtO;
  if (own.post_norm >= 0) return kAtPostNorm;
  if (adapter.group_rank(ProjGroup::kGateUp, layer) > 0) return kAtGateUp;
  if (adapter.group_rank(ProjGroup::kDown, layer) > 0) return kAtDown;
  return kAbove;
}

int input_norm_of(const TrainableAdapter& adapter, int64_t layer) { return adapter.layer(layer).input_norm; }
int post_norm_of(const TrainableAdapter& adapter, int64_t layer) { return adapter.layer(layer).post_norm; }
int q_norm_of(const TrainableAdapter& adapter, int64_t layer) { return adapter.layer(layer).q_norm; }
int k_norm_of(const TrainableAdapter& adapter, int64_t layer) { return adapter.layer(layer).k_norm; }
int final_norm_of(const TrainableAdapter& adapter, int64_t) { return adapter.final_norm(); }

}  // namespace

const char* to_string(Checkpointing level) {
  switch (level) {
    case Checkpointing::kNone:
      return "none";
    case Checkpointing::kSelective:
      return "selective";
    case Checkpointing::kFull:
      return "full";
  }
  check_failed(__FILE__, __LINE__, "level", "not a Checkpointing");
}

// Buffers that the level does not keep are empty.
struct TrainPass::Kept {
  DeviceBuffer x, x2;        // f32 [rows, hidden_dim] the residual stream before attention and before the MLP
  DeviceBuffer raw;          // act [rows, q_dim + kv_dim] q and k before their norms (Qwen3)
  DeviceBuffer q, k, v;      // act [rows, q_dim], [rows, kv_dim]: rotated q and k
  DeviceBuffer attended;     // act [rows, q_dim]
  DeviceBuffer log_sum_exp;  // f32 [rows, num_heads]
  DeviceBuffer gate_up;      // act [rows, gate_up columns]
  std::array<DeviceBuffer, kNumProjGroups> products;  // f32 [rows, rank stride] of the adapters
};

// --- Creation

TrainPass::TrainPass(std::shared_ptr<const ModelWeights> weights, Backend& backend, const TrainPassOptions& options)
    : weights_(std::move(weights)),
      backend_(backend),
      ops_(backend.train_ops()),
      max_rows_(options.max_rows),
      rank_stride_((options.max_group_rank + 15) / 16 * 16),
      first_kept_(std::min(options.lowest_layer, weights_->shape.num_layers - 1)),
      dropout_(options.dropout),
      level_(options.checkpointing),
      act_bytes_(dtype_bytes(weights_->act)),
      linears_(*weights_, backend, rank_stride_),
      live_(std::make_unique<Kept>()) {
  const ModelShape& shape = weights_->shape;
  const int64_t logit_rows = kLogitsBytes / (align_panel(shape.vocab_size) * 4);
  head_rows_ = std::min(max_rows_, std::clamp<int64_t>(logit_rows, 32, kMaxHeadRows));
  rope_ = make_rope_table(weights_->config, 0);
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) kept_.push_back(std::make_unique<Kept>());
}

std::vector<std::pair<DeviceBuffer*, int64_t>> TrainPass::buffers() {
  const ModelShape& shape = weights_->shape;
  const int64_t rows = max_rows_, mlp_rows = std::min(max_rows_, kMlpRows), act = act_bytes_;
  const int64_t hidden = shape.hidden_dim, qkv = group_columns(ProjGroup::kQkv, shape);
  const int64_t gate_up = group_columns(ProjGroup::kGateUp, shape), intermediate = shape.intermediate_dim;
  std::vector<std::pair<DeviceBuffer*, int64_t>> all;
  const auto keep_attention = [&](Kept& kept) {
    all.insert(all.end(), {{&kept.x2, rows * hidden * 4},
                           {&kept.q, rows * shape.q_dim() * act},
                           {&kept.k, rows * shape.kv_dim() * act},
                           {&kept.v, rows * shape.kv_dim() * act},
                           {&kept.attended, rows * shape.q_dim() * act},
                           {&kept.log_sum_exp, rows * shape.num_heads * 4}});
    if (weights_->config.qk_norm) all.push_back({&kept.raw, rows * (shape.q_dim() + shape.kv_dim()) * act});
    for (ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO})
      all.push_back({&kept.products[static_cast<size_t>(group)], rows * rank_stride_ * 4});
  };
  for (int64_t layer = first_kept_; layer < shape.num_layers; ++layer) {
    const auto& kept = kept_[static_cast<size_t>(layer)];
    all.push_back({&kept->x, rows * hidden * 4});
    if (level_ != Checkpointing::kFull) keep_attention(*kept);
    if (level_ != Checkpointing::kNone) continue;
    all.push_back({&kept->gate_up, rows * gate_up * act});
    for (ProjGroup group : {ProjGroup::kGateUp, ProjGroup::kDown})
      all.push_back({&kept->products[static_cast<size_t>(group)], rows * rank_stride_ * 4});
  }
  if (level_ == Checkpointing::kFull) keep_attention(*live_);
  if (level_ != Checkpointing::kNone)
    all.insert(all.end(), {{&gate_up_, mlp_rows * gate_up * act}, {&mlp_products_, 2 * mlp_rows * rank_stride_ * 4}});
  const int64_t widest = std::max(rows * std::max(hidden, shape.q_dim()), mlp_rows * intermediate);
  for (const auto& item : linears_.buffers(rows, dropout_ ? widest : 0)) all.push_back(item);
  const int64_t angles = rows * shape.head_dim / 2 * 4;
  all.insert(all.end(), {{&cos_, angles},
                         {&sin_, angles},
                         {&negative_sin_, angles},
                         {&hidden_, rows * hidden * 4},
                         {&dhidden_, rows * hidden * 4},
                         {&normed_, rows * hidden * act},
                         {&qkv_, rows * qkv * 4},
                         {&dqkv_, rows * qkv * act},
                         {&wide_, mlp_rows * std::max(gate_up, intermediate) * 4},
                         {&activated_, mlp_rows * intermediate * act},
                         {&product_, rows * align_panel(std::max(hidden, shape.q_dim())) * 4},
                         {&dy_, rows * align_panel(hidden) * act},
                         {&logits_, head_rows_ * align_panel(shape.vocab_size) * 4},
                         {&gathered_, head_rows_ * hidden * 4},
                         {&dgathered_, head_rows_ * hidden * 4},
                         {&head_input_, head_rows_ * hidden * act},
                         {&head_products_, head_rows_ * rank_stride_ * 4},
                         {&losses_, head_rows_ * 4},
                         {&greedy_, head_rows_}});
  return all;
}

Result<std::unique_ptr<TrainPass>> TrainPass::create(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                                     const TrainPassOptions& options) {
  LK_CHECK(options.max_rows > 0 && options.max_group_rank >= 0);
  std::unique_ptr<TrainPass> pass(new TrainPass(std::move(weights), backend, options));
  for (const auto& [buffer, bytes] : pass->buffers()) {
    LK_ASSIGN_OR_RETURN(*buffer, backend.try_allocate(bytes));
  }
  return pass;
}

TrainPass::~TrainPass() = default;

int64_t TrainPass::memory_bytes(std::shared_ptr<const ModelWeights> weights, Backend& backend,
                                const TrainPassOptions& options) {
  TrainPass pass(std::move(weights), backend, options);
  int64_t sum = 0;
  for (const auto& [buffer, bytes] : pass.buffers()) sum += bytes;
  return sum;
}

// --- The walk

Status TrainPass::accepts(std::span<const int32_t> sample_tokens) const {
  if (static_cast<int64_t>(sample_tokens.size()) > max_rows_)
    return invalid_argument(
        "a sample of {} tokens does not fit a block of {}; raise block_tokens or set data.max_length",
        sample_tokens.size(), max_rows_);
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
  linears_.set_observer(std::move(observer));
  run(block, Mode::kEvaluate);
  linears_.set_observer(nullptr);
}

RowLosses TrainPass::run(const TokenBlock& block, Mode mode) {
  prepare(block, mode);
  const int64_t num_layers = weights_->shape.num_layers, hidden = weights_->shape.hidden_dim;
  embed(block);
  const bool full = level_ == Checkpointing::kFull;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const bool keeps = mode == Mode::kTrain && layer >= lowest_layer_;
    Kept& own = *kept_[static_cast<size_t>(layer)];
    if (keeps) copy(hidden_.as<float>(), own.x.as<float>(), hidden);
    Kept& place = keeps && !full ? own : shared();
    forward_attention(layer, block, place);
    forward_mlp(layer, block, place);
  }
  RowLosses result{std::vector<float>(block.tokens.size()), std::vector<uint8_t>(block.tokens.size())};
  if (mode == Mode::kTrain) ops_.fill(dhidden_.as<float>(), num_rows_ * hidden, 0);
  head(block, mode, result);
  if (mode == Mode::kEvaluate) return result;
  for (int64_t layer = num_layers - 1; layer >= lowest_layer_; --layer) {
    Kept& own = *kept_[static_cast<size_t>(layer)];
    if (full) {
      copy(own.x.as<float>(), hidden_.as<float>(), hidden);
      forward_attention(layer, block, *live_);
    }
    backward_layer(layer, block, own.x.as<float>(), full ? *live_ : own);
  }
  if (embedding_trained_) backward_embedding(block);
  return result;
}

void TrainPass::prepare(const TokenBlock& block, Mode mode) {
  num_rows_ = block.num_rows();
  LK_CHECK(num_rows_ > 0 && num_rows_ <= max_rows_, "{} rows", num_rows_);
  LK_CHECK(block.targets.size() == block.tokens.size() && block.weights.size() == block.tokens.size() &&
           block.sample_keys.size() == block.samples.size());
  const ModelShape& shape = weights_->shape;
  lowest_layer_ = shape.num_layers;
  lowest_point_ = kAbove;
  embedding_trained_ = drops_ = false;
  for (const Run& run : block.runs) {
    if (!run.adapter) continue;
    lowest_layer_ = std::min(lowest_layer_, run.adapter->lowest_layer());
    embedding_trained_ |= run.adapter->trains_embedding();
    drops_ |= mode == Mode::kTrain && run.adapter->dropout() > 0;
    LK_CHECK(mode == Mode::kEvaluate || run.adapter->lowest_layer() >= first_kept_);
    LK_CHECK(run.adapter->max_group_rank() <= rank_stride_ && (dropout_ || run.adapter->dropout() == 0));
  }
  for (const Run& run : block.runs)
    if (run.adapter && lowest_layer_ < shape.num_layers)
      lowest_point_ = std::min(lowest_point_, lowest_point(*run.adapter, lowest_layer_));
  if (embedding_trained_) lowest_point_ = kBelow;

  // Angles: positions restart with every sample.
  const int64_t half = shape.head_dim / 2;
  std::vector<float> cos(static_cast<size_t>(num_rows_ * half)), sin(cos.size());
  const bool dynamic = weights_->config.rope.type == RopeType::kDynamic;
  for (const RowRange& sample : block.samples) {
    const int64_t length = sample.end - sample.begin;
    RopeTable own;
    if (dynamic) own = make_rope_table(weights_->config, length);
    for (int64_t position = 0; position < length; ++position) {
      float* cos_row = cos.data() + (sample.begin + position) * half;
      float* sin_row = sin.data() + (sample.begin + position) * half;
      if (dynamic) {
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

void TrainPass::copy(const float* from, float* to, int64_t columns) {
  ops_.round_rows({.x = from,
                   .x_stride = columns,
                   .y = to,
                   .y_dtype = DType::kF32,
                   .y_stride = columns,
                   .num_rows = num_rows_,
                   .n = columns,
                   .padded = columns});
}

// --- Forward

void TrainPass::embed(const TokenBlock& block) {
  const int64_t dim = weights_->shape.hidden_dim;
  std::vector<EmbedRow> rows;
  rows.reserve(block.tokens.size());
  for (const Run& run : block.runs) {
    for (int32_t row = run.begin; row < run.end; ++row) {
      const int32_t token = block.tokens[static_cast<size_t>(row)];
      EmbedRow embed{.source = weights_->embedding.row(token), .dtype = weights_->embedding.dtype(), .token = token};
      if (TrainableAdapter* own = run.adapter) {
        const auto take = [&](int param, int64_t index) {
          embed.source = own->value(param) + index * dim;
          embed.dtype = DType::kF32;
        };
        if (own->embedding_table() >= 0) take(own->embedding_table(), token);
        if (const int64_t trained = own->token_row(token); trained >= 0) take(own->tokens(), trained);
        embed.delta = own->embedding_delta();
      }
      rows.push_back(embed);
    }
  }
  backend_.embed({.rows = rows, .y = hidden_.as<float>(), .y_stride = dim, .dim = dim});
}

void TrainPass::rotate(float* qkv, const float* sin) {
  const ModelShape& shape = weights_->shape;
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  for (const auto& [proj, heads] : {std::pair(Proj::kQ, shape.num_heads), std::pair(Proj::kK, shape.num_kv_heads)})
    backend_.rope({.x = qkv + group_column(proj, shape),
                   .x_stride = columns,
                   .num_rows = num_rows_,
                   .num_heads = heads,
                   .head_dim = shape.head_dim,
                   .cos = cos_.as<float>(),
                   .sin = sin});
}

void TrainPass::forward_attention(int64_t layer, const TokenBlock& block, Kept& kept) {
  const ModelShape& shape = weights_->shape;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const RowView all = rows_of(block, 0, num_rows_, drops_);
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  float* qkv = qkv_.as<float>();
  const auto round = [&](const float* x, int64_t width, void* y, int64_t y_stride) {
    ops_.round_rows({.x = x,
                     .x_stride = columns,
                     .y = y,
                     .y_dtype = weights_->act,
                     .y_stride = y_stride,
                     .num_rows = num_rows_,
                     .n = width,
                     .padded = width});
  };
  norm(all, hidden_.as<float>(), w.input_norm, input_norm_of, layer, normed_.data());
  linears_.forward(layer_group(*weights_, layer, ProjGroup::kQkv), all, normed_.data(), qkv,
                   kept.products[0].as<float>());
  if (weights_->config.qk_norm) {
    const int64_t stride = shape.q_dim() + shape.kv_dim();
    round(qkv, shape.q_dim(), kept.raw.data(), stride);
    round(qkv + group_column(Proj::kK, shape), shape.kv_dim(), kept.raw.data() + shape.q_dim() * act_bytes_, stride);
    head_norms(all, layer, kept.raw.data(), qkv);
  }
  rotate(qkv, sin_.as<float>());
  round(qkv, shape.q_dim(), kept.q.data(), shape.q_dim());
  round(qkv + group_column(Proj::kK, shape), shape.kv_dim(), kept.k.data(), shape.kv_dim());
  round(qkv + group_column(Proj::kV, shape), shape.kv_dim(), kept.v.data(), shape.kv_dim());
  ops_.block_attention({.in = attention(layer, block, kept),
                        .y = kept.attended.data(),
                        .y_stride = shape.q_dim(),
                        .log_sum_exp = kept.log_sum_exp.as<float>()});
  linears_.forward(layer_group(*weights_, layer, ProjGroup::kO), all, kept.attended.data(), product_.as<float>(),
                   kept.products[1].as<float>());
  backend_.add(hidden_.as<float>(), shape.hidden_dim, product_.as<float>(), align_panel(shape.hidden_dim), num_rows_,
               shape.hidden_dim);
  copy(hidden_.as<float>(), kept.x2.as<float>(), shape.hidden_dim);
}

BlockAttention TrainPass::attention(int64_t layer, const TokenBlock& block, const Kept& kept) const {
  const ModelShape& shape = weights_->shape;
  return {.q = kept.q.data(),
          .k = kept.k.data(),
          .v = kept.v.data(),
          .act = weights_->act,
          .q_stride = shape.q_dim(),
          .k_stride = shape.kv_dim(),
          .v_stride = shape.kv_dim(),
          .num_heads = shape.num_heads,
          .num_kv_heads = shape.num_kv_heads,
          .head_dim = shape.head_dim,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim))),
          .window = weights_->config.layer_window[static_cast<size_t>(layer)],
          .sequences = block.samples};
}

TrainPass::MlpPlace TrainPass::mlp_place(Kept& kept, int64_t begin) {
  if (!kept.gate_up.data()) {
    const int64_t mlp_rows = std::min(max_rows_, kMlpRows);
    return {gate_up_.data(), mlp_products_.as<float>(), mlp_products_.as<float>() + mlp_rows * rank_stride_};
  }
  const auto products = [&](ProjGroup group) {
    return kept.products[static_cast<size_t>(group)].as<float>() + begin * rank_stride_;
  };
  return {row_of(kept.gate_up.data(), begin, group_columns(ProjGroup::kGateUp, weights_->shape), act_bytes_),
          products(ProjGroup::kGateUp), products(ProjGroup::kDown)};
}

void TrainPass::forward_gate_up(int64_t layer, const RowView& rows, const void* normed, const MlpPlace& place) {
  linears_.forward(layer_group(*weights_, layer, ProjGroup::kGateUp), rows, normed, wide_.as<float>(),
                   place.gate_up_products);
  activate(rows, wide_.as<float>(), place);
}

// activated_ = silu(gate) up; from the product `x`, or, without one, from what was kept of it.
void TrainPass::activate(const RowView& rows, const float* x, const MlpPlace& place) {
  const ModelShape& shape = weights_->shape;
  const int64_t gate_up = group_columns(ProjGroup::kGateUp, shape);
  ops_.swiglu_keep({.x = x,
                    .x_stride = gate_up,
                    .up_offset = group_column(Proj::kUp, shape),
                    .padded = gate_up,
                    .kept = place.gate_up,
                    .kept_stride = gate_up,
                    .y = activated_.data(),
                    .act = weights_->act,
                    .y_stride = shape.intermediate_dim,
                    .num_rows = rows.num_rows,
                    .dim = shape.intermediate_dim});
}

void TrainPass::forward_mlp(int64_t layer, const TokenBlock& block, Kept& kept) {
  const int64_t hidden = weights_->shape.hidden_dim;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  norm(rows_of(block, 0, num_rows_, drops_), hidden_.as<float>(), w.post_norm, post_norm_of, layer, normed_.data());
  for (int64_t begin = 0; begin < num_rows_; begin += kMlpRows) {
    const RowView rows = rows_of(block, begin, std::min(begin + kMlpRows, num_rows_), drops_);
    const MlpPlace place = mlp_place(kept, begin);
    forward_gate_up(layer, rows, row_of(normed_.data(), begin, hidden, act_bytes_), place);
    linears_.forward(layer_group(*weights_, layer, ProjGroup::kDown), rows, activated_.data(), product_.as<float>(),
                     place.down_products);
    backend_.add(hidden_.as<float>() + begin * hidden, hidden, product_.as<float>(), align_panel(hidden), rows.num_rows,
                 hidden);
  }
}

// --- The head and the loss

void TrainPass::head(const TokenBlock& block, Mode mode, RowLosses& result) {
  std::vector<int32_t> rows;
  for (size_t row = 0; row < block.weights.size(); ++row)
    if (block.weights[row] != 0) rows.push_back(static_cast<int32_t>(row));
  for (size_t begin = 0; begin < rows.size(); begin += static_cast<size_t>(head_rows_)) {
    const size_t count = std::min(rows.size() - begin, static_cast<size_t>(head_rows_));
    head_chunk(block, std::span(rows).subspan(begin, count), mode, result);
  }
}

void TrainPass::head_chunk(const TokenBlock& block, std::span<const int32_t> rows, Mode mode, RowLosses& result) {
  const ModelShape& shape = weights_->shape;
  const int64_t hidden = shape.hidden_dim, stride = align_panel(shape.vocab_size);
  const auto num_rows = static_cast<int64_t>(rows.size());
  const RowView some = rows_of(block, rows, drops_);
  const LinearGroup lm_head = head_group(*weights_);
  backend_.gather_rows({.x = hidden_.as<float>(),
                        .x_stride = hidden,
                        .rows = rows,
                        .y = gathered_.as<float>(),
                        .y_stride = hidden,
                        .dim = hidden});
  norm(some, gathered_.as<float>(), weights_->final_norm, final_norm_of, 0, head_input_.data());
  float* logits = logits_.as<float>();
  linears_.forward(lm_head, some, head_input_.data(), logits, head_products_.as<float>());
  for (const Run& run : some.runs) {  // a tied head follows the trained rows of the embedding
    if (!run.adapter || run.adapter->token_head().n == 0) continue;
    backend_.gemm_columns({.x = row_of(head_input_.data(), run.begin, hidden, act_bytes_),
                           .act = weights_->act,
                           .x_stride = hidden,
                           .w = run.adapter->token_head(),
                           .columns = run.adapter->token_columns(),
                           .y = logits + run.begin * stride,
                           .y_stride = stride,
                           .num_rows = run.end - run.begin});
  }
  std::vector<int32_t> targets(rows.size());
  std::vector<float> weights(rows.size()), losses(rows.size());
  std::vector<uint8_t> greedy(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    targets[i] = block.targets[static_cast<size_t>(rows[i])];
    weights[i] = block.weights[static_cast<size_t>(rows[i])];
  }
  // The gradient takes the place of the logits, row by row.
  ops_.cross_entropy({.logits = logits,
                      .logits_stride = stride,
                      .vocab_size = shape.vocab_size,
                      .padded = stride,
                      .targets = targets,
                      .weights = weights,
                      .losses = losses_.as<float>(),
                      .greedy = greedy_.as<uint8_t>(),
                      .gradient = mode == Mode::kTrain ? logits : nullptr,
                      .act = weights_->act,
                      .gradient_stride = stride * 4 / act_bytes_});
  backend_.read(losses.data(), losses_.data(), num_rows * 4);
  backend_.read(greedy.data(), greedy_.data(), num_rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    result.losses[static_cast<size_t>(rows[i])] = losses[i];
    result.greedy[static_cast<size_t>(rows[i])] = greedy[i];
  }
  if (mode == Mode::kTrain) backward_head(some, rows);
}

void TrainPass::backward_head(const RowView& some, std::span<const int32_t> rows) {
  const ModelShape& shape = weights_->shape;
  const int64_t hidden = shape.hidden_dim, stride = align_panel(shape.vocab_size) * 4 / act_bytes_;
  const LinearGroup lm_head = head_group(*weights_);
  void* dlogits = logits_.data();
  const auto at = [&](int64_t row) { return row_of(dlogits, row, stride, act_bytes_); };
  // Trained rows of a tied embedding: columns of their own, which the base's head must not see.
  std::vector<std::pair<Run, DeviceBuffer>> taken;
  for (const Run& run : some.runs) {
    if (!run.adapter) continue;
    TrainableAdapter& own = *run.adapter;
    const int64_t num_rows = run.end - run.begin;
    if (const int64_t columns = own.token_head().n; columns > 0) {
      DeviceBuffer c = backend_.allocate(num_rows * columns * 4);
      ops_.take_columns({.x = at(run.begin),
                         .act = weights_->act,
                         .x_stride = stride,
                         .columns = own.token_columns(),
                         .c = c.as<float>(),
                         .c_stride = columns,
                         .num_rows = num_rows,
                         .num_columns = columns});
      const OuterProduct outer{.c = c.as<float>(),
                               .c_stride = columns,
                               .x = row_of(head_input_.data(), run.begin, hidden, act_bytes_),
                               .x_dtype = weights_->act,
                               .x_stride = hidden,
                               .num_rows = num_rows,
                               .rank = columns,
                               .width = hidden,
                               .gradient = own.token_head_gradient(),
                               .gradient_stride = hidden};
      ops_.outer(std::span(&outer, 1));
      taken.emplace_back(run, std::move(c));
    }
    if (own.head_weight() >= 0) {
      // dlogits as f32, a few rows at a time: the sums over rows go on from one call to the next.
      constexpr int64_t kRows = 32;
      const int64_t vocab = shape.vocab_size;
      DeviceBuffer c = backend_.allocate(std::min(num_rows, kRows) * vocab * 4);
      for (int64_t begin = run.begin; begin < run.end; begin += kRows) {
        const int64_t count = std::min<int64_t>(run.end - begin, kRows);
        ops_.round_rows({.x = at(begin),
                         .x_dtype = weights_->act,
                         .x_stride = stride,
                         .y = c.data(),
                         .y_dtype = DType::kF32,
                         .y_stride = vocab,
                         .num_rows = count,
                         .n = vocab,
                         .padded = vocab});
        const OuterProduct outer{.c = c.as<float>(),
                                 .c_stride = vocab,
                                 .x = row_of(head_input_.data(), begin, hidden, act_bytes_),
                                 .x_dtype = weights_->act,
                                 .x_stride = hidden,
                                 .num_rows = count,
                                 .rank = vocab,
                                 .width = hidden,
                                 .gradient = own.gradient(own.head_weight()),
                                 .gradient_stride = hidden};
        ops_.outer(std::span(&outer, 1));
      }
    }
  }
  linears_.backward(lm_head, some, head_input_.data(), dlogits, stride, head_products_.as<float>(),
                    dgathered_.as<float>(), true);
  for (auto& [run, c] : taken) {
    const PackedWeight& own = run.adapter->token_head();
    DeviceBuffer rounded = backend_.allocate((run.end - run.begin) * own.n * act_bytes_);
    ops_.round_rows({.x = c.data(),
                     .x_stride = own.n,
                     .y = rounded.data(),
                     .y_dtype = weights_->act,
                     .y_stride = own.n,
                     .num_rows = run.end - run.begin,
                     .n = own.n,
                     .padded = own.n});
    ops_.gemm_transposed({.x = rounded.data(),
                          .act = weights_->act,
                          .x_stride = own.n,
                          .w = own,
                          .y = dgathered_.as<float>() + run.begin * hidden,
                          .y_stride = hidden,
                          .num_rows = run.end - run.begin,
                          .add = true});
  }
  // In place: dgathered_ becomes the gradient of the rows before the norm.
  norm_backward(some, gathered_.as<float>(), weights_->final_norm, final_norm_of, 0, dgathered_.as<float>(),
                dgathered_.as<float>(), false);
  ops_.scatter_rows({.x = dgathered_.as<float>(),
                     .x_stride = hidden,
                     .rows = rows,
                     .gradient = dhidden_.as<float>(),
                     .gradient_stride = hidden,
                     .dim = hidden});
}

// --- Backward

void TrainPass::backward_layer(int64_t layer, const TokenBlock& block, const float* x, Kept& kept) {
  const int stop = layer == lowest_layer_ ? lowest_point_ : static_cast<int>(kBelow);
  backward_mlp(layer, block, kept, stop);
  if (stop < kAtPostNorm) backward_attention(layer, block, x, kept, stop);
}

void TrainPass::backward_mlp(int64_t layer, const TokenBlock& block, Kept& kept, int stop) {
  const ModelShape& shape = weights_->shape;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const int64_t gate_up = group_columns(ProjGroup::kGateUp, shape), hidden = shape.hidden_dim;
  const int64_t padded = align_panel(hidden), intermediate = shape.intermediate_dim;
  for (int64_t begin = 0; begin < num_rows_; begin += kMlpRows) {
    const RowView rows = rows_of(block, begin, std::min(begin + kMlpRows, num_rows_), drops_);
    const MlpPlace place = mlp_place(kept, begin);
    float* dhidden = dhidden_.as<float>() + begin * hidden;
    const float* x2 = kept.x2.as<float>() + begin * hidden;
    const LinearGroup down = layer_group(*weights_, layer, ProjGroup::kDown);
    norm(rows, x2, w.post_norm, post_norm_of, layer, normed_.data());
    if (kept.gate_up.data()) {
      activate(rows, nullptr, place);
    } else {
      forward_gate_up(layer, rows, normed_.data(), place);
      linears_.add_deltas(down, rows, activated_.data(), product_.as<float>(),
                          place.down_products);  // for the products alone
    }
    ops_.round_rows({.x = dhidden,
                     .x_stride = hidden,
                     .y = dy_.data(),
                     .y_dtype = weights_->act,
                     .y_stride = padded,
                     .num_rows = rows.num_rows,
                     .n = hidden,
                     .padded = padded});
    float* dh = wide_.as<float>();
    linears_.backward(down, rows, activated_.data(), dy_.data(), padded, place.down_products, dh, stop < kAtDown);
    if (stop >= kAtDown) continue;
    // In place: gate and up are not needed again.
    ops_.swiglu_backward({.kept = place.gate_up,
                          .kept_stride = gate_up,
                          .up_offset = group_column(Proj::kUp, shape),
                          .padded = gate_up,
                          .dy = dh,
                          .dy_stride = intermediate,
                          .dx = place.gate_up,
                          .act = weights_->act,
                          .dx_stride = gate_up,
                          .num_rows = rows.num_rows,
                          .dim = intermediate});
    float* dnormed = product_.as<float>();
    linears_.backward(layer_group(*weights_, layer, ProjGroup::kGateUp), rows, normed_.data(), place.gate_up, gate_up,
                      place.gate_up_products, dnormed, stop < kAtGateUp);
    if (stop < kAtGateUp) norm_backward(rows, x2, w.post_norm, post_norm_of, layer, dnormed, dhidden, true);
  }
}

void TrainPass::backward_attention(int64_t layer, const TokenBlock& block, const float* x, Kept& kept, int stop) {
  const ModelShape& shape = weights_->shape;
  const LayerWeights& w = weights_->layers[static_cast<size_t>(layer)];
  const int64_t hidden = shape.hidden_dim, padded = align_panel(hidden);
  const int64_t columns = group_columns(ProjGroup::kQkv, shape);
  const RowView all = rows_of(block, 0, num_rows_, drops_);
  ops_.round_rows({.x = dhidden_.as<float>(),
                   .x_stride = hidden,
                   .y = dy_.data(),
                   .y_dtype = weights_->act,
                   .y_stride = padded,
                   .num_rows = num_rows_,
                   .n = hidden,
                   .padded = padded});
  float* dattended = product_.as<float>();
  linears_.backward(layer_group(*weights_, layer, ProjGroup::kO), all, kept.attended.data(), dy_.data(), padded,
                    kept.products[1].as<float>(), dattended, stop < kAtO);
  if (stop >= kAtO) return;
  float* dqkv = qkv_.as<float>();
  ops_.block_attention_backward({.in = attention(layer, block, kept),
                                 .y = kept.attended.data(),
                                 .y_stride = shape.q_dim(),
                                 .log_sum_exp = kept.log_sum_exp.as<float>(),
                                 .dy = dattended,
                                 .dy_stride = shape.q_dim(),
                                 .dq = dqkv,
                                 .dk = dqkv + group_column(Proj::kK, shape),
                                 .dv = dqkv + group_column(Proj::kV, shape),
                                 .dq_stride = columns,
                                 .dk_stride = columns,
                                 .dv_stride = columns});
  rotate(dqkv, negative_sin_.as<float>());
  if (weights_->config.qk_norm) head_norms_backward(all, layer, kept.raw.data(), dqkv);
  if (stop == kAtHeadNorms) return;
  for (Proj proj : projs_of(ProjGroup::kQkv)) {
    const int64_t column = group_column(proj, shape), width = out_dim(proj, shape);
    ops_.round_rows({.x = dqkv + column,
                     .x_stride = columns,
                     .y = row_of(dqkv_.data(), 0, columns, act_bytes_) + column * act_bytes_,
                     .y_dtype = weights_->act,
                     .y_stride = columns,
                     .num_rows = num_rows_,
                     .n = width,
                     .padded = align_panel(width)});
  }
  norm(all, x, w.input_norm, input_norm_of, layer, normed_.data());
  float* dnormed = product_.as<float>();
  linears_.backward(layer_group(*weights_, layer, ProjGroup::kQkv), all, normed_.data(), dqkv_.data(), columns,
                    kept.products[0].as<float>(), dnormed, stop < kAtQkv);
  if (stop < kAtQkv) norm_backward(all, x, w.input_norm, input_norm_of, layer, dnormed, dhidden_.as<float>(), true);
}

void TrainPass::backward_embedding(const TokenBlock& block) {
  const ModelShape& shape = weights_->shape;
  const int64_t dim = shape.hidden_dim;
  for (const Run& run : block.runs) {
    if (!run.adapter || !run.adapter->trains_embedding()) continue;
    TrainableAdapter& own = *run.adapter;
    const std::span tokens =
        std::span(block.tokens).subspan(static_cast<size_t>(run.begin), static_cast<size_t>(run.end - run.begin));
    const float* dy = dhidden_.as<float>() + run.begin * dim;
    std::vector<int32_t> trained, plain;
    for (int32_t token : tokens) {
      trained.push_back(static_cast<int32_t>(own.token_row(token)));
      plain.push_back(trained.back() >= 0 ? -1 : token);
    }
    const auto scatter = [&](int param, std::span<const int32_t> rows) {
      ops_.scatter_rows({.x = dy,
                         .x_stride = dim,
                         .rows = rows,
                         .gradient = own.gradient(param),
                         .gradient_stride = dim,
                         .dim = dim});
    };
    if (own.tokens() >= 0) scatter(own.tokens(), trained);
    if (own.embedding_table() >= 0) scatter(own.embedding_table(), plain);
    if (own.embedding_a() >= 0)
      ops_.embedding_delta_backward({.dy = dy,
                                     .dy_stride = dim,
                                     .tokens = tokens,
                                     .a = own.value(own.embedding_a()),
                                     .b = own.value(own.embedding_b()),
                                     .a_gradient = own.gradient(own.embedding_a()),
                                     .b_gradient = own.gradient(own.embedding_b()),
                                     .rank = own.param(own.embedding_a()).rows,
                                     .vocab_size = shape.vocab_size,
                                     .dim = dim,
                                     .scaling = static_cast<float>(own.embedding_delta()->scaling)});
  }
}

// --- Norms

void TrainPass::norm(const RowView& view, const float* x, const float* base, NormParam own, int64_t layer, void* y) {
  const int64_t dim = weights_->shape.hidden_dim;
  for (const Run& run : view.runs) {
    const int param = run.adapter ? own(*run.adapter, layer) : -1;
    backend_.rms_norm({.x = x + run.begin * dim,
                       .x_stride = dim,
                       .weight = param >= 0 ? run.adapter->value(param) : base,
                       .y = row_of(y, run.begin, dim, act_bytes_),
                       .y_dtype = weights_->act,
                       .y_stride = dim,
                       .num_rows = run.end - run.begin,
                       .dim = dim,
                       .eps = static_cast<float>(weights_->config.rms_norm_eps)});
  }
}

void TrainPass::norm_backward(const RowView& view, const float* x, const float* base, NormParam own, int64_t layer,
                              const float* dy, float* dx, bool add) {
  const int64_t dim = weights_->shape.hidden_dim;
  for (const Run& run : view.runs) {
    const int param = run.adapter ? own(*run.adapter, layer) : -1;
    ops_.rms_norm_backward({.x = x + run.begin * dim,
                            .x_dtype = DType::kF32,
                            .x_stride = dim,
                            .weight = param >= 0 ? run.adapter->value(param) : base,
                            .dy = dy + run.begin * dim,
                            .dy_stride = dim,
                            .dx = dx + run.begin * dim,
                            .dx_stride = dim,
                            .add = add,
                            .weight_gradient = param >= 0 ? run.adapter->gradient(param) : nullptr,
                            .num_rows = run.end - run.begin,
                            .dim = dim,
                            .eps = static_cast<float>(weights_->config.rms_norm_eps)});
  }
}

namespace {

struct HeadNorm {
  Proj proj;
  int64_t heads, raw_column;
  const float* base;
  int (*own)(const TrainableAdapter&, int64_t);
};
std::array<HeadNorm, 2> head_norms_of(const ModelWeights& weights, int64_t layer) {
  const ModelShape& shape = weights.shape;
  const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
  return {{{Proj::kQ, shape.num_heads, 0, w.q_norm, q_norm_of},
           {Proj::kK, shape.num_kv_heads, shape.q_dim(), w.k_norm, k_norm_of}}};
}

}  // namespace

// Norms of each head of q and k (Qwen3), from the kept values into the product's places.
void TrainPass::head_norms(const RowView& view, int64_t layer, const void* raw, float* qkv) {
  const ModelShape& shape = weights_->shape;
  const int64_t dim = shape.head_dim, columns = group_columns(ProjGroup::kQkv, shape);
  const int64_t raw_stride = shape.q_dim() + shape.kv_dim();
  for (const HeadNorm& norm : head_norms_of(*weights_, layer)) {
    float* x = qkv + group_column(norm.proj, shape);
    // The kernel reads f32: the rounded values go back into the product first.
    ops_.round_rows({.x = static_cast<const std::byte*>(raw) + norm.raw_column * act_bytes_,
                     .x_dtype = weights_->act,
                     .x_stride = raw_stride,
                     .y = x,
                     .y_dtype = DType::kF32,
                     .y_stride = columns,
                     .num_rows = view.num_rows,
                     .n = norm.heads * dim,
                     .padded = norm.heads * dim});
    for (const Run& run : view.runs) {
      const int param = run.adapter ? norm.own(*run.adapter, layer) : -1;
      for (int64_t head = 0; head < norm.heads; ++head)
        backend_.rms_norm({.x = x + run.begin * columns + head * dim,
                           .x_stride = columns,
                           .weight = param >= 0 ? run.adapter->value(param) : norm.base,
                           .y = x + run.begin * columns + head * dim,
                           .y_dtype = DType::kF32,
                           .y_stride = columns,
                           .num_rows = run.end - run.begin,
                           .dim = dim,
                           .eps = static_cast<float>(weights_->config.rms_norm_eps)});
    }
  }
}

void TrainPass::head_norms_backward(const RowView& view, int64_t layer, const void* raw, float* dqkv) {
  const ModelShape& shape = weights_->shape;
  const int64_t dim = shape.head_dim, columns = group_columns(ProjGroup::kQkv, shape);
  const int64_t raw_stride = shape.q_dim() + shape.kv_dim();
  for (const HeadNorm& norm : head_norms_of(*weights_, layer)) {
    float* dx = dqkv + group_column(norm.proj, shape);
    for (const Run& run : view.runs) {
      const int param = run.adapter ? norm.own(*run.adapter, layer) : -1;
      ops_.rms_norm_backward({.x = row_of(raw, run.begin, raw_stride, act_bytes_) + norm.raw_column * act_bytes_,
                              .x_dtype = weights_->act,
                              .x_stride = raw_stride,
                              .weight = param >= 0 ? run.adapter->value(param) : norm.base,
                              .dy = dx + run.begin * columns,
                              .dy_stride = columns,
                              .dx = dx + run.begin * columns,
                              .dx_stride = columns,
                              .add = false,
                              .weight_gradient = param >= 0 ? run.adapter->gradient(param) : nullptr,
                              .num_rows = run.end - run.begin,
                              .heads = norm.heads,
                              .dim = dim,
                              .eps = static_cast<float>(weights_->config.rms_norm_eps)});
    }
  }
}

}  // namespace lk
