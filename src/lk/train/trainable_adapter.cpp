// SPDX-License-Identifier: Apache-2.0
#include "lk/train/trainable_adapter.h"

#include <algorithm>
#include <utility>

#include "lk/lora_tools/adapter_rules.h"

namespace lk {
// --- Creation

Result<std::unique_ptr<TrainableAdapter>> TrainableAdapter::create(const Adapter& initial, const ModelWeights& weights,
                                                                   Backend& backend, const TrainableOptions& options) {
  std::unique_ptr<TrainableAdapter> adapter(new TrainableAdapter(weights, backend, options));
  LK_RETURN_IF_ERROR(adapter->collect(initial));
  if (adapter->params().empty()) return invalid_argument("the adapter has nothing to train");
  LK_RETURN_IF_ERROR(adapter->allocate());
  if (options.proximal) LK_RETURN_IF_ERROR(adapter->params_.keep_anchor());
  adapter->refresh();
  return adapter;
}

// A factor that stays zero leaves the other without a gradient.
Status TrainableAdapter::check_factors(int a, int b) const {
  for (const auto& [factor, frozen] : {std::pair(a, options_.freeze_a), std::pair(b, options_.freeze_b)})
    if (frozen && std::ranges::all_of(params_.initial(factor), [](float v) { return v == 0; }))
      return invalid_argument(
          "{} starts at zero and is frozen, so the other factor would learn nothing: freeze that one, or choose an "
          "init "
          "whose factors are both there (orthogonal, pissa, olora)",
          param(factor).name());
  return Status();
}

Status TrainableAdapter::collect_slot(ModuleId module, const LoraDelta& delta, std::optional<Slot>& target) {
  const AdapterTraits traits{.num_modules = options_.num_modules,
                             .dora = delta.magnitude.defined(),
                             .bias = delta.bias.defined(),
                             .dropout = options_.dropout > 0,
                             .init = options_.frozen_half ? AdapterInit::kPissa : AdapterInit::kDefault};
  LK_RETURN_IF_ERROR(check_kind(traits).with_context(module_path(module)));
  Slot slot;
  slot.module = module;
  slot.rank = delta.rank;
  slot.in = delta.a.dim(1);
  slot.out = delta.b.dim(0);
  slot.scaling = static_cast<float>(delta.scaling);
  LK_CHECK(!options_.frozen_half || delta.rank % 2 == 0);
  slot.trained_rank = options_.frozen_half ? delta.rank / 2 : delta.rank;
  const int64_t trained_a = options_.freeze_a ? 0 : slot.trained_rank;
  const int64_t trained_b = options_.freeze_b ? 0 : slot.trained_rank;
  // The sigma of MultiLoRA is unfolded from B's gradient, frozen or not.
  const int64_t state_b = options_.num_modules > 0 ? slot.rank : trained_b;
  slot.a = params_.add(module, ParamKind::kA, {slot.rank, trained_a, trained_a}, slot.in);
  slot.b = params_.add(module, ParamKind::kB, {slot.rank, trained_b, state_b}, slot.out);
  params_.set(slot.a, delta.a);
  params_.set_transposed(slot.b, delta.b);
  LK_RETURN_IF_ERROR(check_factors(slot.a, slot.b));
  if (delta.bias.defined()) {
    slot.bias = params_.add(module, ParamKind::kBias, 1, slot.out);
    params_.set(slot.bias, delta.bias);
  }
  if (delta.magnitude.defined()) {
    LK_CHECK(!options_.overlay, "the norms of a changed base are not kept");
    slot.magnitude = params_.add(module, ParamKind::kMagnitude, 1, slot.out);
    params_.set(slot.magnitude, delta.magnitude);
    if (std::ranges::find(params_.initial(slot.magnitude), 0.0f) != params_.initial(slot.magnitude).end())
      return unsupported("{}: a DoRA magnitude is zero, which no gradient leaves", module_path(module));
  }
  if (options_.num_modules > 0) {
    if (delta.rank % options_.num_modules != 0)
      return invalid_argument("{}: rank {} is no multiple of {} modules", module_path(module), delta.rank,
                              options_.num_modules);
    slot.sigma = params_.add(module, ParamKind::kSigma, options_.num_modules, slot.out);  // zero
  }
  target = slot;
  return Status();
}

Status TrainableAdapter::collect_sparse() {
  if (options_.mask == nullptr) return Status();
  for (const auto& [module, pattern] : options_.mask->patterns()) {
    if (pattern.nnz == 0) continue;
    const auto values = options_.sparse->find(module);
    LK_CHECK(values != options_.sparse->end() && std::ssize(values->second) == pattern.nnz, "{}", module_path(module));
    const Proj proj = *module.proj();
    SparseSlot& slot = layers_[static_cast<size_t>(module.layer)].sparse[static_cast<size_t>(proj)].emplace();
    slot.pattern = pattern;
    slot.out_begin = group_column(proj, weights_.shape);
    slot.values = params_.add(module, ParamKind::kSparse, 1, pattern.nnz);
    params_.set(slot.values, TensorView(values->second.data(), DType::kF32, {1, pattern.nnz}));
  }
  return Status();
}

// One that replaces the base's own as a whole.
void TrainableAdapter::collect_weight(WeightId weight, const TensorView& view) {
  const ModuleId module = weight.module;
  const bool matrix = module.is_vocabulary();
  const int own = params_.add(module, ParamKind::kWeight, matrix ? view.dim(0) : 1, matrix ? view.dim(1) : view.dim(0));
  params_.set(own, view);
  Layer* layer = module.layer >= 0 ? &layers_[static_cast<size_t>(module.layer)] : nullptr;
  switch (module.kind) {
    case ModuleKind::kInputNorm:
      layer->input_norm = own;
      break;
    case ModuleKind::kPostNorm:
      layer->post_norm = own;
      break;
    case ModuleKind::kQNorm:
      layer->q_norm = own;
      break;
    case ModuleKind::kKNorm:
      layer->k_norm = own;
      break;
    case ModuleKind::kFinalNorm:
      final_norm_ = own;
      break;
    case ModuleKind::kLmHead:
      head_weight_ = own;
      break;
    default:
      embedding_table_ = own;
  }
}

void TrainableAdapter::collect_embedding(const Adapter::EmbeddingDelta& delta) {
  embedding_rank_ = delta.rank;
  embedding_scaling_ = delta.scaling;
  const auto add = [&](ParamKind kind, int64_t rows, int64_t cols, bool frozen) {
    // Both gradients come from one op, also that of a frozen factor.
    return params_.add(kEmbedding, kind, {rows, frozen ? 0 : rows, rows}, cols);
  };
  embedding_a_ = add(ParamKind::kA, delta.rank, weights_.shape.vocab_size, options_.freeze_a);
  embedding_b_ = add(ParamKind::kB, weights_.shape.hidden_dim, delta.rank, options_.freeze_b);
  params_.set(embedding_a_, delta.a);
  params_.set(embedding_b_, delta.b);
}

Status TrainableAdapter::collect(const Adapter& initial) {
  const ModelShape& shape = weights_.shape;
  config_ = initial.config;
  layers_.resize(static_cast<size_t>(shape.num_layers));
  for (int64_t index = 0; index < shape.num_layers && !initial.layers.empty(); ++index) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      const auto& delta = initial.layers[static_cast<size_t>(index)][static_cast<size_t>(proj)];
      if (!delta) continue;
      LK_RETURN_IF_ERROR(collect_slot(ModuleId::of(index, static_cast<Proj>(proj)), *delta,
                                      layers_[static_cast<size_t>(index)].slots[static_cast<size_t>(proj)]));
    }
  }
  LK_RETURN_IF_ERROR(collect_sparse());
  if (initial.lm_head) LK_RETURN_IF_ERROR(collect_slot(kLmHead, *initial.lm_head, head_));
  for (const WeightId weight : initial.replaced.ids()) {
    if (weight.module.proj())
      return unsupported(
          "{} is replaced as a whole: of modules_to_save only norms, lm_head and embed_tokens can be "
          "trained; give the linears a delta",
          module_path(weight.module));
    collect_weight(weight, initial.replaced.of(weight));
  }
  if (initial.embedding) {
    collect_embedding(*initial.embedding);
    LK_RETURN_IF_ERROR(check_factors(embedding_a_, embedding_b_));
  }
  if (!initial.trained_token_ids.empty()) {
    token_ids_.assign(initial.trained_token_ids.begin(), initial.trained_token_ids.end());
    tokens_ = params_.add(kEmbedding, ParamKind::kTokens, static_cast<int64_t>(token_ids_.size()), shape.hidden_dim);
    params_.set(tokens_, initial.trained_token_rows);
  }

  if (head_ && head_->dora() && head_weight_ >= 0)
    return unsupported("lm_head is replaced and has a DoRA delta: choose one of them");

  collect_needs();
  return Status();
}

PassNeeds PassNeeds::include(const PassNeeds& other) const {
  PassNeeds both = *this;
  for (size_t group = 0; group < ranks.size(); ++group) both.ranks[group] = std::max(ranks[group], other.ranks[group]);
  both.lowest_layer = std::min(lowest_layer, other.lowest_layer);
  both.dropout |= other.dropout;
  both.dora_columns = std::max(dora_columns, other.dora_columns);
  both.token_columns = std::max(token_columns, other.token_columns);
  both.head_weight |= other.head_weight;
  return both;
}

void TrainableAdapter::collect_needs() {
  const ModelShape& shape = weights_.shape;
  needs_.lowest_layer = shape.num_layers;
  for (int64_t index = shape.num_layers - 1; index >= 0; --index) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const bool adapted = std::ranges::any_of(layer.slots, [](const auto& slot) { return slot.has_value(); }) ||
                         std::ranges::any_of(layer.sparse, [](const auto& slot) { return slot.has_value(); }) ||
                         layer.input_norm >= 0 || layer.post_norm >= 0 || layer.q_norm >= 0 || layer.k_norm >= 0;
    if (adapted) needs_.lowest_layer = index;
    for (ProjGroup group : {ProjGroup::kQkv, ProjGroup::kO, ProjGroup::kGateUp, ProjGroup::kDown}) {
      int64_t& rank = needs_.ranks[static_cast<size_t>(group)];
      rank = std::max(rank, group_rank(group, index));
    }
  }
  if (trains_embedding()) needs_.lowest_layer = 0;
  if (head_) needs_.ranks[PassNeeds::kHead] = head_->rank;
  needs_.dropout = options_.dropout > 0;
  for_each_slot([&](const Slot& slot) {
    if (!slot.dora()) return;
    const auto proj = slot.module.proj();
    needs_.dora_columns =
        std::max(needs_.dora_columns, proj ? group_columns(group_of(*proj), shape) : align_panel(shape.vocab_size));
  });
  if (tokens_ >= 0 && weights_.config.tie_word_embeddings)
    needs_.token_columns = static_cast<int64_t>(token_ids_.size());
  needs_.head_weight = head_weight_ >= 0;
}

int64_t TrainableAdapter::group_rank(ProjGroup group, int64_t layer) const {
  int64_t rank = 0;
  for (Proj proj : projs_of(group)) {
    const auto& slot = layers_[static_cast<size_t>(layer)].slots[static_cast<size_t>(proj)];
    if (slot) rank += slot->rank;
  }
  return rank;
}

bool TrainableAdapter::trains_group(ProjGroup group, int64_t layer) const {
  if (group_rank(group, layer) > 0) return true;
  return std::ranges::any_of(projs_of(group), [&](Proj proj) {
    return layers_[static_cast<size_t>(layer)].sparse[static_cast<size_t>(proj)].has_value();
  });
}

Result<TrainableAdapter::Sizes> TrainableAdapter::sizes(const Adapter& initial, const ModelWeights& weights,
                                                        Backend& backend, const TrainableOptions& options) {
  TrainableAdapter adapter(weights, backend, options);
  LK_RETURN_IF_ERROR(adapter.collect(initial));
  adapter.place_copies();
  return Sizes{.bytes = adapter.state_bytes(),
               .copy_bytes = adapter.num_elements() * 4,
               .parameters = adapter.num_trained(),
               .needs = adapter.needs_};
}

int64_t TrainableAdapter::state_bytes() const {
  return params_.bytes() + (options_.proximal ? num_elements() * 4 : 0) + copies_bytes_ +
         (token_head_.n > 0 ? param(tokens_).size() * 4 : 0);
}

Status TrainableAdapter::allocate() {
  LK_RETURN_IF_ERROR(params_.allocate());
  place_copies();
  LK_ASSIGN_OR_RETURN(copies_, backend_.try_allocate(copies_bytes_));
  copies_bytes_ = 0;
  place_copies();
  if (token_columns_) {
    backend_.upload(token_columns_, std::span<const int32_t>(token_ids_));
    LK_ASSIGN_OR_RETURN(token_head_gradient_, backend_.try_allocate(param(tokens_).size() * 4));
    ops_.fill(token_head_gradient(), param(tokens_).size(), 0);
  }
  for_each_slot([&](Slot& slot) {
    if (slot.dora()) ops_.row_squares({.w = base_weight(slot), .squares = slot.squares});
  });
  make_resident();
  return Status();
}

void TrainableAdapter::make_resident() {
  const ModelShape& shape = weights_.shape;
  const auto own = [&](int param) -> const float* { return param >= 0 ? value(param) : nullptr; };
  resident_.rank_rows = copies_.data();
  resident_.layers.resize(layers_.size());
  for (size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    ResidentAdapter::Layer& resident = resident_.layers[index];
    for (int proj = 0; proj < kNumProjs; ++proj)
      if (const auto& slot = layer.slots[static_cast<size_t>(proj)])
        resident.groups[static_cast<size_t>(group_of(static_cast<Proj>(proj)))].push_back(slot->forward);
    for (int proj = 0; proj < kNumProjs && options_.overlay; ++proj)
      resident.replaced[static_cast<size_t>(proj)] =
          options_.overlay->find(ModuleId::of(static_cast<int64_t>(index), static_cast<Proj>(proj)));
    resident.input_norm = own(layer.input_norm);
    resident.post_norm = own(layer.post_norm);
    resident.q_norm = own(layer.q_norm);
    resident.k_norm = own(layer.k_norm);
  }
  if (head_) resident_.lm_head.push_back(head_->forward);
  if (head_weight_ >= 0) resident_.replaced_lm_head = &packed_head_;
  resident_.final_norm = own(final_norm_);
  const auto view = [&](int param, int64_t rows, int64_t cols) {
    return TensorView(value(param), DType::kF32, {rows, cols});
  };
  ResidentAdapter::Embedding& embedding = resident_.embedding;
  if (embedding_table_ >= 0) embedding.table = view(embedding_table_, shape.vocab_size, shape.hidden_dim);
  if (embedding_a_ >= 0)
    embedding.delta = EmbeddingDelta{view(embedding_a_, embedding_rank_, shape.vocab_size),
                                     view(embedding_b_, shape.hidden_dim, embedding_rank_), embedding_scaling_};
  if (tokens_ < 0) return;
  embedding.trained_rows = view(tokens_, static_cast<int64_t>(token_ids_.size()), shape.hidden_dim);
  for (const int32_t id : token_ids_) embedding.trained_row_of.emplace(id, token_row(id));
  resident_.trained_head = token_head_;
  resident_.trained_columns = token_columns_;
}

// Memory of copies_. Before that is there, only the sum is counted.
std::byte* TrainableAdapter::take(int64_t bytes) {
  std::byte* begin = copies_.data() ? copies_.data() + copies_bytes_ : nullptr;
  copies_bytes_ += (bytes + 63) / 64 * 64;
  return begin;
}

// Rank rows one after the other, in the terms of the LoRA kernels.
LoraMatrix TrainableAdapter::rank_rows(int64_t rank, int64_t width, DType dtype, std::byte** first) {
  const int64_t row_bytes = align_panel(width) * dtype_bytes(dtype);
  *first = take(rank * row_bytes);
  auto* table = reinterpret_cast<int64_t*>(take(rank * 8));
  if (table) {
    std::vector<int64_t> offsets(static_cast<size_t>(rank));
    for (int64_t row = 0; row < rank; ++row)
      offsets[static_cast<size_t>(row)] = *first - copies_.data() + row * row_bytes;
    backend_.upload(table, std::span<const int64_t>(offsets));
  }
  return {.row_offsets = table,
          .num_rows = static_cast<int32_t>(rank),
          .num_chunks = 1,
          .width = width,
          .chunk_cols = align_panel(width)};
}

template <class F>
void TrainableAdapter::for_each_slot(const F& f) {
  for (Layer& layer : layers_)
    for (auto& slot : layer.slots)
      if (slot) f(*slot);
  if (head_) f(*head_);
}

void TrainableAdapter::place_copies() {
  for_each_slot([&](Slot& slot) {
    const DType act = weights_.act;
    slot.forward = {.a = rank_rows(slot.rank, slot.in, act, &slot.a_rows),
                    .b = rank_rows(slot.rank, slot.out, act, &slot.b_rows),
                    .scaling = slot.scaling,
                    .out_begin = slot.module.proj() ? group_column(*slot.module.proj(), weights_.shape) : 0};
    slot.backward = {.a = slot.forward.b, .b = slot.forward.a, .scaling = slot.scaling};
    const auto f32_row = [&](LoraMatrix& matrix) {
      std::byte* row = nullptr;
      matrix = rank_rows(1, slot.out, DType::kF32, &row);
      return reinterpret_cast<float*>(row);
    };
    if (slot.sigma >= 0) slot.folded_b = reinterpret_cast<float*>(take(slot.rank * slot.out * 4));
    if (slot.bias >= 0) slot.scaled_bias = f32_row(slot.forward.out_bias);
    if (!slot.dora()) return;
    slot.scales = f32_row(slot.forward.out_scale);
    slot.norms = reinterpret_cast<float*>(take(slot.out * 4));
    slot.squares = reinterpret_cast<float*>(take(slot.out * 4));
    dora_columns_ = std::max(dora_columns_, slot.rank * align_panel(slot.out));
  });
  const ModelShape& shape = weights_.shape;
  const auto packed = [&](int64_t rows) {
    const int64_t bytes = packed_weight_bytes(weights_.format(), rows, shape.hidden_dim);
    return PackedWeight{.format = weights_.format(), .n = rows, .k = shape.hidden_dim, .data = take(bytes)};
  };
  if (head_weight_ >= 0) packed_head_ = packed(shape.vocab_size);
  if (tokens_ >= 0 && weights_.config.tie_word_embeddings) {
    token_head_ = packed(static_cast<int64_t>(token_ids_.size()));
    token_columns_ = reinterpret_cast<int32_t*>(take(static_cast<int64_t>(token_ids_.size()) * 4));
  }
  dora_products_ = reinterpret_cast<float*>(take(dora_columns_ * 4));
}

PackedWeight TrainableAdapter::base_weight(const Slot& slot) const {
  if (slot.module == kLmHead) return weights_.lm_head;
  const Proj proj = *slot.module.proj();
  return columns_of(weights_.layers[static_cast<size_t>(slot.module.layer)].linear[static_cast<size_t>(group_of(proj))],
                    group_column(proj, weights_.shape), slot.out);
}

// --- Compute copies

void TrainableAdapter::refresh() {
  for_each_slot([&](Slot& slot) { refresh_slot(slot); });
  if (head_weight_ >= 0) pack_rows(head_weight_, packed_head_);
  if (token_head_.n > 0) pack_rows(tokens_, token_head_);
}

// A slice at a time: a head is large, and is read back to be packed.
void TrainableAdapter::pack_rows(int index, const PackedWeight& dst) {
  constexpr int64_t kSlice = 16 * kPanelCols;
  const Param& from = param(index);
  std::vector<float> host(static_cast<size_t>(std::min(from.rows, kSlice) * from.cols));
  for (int64_t row = 0; row < from.rows; row += kSlice) {
    const int64_t rows = std::min(from.rows - row, kSlice);
    backend_.read(host.data(), value(index) + row * from.cols, rows * from.cols * 4);
    backend_.pack_weight(TensorView(host.data(), DType::kF32, {rows, from.cols}), row, dst, Workers::kAll);
  }
}

void TrainableAdapter::refresh_slot(Slot& slot) {
  const auto round = [&](const float* x, const LoraMatrix& rows, std::byte* first) {
    ops_.round_rows({.x = x,
                     .x_stride = rows.width,
                     .y = first,
                     .y_dtype = weights_.act,
                     .y_stride = align_panel(rows.width),
                     .num_rows = rows.num_rows,
                     .n = rows.width,
                     .padded = align_panel(rows.width)});
  };
  const float* b = value(slot.b);
  if (slot.sigma >= 0) {
    ops_.fold_modules({.b = b,
                       .sigma = value(slot.sigma),
                       .folded = slot.folded_b,
                       .rank = slot.rank,
                       .module_rank = slot.rank / options_.num_modules,
                       .n = slot.out});
    b = slot.folded_b;
  }
  round(value(slot.a), slot.forward.a, slot.a_rows);
  round(b, slot.forward.b, slot.b_rows);
  if (slot.bias >= 0) {
    ops_.fill(slot.scaled_bias, slot.out, 0);
    ops_.column_sum({.x = value(slot.bias),
                     .x_dtype = DType::kF32,
                     .x_stride = slot.out,
                     .scale = slot.scaling,
                     .gradient = slot.scaled_bias,
                     .num_rows = 1,
                     .n = slot.out});
  }
  if (slot.dora()) refresh_dora(slot);
}

void TrainableAdapter::refresh_dora(Slot& slot) {
  const int64_t stride = align_panel(slot.out);
  backend_.gemm({.x = slot.a_rows,
                 .act = weights_.act,
                 .x_stride = align_panel(slot.in),
                 .w = base_weight(slot),
                 .y = dora_products_,
                 .y_stride = stride,
                 .num_rows = slot.rank});
  ops_.dora_scales({.squares = slot.squares,
                    .products = dora_products_,
                    .products_stride = stride,
                    .a = value(slot.a),
                    .b = value(slot.b),
                    .magnitudes = value(slot.magnitude),
                    .norms = slot.norms,
                    .scales = slot.scales,
                    .rank = slot.rank,
                    .n = slot.out,
                    .k = slot.in,
                    .scaling = slot.scaling});
}

// --- Optimiser

void TrainableAdapter::zero_gradient() {
  gradient_finished_ = false;
  params_.zero_gradient();
  if (token_columns_) ops_.fill(token_head_gradient(), param(tokens_).size(), 0);
}

void TrainableAdapter::finish_gradient() {
  if (std::exchange(gradient_finished_, true)) return;
  for (const Param& param : params())  // what is not trained has no part in the norm
    if (param.trained_rows < param.rows && param.module == kEmbedding)
      ops_.fill(gradients() + param.state_offset, param.state_size(), 0);
  if (token_columns_) {
    const int64_t dim = param(tokens_).cols;
    backend_.add(gradient(tokens_), dim, token_head_gradient(), dim, param(tokens_).rows, dim);
  }
  for_each_slot([&](Slot& slot) {
    if (slot.sigma < 0) return;
    ops_.unfold_modules({.b = value(slot.b),
                         .sigma = value(slot.sigma),
                         .folded = gradient(slot.b),
                         .sigma_gradient = gradient(slot.sigma),
                         .rank = slot.rank,
                         .module_rank = slot.rank / options_.num_modules,
                         .n = slot.out});
    // B's gradient was needed for that alone.
    if (options_.freeze_b) ops_.fill(gradient(slot.b), param(slot.b).state_size(), 0);
  });
}

StepReport TrainableAdapter::step(const AdamwStep& dials, double weight) {
  finish_gradient();
  const StepReport report = params_.step(dials, weight, num_steps_ + 1);
  num_steps_ += report.finite ? 1 : 0;
  zero_gradient();
  if (report.finite) refresh();
  return report;
}

int64_t TrainableAdapter::token_row(int32_t token) const {
  const auto found = std::ranges::find(token_ids_, token);
  return found == token_ids_.end() ? -1 : found - token_ids_.begin();
}

}  // namespace lk
