// SPDX-License-Identifier: Apache-2.0
#include "lk/train/trainable_adapter.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lk {
namespace {

// Parameters begin at whole vectors of 16 elements, so that one call of an op may walk all of them.
constexpr int64_t align16(int64_t n) { return (n + 15) / 16 * 16; }

// A view of `data` that a snapshot owns.
TensorView keep(Adapter& adapter, std::span<const float> data, std::initializer_list<int64_t> shape) {
  Buffer buffer(std::max<int64_t>(static_cast<int64_t>(data.size_bytes()), 64));
  std::copy(data.begin(), data.end(), buffer.as<float>());
  const TensorView view(buffer.data(), DType::kF32, shape);
  adapter.owned.push_back(std::move(buffer));
  return view;
}

std::vector<float> transposed_copy(std::span<const float> matrix, int64_t rows, int64_t cols) {
  std::vector<float> result(matrix.size());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t col = 0; col < cols; ++col)
      result[static_cast<size_t>(col * rows + row)] = matrix[static_cast<size_t>(row * cols + col)];
  return result;
}

}  // namespace

const char* to_string(ParamKind kind) {
  switch (kind) {
    case ParamKind::kA:
      return "lora_A";
    case ParamKind::kB:
      return "lora_B";
    case ParamKind::kBias:
      return "lora_B_bias";
    case ParamKind::kMagnitude:
      return "lora_magnitude_vector";
    case ParamKind::kSigma:
      return "lora_sigma";
    case ParamKind::kWeight:
      return "weight";
    case ParamKind::kTokens:
      return "trainable_tokens";
  }
  check_failed(__FILE__, __LINE__, "kind", "not a ParamKind");
}

std::string Param::name() const { return module_path(module) + "." + to_string(kind); }

// --- Creation

struct TrainableAdapter::Initial {
  std::vector<std::vector<float>> values;  // of each param

  void set(int param, const TensorView& view) { view.copy_to(values[static_cast<size_t>(param)].data()); }
  void set_transposed(int param, const TensorView& view) {
    std::vector<float> plain(static_cast<size_t>(view.num_elements()));
    view.copy_to(plain.data());
    values[static_cast<size_t>(param)] = transposed_copy(plain, view.dim(0), view.dim(1));
  }
};

Result<std::unique_ptr<TrainableAdapter>> TrainableAdapter::create(const Adapter& initial, const ModelWeights& weights,
                                                                   Backend& backend, const TrainableOptions& options) {
  std::unique_ptr<TrainableAdapter> adapter(new TrainableAdapter(weights, backend, options));
  Initial values;
  LK_RETURN_IF_ERROR(adapter->collect(initial, values));
  if (adapter->params_.empty()) return invalid_argument("the adapter has nothing to train");
  LK_RETURN_IF_ERROR(adapter->allocate(std::move(values)));
  adapter->refresh();
  return adapter;
}

int TrainableAdapter::add_param(ModuleId module, ParamKind kind, const ParamRows& rows, int64_t cols, Initial& values) {
  const Param& param =
      params_.emplace_back(module, kind, rows.all, cols, rows.trained, rows.state, num_elements_, num_states_);
  num_elements_ += align16(param.size());
  num_states_ += align16(param.state_size());
  values.values.emplace_back(static_cast<size_t>(param.size()));
  return static_cast<int>(params_.size()) - 1;
}

// A factor that stays zero leaves the other without a gradient.
Status TrainableAdapter::check_factors(int a, int b, const Initial& values) const {
  for (const auto& [factor, frozen] : {std::pair(a, options_.freeze_a), std::pair(b, options_.freeze_b)})
    if (frozen && std::ranges::all_of(values.values[static_cast<size_t>(factor)], [](float v) { return v == 0; }))
      return invalid_argument(
          "{} starts at zero and is frozen, so the other factor would learn nothing: freeze that one, or choose an "
          "init "
          "whose factors are both there (orthogonal, pissa, olora)",
          param(factor).name());
  return Status();
}

Status TrainableAdapter::collect_slot(ModuleId module, const LoraDelta& delta, std::optional<Slot>& target,
                                      Initial& values) {
  Slot slot;
  slot.module = module;
  slot.rank = slot.trained_rank = delta.rank;
  slot.in = delta.a.dim(1);
  slot.out = delta.b.dim(0);
  slot.scaling = static_cast<float>(delta.scaling);
  if (options_.frozen_half) {
    LK_CHECK(delta.rank % 2 == 0 && options_.num_modules == 0);
    if (options_.dropout > 0)
      return unsupported(
          "dropout with PiSSA or OLoRA: the part of the base that they move would be dropped too; set "
          "dropout to 0");
    slot.trained_rank = delta.rank / 2;
  }
  const int64_t trained_a = options_.freeze_a ? 0 : slot.trained_rank;
  const int64_t trained_b = options_.freeze_b ? 0 : slot.trained_rank;
  // The sigma of MultiLoRA is unfolded from B's gradient, frozen or not.
  const int64_t state_b = options_.num_modules > 0 ? slot.rank : trained_b;
  slot.a = add_param(module, ParamKind::kA, {slot.rank, trained_a, trained_a}, slot.in, values);
  slot.b = add_param(module, ParamKind::kB, {slot.rank, trained_b, state_b}, slot.out, values);
  values.set(slot.a, delta.a);
  values.set_transposed(slot.b, delta.b);
  LK_RETURN_IF_ERROR(check_factors(slot.a, slot.b, values));
  if (delta.bias.defined()) {
    slot.bias = add_param(module, ParamKind::kBias, 1, slot.out, values);
    values.set(slot.bias, delta.bias);
  }
  if (delta.magnitude.defined()) {
    if (options_.num_modules > 0) return unsupported("MultiLoRA with DoRA: choose one of them");
    if (options_.dropout > 0)
      return unsupported(
          "dropout with DoRA: PEFT drops features of the base's input too, which no adapter of the "
          "step beside it could share; set dropout to 0");
    slot.magnitude = add_param(module, ParamKind::kMagnitude, 1, slot.out, values);
    values.set(slot.magnitude, delta.magnitude);
    if (std::ranges::find(values.values.back(), 0.0f) != values.values.back().end())
      return unsupported("{}: a DoRA magnitude is zero, which no gradient leaves", module_path(module));
  }
  if (options_.num_modules > 0) {
    if (delta.rank % options_.num_modules != 0)
      return invalid_argument("{}: rank {} is no multiple of {} modules", module_path(module), delta.rank,
                              options_.num_modules);
    slot.sigma = add_param(module, ParamKind::kSigma, options_.num_modules, slot.out, values);  // zero
  }
  target = slot;
  return Status();
}

Status TrainableAdapter::collect(const Adapter& initial, Initial& values) {
  const ModelShape& shape = weights_.shape;
  const int64_t num_layers = shape.num_layers;
  config_ = initial.config;
  layers_.resize(static_cast<size_t>(num_layers));
  for (int64_t index = 0; index < num_layers && !initial.layers.empty(); ++index) {
    for (int proj = 0; proj < kNumProjs; ++proj) {
      const auto& delta = initial.layers[static_cast<size_t>(index)][static_cast<size_t>(proj)];
      if (!delta) continue;
      LK_RETURN_IF_ERROR(collect_slot(ModuleId::of(index, static_cast<Proj>(proj)), *delta,
                                      layers_[static_cast<size_t>(index)].slots[static_cast<size_t>(proj)], values));
    }
  }
  if (initial.lm_head) LK_RETURN_IF_ERROR(collect_slot(kLmHead, *initial.lm_head, head_, values));
  for (const WeightId weight : initial.replaced.ids()) {
    const TensorView& view = initial.replaced.of(weight);
    const ModuleId module = weight.module;
    if (module.proj())
      return unsupported(
          "{} is replaced as a whole: of modules_to_save only norms, lm_head and embed_tokens can be "
          "trained; give the linears a delta",
          module_path(module));
    const bool matrix = module.is_vocabulary();
    const int param =
        add_param(module, ParamKind::kWeight, matrix ? view.dim(0) : 1, matrix ? view.dim(1) : view.dim(0), values);
    values.set(param, view);
    Layer* layer = module.layer >= 0 ? &layers_[static_cast<size_t>(module.layer)] : nullptr;
    switch (module.kind) {
      case ModuleKind::kInputNorm:
        layer->input_norm = param;
        break;
      case ModuleKind::kPostNorm:
        layer->post_norm = param;
        break;
      case ModuleKind::kQNorm:
        layer->q_norm = param;
        break;
      case ModuleKind::kKNorm:
        layer->k_norm = param;
        break;
      case ModuleKind::kFinalNorm:
        final_norm_ = param;
        break;
      case ModuleKind::kLmHead:
        head_weight_ = param;
        break;
      default:
        embedding_table_ = param;
    }
  }
  if (initial.embedding) {
    const Adapter::EmbeddingDelta& delta = *initial.embedding;
    embedding_rank_ = delta.rank;
    embedding_scaling_ = delta.scaling;
    const auto add = [&](ParamKind kind, int64_t rows, int64_t cols, bool frozen) {
      // Both gradients come from one op, also that of a frozen factor.
      return add_param(kEmbedding, kind, {rows, frozen ? 0 : rows, rows}, cols, values);
    };
    embedding_a_ = add(ParamKind::kA, delta.rank, shape.vocab_size, options_.freeze_a);
    embedding_b_ = add(ParamKind::kB, shape.hidden_dim, delta.rank, options_.freeze_b);
    values.set(embedding_a_, delta.a);
    values.set(embedding_b_, delta.b);
    LK_RETURN_IF_ERROR(check_factors(embedding_a_, embedding_b_, values));
  }
  if (!initial.trained_token_ids.empty()) {
    token_ids_.assign(initial.trained_token_ids.begin(), initial.trained_token_ids.end());
    tokens_ =
        add_param(kEmbedding, ParamKind::kTokens, static_cast<int64_t>(token_ids_.size()), shape.hidden_dim, values);
    values.set(tokens_, initial.trained_token_rows);
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

Result<TrainableAdapter::Sizes> TrainableAdapter::sizes(const Adapter& initial, const ModelWeights& weights,
                                                        Backend& backend, const TrainableOptions& options) {
  TrainableAdapter adapter(weights, backend, options);
  Initial values;
  LK_RETURN_IF_ERROR(adapter.collect(initial, values));
  adapter.place_copies();
  return Sizes{.bytes = adapter.state_bytes(),
               .copy_bytes = adapter.num_elements_ * 4,
               .parameters = adapter.num_trained(),
               .needs = adapter.needs_};
}

int64_t TrainableAdapter::state_bytes() const {
  return num_elements_ * 4 + 3 * num_states_ * 4 + copies_bytes_ + (token_head_.n > 0 ? param(tokens_).size() * 4 : 0);
}

int64_t TrainableAdapter::num_trained() const {
  int64_t n = 0;
  for (const Param& param : params_) n += param.trained_size();
  return n;
}

Status TrainableAdapter::allocate(Initial initial) {
  LK_ASSIGN_OR_RETURN(values_, backend_.try_allocate(num_elements_ * 4));
  // Before the other arrays take memory the copies on the host give theirs back.
  for (size_t index = 0; index < params_.size(); ++index) {
    backend_.upload(value(static_cast<int>(index)), std::span<const float>(initial.values[index]));
    initial.values[index] = {};
  }
  for (DeviceBuffer* buffer : {&gradients_, &moments1_, &moments2_}) {
    LK_ASSIGN_OR_RETURN(*buffer, backend_.try_allocate(num_states_ * 4));
    ops_.fill(buffer->as<float>(), num_states_, 0);
  }
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
  ops_.fill(gradients(), num_states_, 0);
  if (token_columns_) ops_.fill(token_head_gradient(), param(tokens_).size(), 0);
}

void TrainableAdapter::finish_gradient() {
  if (std::exchange(gradient_finished_, true)) return;
  for (const Param& param : params_)  // what is not trained has no part in the norm
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
  StepReport report;
  report.gradient_norm = std::sqrt(ops_.sum_squares(gradients(), num_states_)) / weight;
  report.finite = std::isfinite(report.gradient_norm);
  if (report.finite) {
    const double clipped = dials.clip > 0 ? std::min(1.0, dials.clip / (report.gradient_norm + 1e-6)) : 1.0;
    ++num_steps_;
    const auto count = static_cast<double>(num_steps_);
    for (size_t index = 0; index < params_.size(); ++index) {
      const Param& param = params_[index];
      // LoRA+ gives the larger rate to B and, as PEFT does it, to vectors.
      const bool is_b = (param.kind == ParamKind::kB && param.module != kEmbedding) || !param.is_matrix();
      ops_.adamw({.param = values() + param.offset,
                  .gradient = gradients() + param.state_offset,
                  .m = first_moments() + param.state_offset,
                  .v = second_moments() + param.state_offset,
                  .n = param.trained_size(),
                  .rate = dials.rate * (is_b ? dials.b_rate_ratio : 1.0),
                  .beta1 = dials.beta1,
                  .beta2 = dials.beta2,
                  .eps = dials.eps,
                  .decay = param.is_matrix() ? dials.decay : 0.0,
                  .correction1 = 1 - std::pow(dials.beta1, count),
                  .correction2 = 1 - std::pow(dials.beta2, count),
                  .grad_scale = clipped / weight});
    }
  }
  zero_gradient();
  if (report.finite) refresh();
  return report;
}

// --- Snapshot

int64_t TrainableAdapter::token_row(int32_t token) const {
  const auto found = std::ranges::find(token_ids_, token);
  return found == token_ids_.end() ? -1 : found - token_ids_.begin();
}

Adapter TrainableAdapter::snapshot() const {
  Adapter adapter;
  adapter.config.use_rslora = config_.use_rslora;
  adapter.config.base_model_name = config_.base_model_name;
  adapter.config.dropout = options_.dropout;
  const auto read = [&](const void* from, int64_t n) {
    std::vector<float> host(static_cast<size_t>(n));
    backend_.read(host.data(), from, n * 4);
    return host;
  };
  const auto host_value = [&](int index) {
    return read(values_.as<float>() + param(index).offset, param(index).size());
  };
  // Straight into the snapshot's memory: a head is large.
  const auto kept = [&](int index, std::initializer_list<int64_t> shape) {
    const int64_t bytes = param(index).size() * 4;
    Buffer buffer(std::max<int64_t>(bytes, 64));
    backend_.read(buffer.data(), values_.as<float>() + param(index).offset, bytes);
    const TensorView view(buffer.data(), DType::kF32, shape);
    adapter.owned.push_back(std::move(buffer));
    return view;
  };
  const auto delta_of = [&](const Slot& slot) {
    LoraDelta delta;
    delta.rank = slot.rank;
    delta.scaling = slot.scaling;
    delta.a = kept(slot.a, {slot.rank, slot.in});
    const std::vector<float> b = slot.sigma >= 0 ? read(slot.folded_b, slot.rank * slot.out) : host_value(slot.b);
    delta.b = keep(adapter, transposed_copy(b, slot.rank, slot.out), {slot.out, slot.rank});
    if (slot.bias >= 0) delta.bias = kept(slot.bias, {slot.out});
    if (slot.dora()) {
      delta.magnitude = kept(slot.magnitude, {slot.out});
      delta.dora_scale = keep(adapter, read(slot.scales, slot.out), {slot.out});
      adapter.config.use_dora = true;
    }
    adapter.max_rank = std::max(adapter.max_rank, slot.rank);
    return delta;
  };
  adapter.layers.resize(layers_.size());
  for (size_t index = 0; index < layers_.size(); ++index)
    for (int proj = 0; proj < kNumProjs; ++proj)
      if (const auto& slot = layers_[index].slots[static_cast<size_t>(proj)])
        adapter.layers[index][static_cast<size_t>(proj)] = delta_of(*slot);
  if (head_) adapter.lm_head = delta_of(*head_);
  if (embedding_a_ >= 0) {
    adapter.embedding = Adapter::EmbeddingDelta{embedding_rank_, embedding_scaling_,
                                                kept(embedding_a_, {embedding_rank_, weights_.shape.vocab_size}),
                                                kept(embedding_b_, {weights_.shape.hidden_dim, embedding_rank_})};
  }
  for (size_t index = 0; index < params_.size(); ++index) {
    const Param& param = params_[index];
    if (param.kind != ParamKind::kWeight) continue;
    if (param.module.layer >= 0) adapter.replaced.layers.resize(layers_.size());
    const int own = static_cast<int>(index);
    adapter.replaced.slot({param.module}) =
        param.module.is_vocabulary() ? kept(own, {param.rows, param.cols}) : kept(own, {param.cols});
  }
  if (tokens_ >= 0) {
    adapter.trained_token_ids.assign(token_ids_.begin(), token_ids_.end());
    adapter.trained_token_rows = kept(tokens_, {param(tokens_).rows, param(tokens_).cols});
  }
  return adapter;
}

}  // namespace lk
