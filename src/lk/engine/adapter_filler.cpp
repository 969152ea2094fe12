// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/adapter_filler.h"

#include <vector>

namespace lk {
namespace {

// Where the row tables of a projection begin in the array of all of them.
struct ProjTables {
  size_t a, b, bias, scale;
};

class Filler {
 public:
  Filler(const AdapterLayout& layout, const Adapter& adapter, std::byte* pool_base, Backend& backend,
         ResidentAdapter& out)
      : layout_(layout), adapter_(adapter), pool_base_(pool_base), backend_(backend), out_(out) {}

  void fill(const std::shared_ptr<const Adapter>& owner) {
    make_tables();
    for (size_t layer = 0; layer < adapter_.layers.size(); ++layer) fill_layer(layer);
    if (adapter_.lm_head)
      out_.lm_head.push_back(
          fill_proj(layout_.head().projs[0], tables_.back()[0], *adapter_.lm_head, /*out_begin=*/0, pool_base_));
    for (const AdapterLayout::MatrixPlace& place : layout_.matrices()) fill_matrix(place);
    fill_vectors();
    fill_embedding(owner);
  }

 private:
  // --- Rank rows

  // The row tables of all kinds, one after the other in one array: here, where rows are stored by them, and on the
  // device, where products read them. Layers of one kind share theirs.
  void make_tables() {
    const auto add_slice = [&](const AdapterLayout::SlicePlace& slice, int64_t first_page) {
      const auto add = [&](const AdapterLayout::RowsPlace& place) {
        const size_t first = offsets_.size();
        for (const AdapterLayout::Place& chunk : place.chunks)
          offsets_.push_back(out_.pages[static_cast<size_t>(first_page + chunk.page)] * layout_.geometry().page_bytes +
                             chunk.offset);
        return first;
      };
      std::vector<ProjTables>& tables = tables_.emplace_back();
      for (const AdapterLayout::ProjPlace& proj : slice.projs)
        tables.push_back({add(proj.a), add(proj.b), add(proj.bias), add(proj.scale)});
    };
    for (size_t kind = 0; kind < layout_.num_kinds(); ++kind) add_slice(layout_.kind(kind), 0);
    add_slice(layout_.head(), layout_.first_head_page());
    if (!offsets_.empty()) device_offsets_ = to_device(std::span<const int64_t>(offsets_));
  }
  static LoraMatrix matrix(const AdapterLayout::RowsPlace& place, const int64_t* offsets) {
    return {.row_offsets = offsets,
            .num_rows = place.num_rows,
            .num_chunks = place.num_chunks,
            .width = place.width,
            .chunk_cols = place.chunk_cols};
  }

  void fill_layer(size_t layer) {
    const size_t kind = layout_.kind_of(layer);
    const std::vector<AdapterLayout::ProjPlace>& projs = layout_.kind(kind).projs;
    std::byte* base = pool_base_ + static_cast<int64_t>(layer) * layout_.geometry().slice_bytes;
    for (size_t i = 0; i < projs.size(); ++i) {
      const Proj proj = projs[i].proj;
      out_.layers[layer].groups[static_cast<size_t>(group_of(proj))].push_back(
          fill_proj(projs[i], tables_[kind][i], *adapter_.layers[layer][static_cast<size_t>(proj)],
                    group_column(proj, layout_.shape()), base));
    }
  }

  LoraProj fill_proj(const AdapterLayout::ProjPlace& place, const ProjTables& tables, const LoraDelta& delta,
                     int64_t out_begin, std::byte* base) {
    const DType act = layout_.geometry().act;
    const auto rows = [&](const AdapterLayout::RowsPlace& of, size_t first) {
      return matrix(of, offsets_.data() + first);
    };
    if (place.a_shared_with < 0)
      backend_.store_rank_rows({.source = delta.a, .dtype = act, .rows = rows(place.a, tables.a), .base = base});
    backend_.store_rank_rows(
        {.source = delta.b, .columns = true, .dtype = act, .rows = rows(place.b, tables.b), .base = base});
    if (delta.bias.defined()) {
      std::vector<float> scaled(static_cast<size_t>(delta.bias.num_elements()));
      delta.bias.copy_to(scaled.data());
      for (float& value : scaled) value = static_cast<float>(value * delta.scaling);
      store_row(TensorView(scaled.data(), DType::kF32, delta.bias.shape()), rows(place.bias, tables.bias), base);
    }
    if (delta.dora_scale.defined()) store_row(delta.dora_scale, rows(place.scale, tables.scale), base);
    return {.a = matrix(place.a, device_offsets_ + tables.a),
            .b = matrix(place.b, device_offsets_ + tables.b),
            .scaling = static_cast<float>(delta.scaling),
            .out_begin = out_begin,
            .out_bias = matrix(place.bias, device_offsets_ + tables.bias),
            .out_scale = matrix(place.scale, device_offsets_ + tables.scale)};
  }
  void store_row(const TensorView& vector, const LoraMatrix& row, std::byte* base) {
    const TensorView matrix(vector.raw(), vector.dtype(), {1, vector.num_elements()});
    backend_.store_rank_rows({.source = matrix, .dtype = DType::kF32, .rows = row, .base = base});
  }

  // --- Matrices and vectors

  void fill_matrix(const AdapterLayout::MatrixPlace& place) {
    const PackedWeight matrix{.format = place.format,
                              .n = place.n,
                              .k = place.k,
                              .data = pool_base_,
                              .pages = out_.pages.data() + layout_.first_matrix_page(),
                              .page_bytes = layout_.geometry().page_bytes,
                              .begin = place.begin};
    const TensorView& source = place.weight ? adapter_.replaced.of(*place.weight) : adapter_.trained_token_rows;
    backend_.pack_weight(source, 0, matrix, Workers::kCaller);
    if (!place.weight) {
      out_.trained_head = matrix;
      return;
    }
    const ModuleId module = place.weight->module;
    out_.matrices.push_back(matrix);
    if (module == kLmHead)
      out_.replaced_lm_head = &out_.matrices.back();
    else
      layer_of(module).replaced[static_cast<size_t>(*module.proj())] = &out_.matrices.back();
  }

  // Norms and biases: small f32 vectors, beside the pages.
  void fill_vectors() {
    for (const WeightId id : adapter_.replaced.ids()) {
      if (!id.bias && (id.module.proj() || id.module.is_vocabulary())) continue;
      const TensorView& view = adapter_.replaced.of(id);
      std::vector<float> values(static_cast<size_t>(view.num_elements()));
      view.copy_to(values.data());
      vector_slot(id) = to_device(std::span<const float>(values));
    }
  }
  const float*& vector_slot(WeightId id) {
    switch (id.module.kind) {
      case ModuleKind::kFinalNorm:
        return out_.final_norm;
      case ModuleKind::kInputNorm:
        return layer_of(id.module).input_norm;
      case ModuleKind::kPostNorm:
        return layer_of(id.module).post_norm;
      case ModuleKind::kQNorm:
        return layer_of(id.module).q_norm;
      case ModuleKind::kKNorm:
        return layer_of(id.module).k_norm;
      default:
        return layer_of(id.module).replaced_bias[static_cast<size_t>(*id.module.proj())];
    }
  }
  ResidentAdapter::Layer& layer_of(ModuleId module) { return out_.layers.at(static_cast<size_t>(module.layer)); }

  // Tables of embedding rows stay where the host tier has them; `owner` keeps it in memory while they are used.
  void fill_embedding(const std::shared_ptr<const Adapter>& owner) {
    ResidentAdapter::Embedding& out = out_.embedding;
    const auto share = [&](const TensorView& view) {
      const DeviceBuffer& buffer = out_.buffers.emplace_back(backend_.share(view, owner));
      return TensorView(buffer.data(), view.dtype(), view.shape());
    };
    if (adapter_.replaced.embedding.defined()) out.table = share(adapter_.replaced.embedding);
    if (const auto& delta = adapter_.embedding)
      out.delta = {.a = share(delta->a), .b = share(delta->b), .scaling = delta->scaling};
    if (adapter_.trained_token_ids.empty()) return;
    out.trained_rows = share(adapter_.trained_token_rows);
    std::vector<int32_t> tokens;
    for (const int64_t token : adapter_.trained_token_ids) {
      out.trained_row_of.emplace(static_cast<int32_t>(token), static_cast<int64_t>(tokens.size()));
      tokens.push_back(static_cast<int32_t>(token));
    }
    if (out_.trained_head.n > 0) out_.trained_columns = to_device(std::span<const int32_t>(tokens));
  }

  template <class T>
  const T* to_device(std::span<const T> values) {
    DeviceBuffer& buffer = out_.buffers.emplace_back(backend_.allocate(static_cast<int64_t>(values.size_bytes())));
    backend_.upload(buffer.as<T>(), values);
    return buffer.as<T>();
  }

  const AdapterLayout& layout_;
  const Adapter& adapter_;
  std::byte* pool_base_;
  Backend& backend_;
  ResidentAdapter& out_;
  std::vector<int64_t> offsets_;  // of all tables
  const int64_t* device_offsets_ = nullptr;
  std::vector<std::vector<ProjTables>> tables_;  // by kind of layer, then the head's; by projection of the kind
};

}  // namespace

std::shared_ptr<const ResidentAdapter> fill_adapter(const AdapterLayout& layout, std::shared_ptr<const Adapter> adapter,
                                                    std::span<const PageId> pages, std::byte* pool_base,
                                                    Backend& backend) {
  LK_CHECK(static_cast<int64_t>(pages.size()) == layout.num_pages());
  auto resident = std::make_shared<ResidentAdapter>();
  resident->layers.resize(adapter->layers.size());
  resident->pages.assign(pages.begin(), pages.end());
  Filler(layout, *adapter, pool_base, backend, *resident).fill(adapter);
  return resident;
}

}  // namespace lk
