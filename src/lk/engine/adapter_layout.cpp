// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/adapter_layout.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "lk/kernels/cpu.h"

namespace lk {
namespace {

constexpr int64_t kRowAlign = 64;  // one cache line
int64_t align_row(int64_t bytes) { return (bytes + kRowAlign - 1) / kRowAlign * kRowAlign; }

// The layers that look the same to the packer have the same key.
std::string shape_key(const std::array<std::optional<LoraDelta>, kNumProjs>& layer) {
  std::string key;
  for (size_t p = 0; p < layer.size(); ++p) {
    if (!layer[p]) {
      key += '-';
      continue;
    }
    size_t shared = p;
    for (size_t q = 0; q < p; ++q)
      if (layer[q] && layer[q]->a.raw() == layer[p]->a.raw()) shared = q;
    key += fmt::format("{}:{}{}{};", layer[p]->rank, shared, layer[p]->bias.defined() ? "b" : "",
                       layer[p]->dora_scale.defined() ? "d" : "");
  }
  return key;
}

// dst[j] = src[j * stride] for one rank row of B, stored [out, rank].
void copy_column(const TensorView& b, int64_t column, int64_t begin, int64_t end, DType act, std::byte* dst) {
  dispatch_dtype(b.dtype(), [&]<class S>(std::type_identity<S>) {
    const S* src = b.data<S>() + column;
    const int64_t stride = b.dim(1);
    const auto copy = [&](auto* out) {
      using D = std::remove_pointer_t<decltype(out)>;
      if constexpr (std::is_same_v<S, D>) {
        for (int64_t j = begin; j < end; ++j) out[j - begin] = src[j * stride];
      } else {
        for (int64_t j = begin; j < end; ++j) out[j - begin] = D(static_cast<float>(src[j * stride]));
      }
    };
    if (act == DType::kBF16)
      copy(reinterpret_cast<bf16*>(dst));
    else
      copy(reinterpret_cast<float*>(dst));
  });
}

WeightFormat weight_format(DType act) {
  return act == DType::kBF16 ? WeightFormat::kBF16Panels : WeightFormat::kF32Panels;
}

bool is_vector(WeightId id) { return id.bias || !(id.module.proj() || id.module.is_vocabulary()); }

// The replaced matrices that are packed for products: linears by layer, then the head. (Rows of an embedding are looked
// up in the host tier.)
std::vector<WeightId> replaced_matrices(const Adapter& adapter) {
  std::vector<WeightId> matrices = adapter.replaced.ids();
  std::erase_if(matrices, [&](WeightId id) { return id.module == kEmbedding || is_vector(id); });
  return matrices;
}

}  // namespace

AdapterLayout::AdapterLayout(const Adapter& adapter, const ModelConfig& config, const PageGeometry& geometry)
    : config_(config), geometry_(geometry) {
  std::map<std::string, size_t> kind_of;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    const auto [it, is_new] = kind_of.emplace(shape_key(adapter.layers[layer]), kinds_.size());
    if (is_new) kinds_.push_back(place_layer(adapter, layer));
    layer_kind_.push_back(it->second);
    const LayerKind& kind = kinds_[it->second];
    layer_pages_ = std::max(layer_pages_, kind.num_pages);
    std::array<int64_t, kNumProjGroups> group_rank{};
    for (const ProjPlace& place : kind.projs) group_rank[static_cast<size_t>(group_of(place.proj))] += place.a.num_rows;
    max_group_rank_ = std::max(max_group_rank_, *std::max_element(group_rank.begin(), group_rank.end()));
  }
  int64_t matrix_bytes = 0;
  for (const WeightId id : replaced_matrices(adapter)) {
    const TensorView& matrix = adapter.replaced.of(id);
    matrix_begin_.push_back(matrix_bytes);
    matrix_bytes += packed_weight_bytes(weight_format(geometry.act), matrix.dim(0), matrix.dim(1));
  }
  matrix_pages_ = (matrix_bytes + geometry.page_bytes - 1) / geometry.page_bytes;
  if (!adapter.lm_head) return;
  head_.projs.push_back(shape_of(Proj{}, *adapter.lm_head, geometry.page_bytes));
  place_rows(head_, geometry.page_bytes);
  max_group_rank_ = std::max(max_group_rank_, adapter.lm_head->rank);
}

AdapterLayout::ProjPlace AdapterLayout::shape_of(Proj proj, const LoraDelta& delta, int64_t capacity) const {
  const auto shape = [&](int64_t rows, int64_t width, int64_t elem_bytes) {
    MatrixPlace m{.num_rows = static_cast<int32_t>(rows), .width = width, .chunk_cols = width};
    if (align_row(width * elem_bytes) > capacity) {
      m.chunk_cols = capacity / elem_bytes / kPanelCols * kPanelCols;
      LK_CHECK(m.chunk_cols > 0, "{} bytes of a page hold no row chunk", capacity);
      m.num_chunks = static_cast<int32_t>((width + m.chunk_cols - 1) / m.chunk_cols);
    }
    m.chunks.resize(static_cast<size_t>(m.num_rows * m.num_chunks));
    return m;
  };
  const int64_t elem = dtype_bytes(geometry_.act);
  return {.proj = proj,
          .a = shape(delta.rank, delta.a.dim(1), elem),
          .b = shape(delta.rank, delta.b.dim(0), elem),
          .bias = shape(delta.bias.defined() ? 1 : 0, delta.b.dim(0), 4),
          .scale = shape(delta.dora_scale.defined() ? 1 : 0, delta.b.dim(0), 4)};
}

AdapterLayout::LayerKind AdapterLayout::place_layer(const Adapter& adapter, size_t layer) const {
  LayerKind kind;
  const auto& deltas = adapter.layers[layer];
  for (size_t p = 0; p < deltas.size(); ++p) {
    if (!deltas[p]) continue;
    ProjPlace place = shape_of(static_cast<Proj>(p), *deltas[p], geometry_.slice_bytes);
    for (size_t i = 0; i < kind.projs.size(); ++i)
      if (deltas[static_cast<size_t>(kind.projs[i].proj)]->a.raw() == deltas[p]->a.raw())
        place.a_shared_with = static_cast<int>(i);
    kind.projs.push_back(std::move(place));
  }
  place_rows(kind, geometry_.slice_bytes);
  return kind;
}

void AdapterLayout::place_rows(LayerKind& kind, int64_t capacity) const {
  const int64_t elem = dtype_bytes(geometry_.act);
  struct Piece {
    int64_t bytes;
    Place* place;
  };
  std::vector<Piece> pieces;
  for (ProjPlace& proj : kind.projs) {
    const auto add = [&](MatrixPlace& m, int64_t elem_bytes) {
      for (int32_t row = 0; row < m.num_rows; ++row)
        for (int32_t c = 0; c < m.num_chunks; ++c)
          pieces.push_back({align_row(std::min(m.chunk_cols, m.width - c * m.chunk_cols) * elem_bytes),
                            &m.chunks[static_cast<size_t>(row * m.num_chunks + c)]});
    };
    if (proj.a_shared_with < 0) add(proj.a, elem);
    add(proj.b, elem);
    add(proj.bias, 4);
    add(proj.scale, 4);
  }
  // First fit, largest first. Equal pieces are contiguous, so the first page that may still fit only moves forward.
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& x, const Piece& y) { return x.bytes > y.bytes; });
  std::vector<int64_t> used;
  size_t first = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i == 0 || pieces[i].bytes != pieces[i - 1].bytes) first = 0;
    while (first < used.size() && used[first] + pieces[i].bytes > capacity) ++first;
    if (first == used.size()) used.push_back(0);
    *pieces[i].place = {static_cast<int32_t>(first), static_cast<int32_t>(used[first])};
    used[first] += pieces[i].bytes;
  }
  for (ProjPlace& proj : kind.projs)
    if (proj.a_shared_with >= 0) proj.a.chunks = kind.projs[static_cast<size_t>(proj.a_shared_with)].a.chunks;
  kind.num_pages = static_cast<int64_t>(used.size());
}

// Writes one adapter's data and builds its ResidentAdapter.
class AdapterLayout::Filler {
 public:
  // `out` has its pages already: tables and matrices refer to them.
  Filler(const AdapterLayout& layout, const Adapter& adapter, std::byte* pool_base, Backend& backend,
         ResidentAdapter& out)
      : layout_(layout), adapter_(adapter), pool_base_(pool_base), backend_(backend), out_(out) {}

  void fill_layer(size_t layer) {
    const size_t kind = layout_.layer_kind_[layer];
    std::byte* base = pool_base_ + static_cast<int64_t>(layer) * layout_.geometry_.slice_bytes;
    const std::vector<ProjPlace>& projs = layout_.kinds_[kind].projs;
    for (size_t i = 0; i < projs.size(); ++i) {
      const Proj proj = projs[i].proj;
      out_.layers[layer].groups[static_cast<size_t>(group_of(proj))].push_back(
          fill_proj({kind, i}, projs[i], *adapter_.layers[layer][static_cast<size_t>(proj)],
                    group_column(proj, layout_.config_), base));
    }
  }

  void fill_head() {
    if (!adapter_.lm_head) return;
    out_.lm_head.push_back(
        fill_proj({layout_.kinds_.size(), 0}, layout_.head_.projs[0], *adapter_.lm_head, 0, pool_base_));
  }

  void fill_matrices() {
    const std::vector<WeightId> matrices = replaced_matrices(adapter_);
    for (size_t i = 0; i < matrices.size(); ++i) {
      const TensorView& matrix = adapter_.replaced.of(matrices[i]);
      out_.matrices.push_back({.format = weight_format(layout_.geometry_.act),
                               .n = matrix.dim(0),
                               .k = matrix.dim(1),
                               .data = pool_base_,
                               .pages = out_.pages.data() + layout_.layer_pages_,
                               .page_bytes = layout_.geometry_.page_bytes,
                               .begin = layout_.matrix_begin_[i]});
      backend_.pack_weight(matrix, 0, out_.matrices.back(), Workers::kCaller);
      matrix_slot(matrices[i].module) = &out_.matrices.back();
    }
  }

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
    const TensorView& rows = adapter_.trained_token_rows;
    out.trained_rows = share(rows);
    std::vector<int32_t> tokens;
    for (const int64_t token : adapter_.trained_token_ids) {
      out.trained_row_of.emplace(static_cast<int32_t>(token), static_cast<int64_t>(tokens.size()));
      tokens.push_back(static_cast<int32_t>(token));
    }
    if (!layout_.config_.tie_word_embeddings) return;
    const WeightFormat format = weight_format(rows.dtype());
    DeviceBuffer& head =
        out_.buffers.emplace_back(backend_.allocate(packed_weight_bytes(format, rows.dim(0), rows.dim(1))));
    out_.trained_head = {.format = format, .n = rows.dim(0), .k = rows.dim(1), .data = head.data()};
    backend_.pack_weight(rows, 0, out_.trained_head, Workers::kCaller);
    DeviceBuffer& columns = out_.buffers.emplace_back(backend_.allocate(rows.dim(0) * 4));
    backend_.upload(columns.as<int32_t>(), std::span<const int32_t>(tokens));
    out_.trained_columns = columns.as<int32_t>();
  }

  // Norms and biases: small f32 vectors, kept beside the tables.
  void fill_vectors() {
    for (const WeightId id : adapter_.replaced.ids()) {
      if (!is_vector(id)) continue;
      const TensorView& view = adapter_.replaced.of(id);
      std::vector<float>& vector = out_.vectors.emplace_back(static_cast<size_t>(view.num_elements()));
      view.copy_to(vector.data());
      vector_slot(id) = vector.data();
    }
  }

 private:
  using ProjKey = std::pair<size_t, size_t>;  // kind of layer, or the number of kinds for the head; projection in it

  LoraProj fill_proj(ProjKey key, const ProjPlace& place, const LoraDelta& delta, int64_t out_begin, std::byte* base) {
    const LoraProj proj{.a = table(key, 0, place.a),
                        .b = table(key, 1, place.b),
                        .scaling = static_cast<float>(delta.scaling),
                        .out_begin = out_begin,
                        .out_bias = table(key, 2, place.bias),
                        .out_scale = table(key, 3, place.scale)};
    if (place.a_shared_with < 0) write_rows(proj.a, delta.a, base);
    write_columns(proj.b, delta.b, base);
    if (delta.bias.defined()) write_scaled_bias(proj.out_bias, delta, base);
    if (delta.dora_scale.defined()) write_f32(proj.out_scale, delta.dora_scale, base);
    return proj;
  }

  // The row table of a matrix; layers of one kind share it.
  LoraMatrix table(ProjKey key, int which, const MatrixPlace& place) {
    auto it = tables_.find({key, which});
    if (it == tables_.end()) {
      const bool head = key.first == layout_.kinds_.size();
      const auto first = static_cast<size_t>(head ? layout_.layer_pages_ + layout_.matrix_pages_ : 0);
      std::vector<int64_t>& offsets = out_.row_offsets.emplace_back();
      for (const Place& chunk : place.chunks)
        offsets.push_back(out_.pages[first + static_cast<size_t>(chunk.page)] * layout_.geometry_.page_bytes +
                          chunk.offset);
      it = tables_.emplace(std::pair(key, which), offsets.data()).first;
    }
    return {.row_offsets = it->second,
            .num_rows = place.num_rows,
            .num_chunks = place.num_chunks,
            .width = place.width,
            .chunk_cols = place.chunk_cols};
  }

  template <class F>
  static void for_each_chunk(const LoraMatrix& m, std::byte* base, F&& f) {
    for (int32_t row = 0; row < m.num_rows; ++row)
      for (int32_t c = 0; c < m.num_chunks; ++c)
        f(row, c * m.chunk_cols, std::min(m.width, (c + 1) * m.chunk_cols),
          base + m.row_offsets[row * m.num_chunks + c]);
  }
  void write_rows(const LoraMatrix& m, const TensorView& a, std::byte* base) {
    for_each_chunk(m, base, [&](int64_t row, int64_t begin, int64_t end, std::byte* dst) {
      convert(static_cast<const std::byte*>(a.row(row)) + begin * dtype_bytes(a.dtype()), a.dtype(), dst,
              layout_.geometry_.act, end - begin);
    });
  }
  void write_columns(const LoraMatrix& m, const TensorView& b, std::byte* base) {
    // In blocks of output features, so that the strided reads stay in the cache.
    constexpr int64_t kBlock = 256;
    const int64_t elem = dtype_bytes(layout_.geometry_.act);
    for (int64_t block = 0; block < m.width; block += kBlock)
      for_each_chunk(m, base, [&](int64_t row, int64_t begin, int64_t end, std::byte* dst) {
        const int64_t first = std::max(begin, block), last = std::min(end, block + kBlock);
        if (first < last) copy_column(b, row, first, last, layout_.geometry_.act, dst + (first - begin) * elem);
      });
  }
  void write_f32(const LoraMatrix& m, const TensorView& vector, std::byte* base) {
    for_each_chunk(m, base, [&](int64_t, int64_t begin, int64_t end, std::byte* dst) {
      convert(static_cast<const std::byte*>(vector.raw()) + begin * dtype_bytes(vector.dtype()), vector.dtype(), dst,
              DType::kF32, end - begin);
    });
  }
  void write_scaled_bias(const LoraMatrix& m, const LoraDelta& delta, std::byte* base) {
    std::vector<float> scaled(static_cast<size_t>(delta.bias.num_elements()));
    delta.bias.copy_to(scaled.data());
    for (float& value : scaled) value = static_cast<float>(value * delta.scaling);
    write_f32(m, TensorView(scaled.data(), DType::kF32, {delta.bias.num_elements()}), base);
  }

  ResidentAdapter::Layer& layer_of(ModuleId module) { return out_.layers.at(static_cast<size_t>(module.layer)); }
  const PackedWeight*& matrix_slot(ModuleId module) {
    if (module == kLmHead) return out_.replaced_lm_head;
    return layer_of(module).replaced[static_cast<size_t>(*module.proj())];
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

  const AdapterLayout& layout_;
  const Adapter& adapter_;
  std::byte* pool_base_;
  Backend& backend_;
  ResidentAdapter& out_;
  std::map<std::pair<ProjKey, int>, const int64_t*> tables_;
};

std::shared_ptr<const ResidentAdapter> AdapterLayout::load(std::shared_ptr<const Adapter> adapter,
                                                           std::span<const PageId> pages, std::byte* pool_base,
                                                           Backend& backend) const {
  auto resident = std::make_shared<ResidentAdapter>();
  LK_CHECK(static_cast<int64_t>(pages.size()) == num_pages());
  resident->layers.resize(adapter->layers.size());
  resident->pages.assign(pages.begin(), pages.end());
  Filler filler(*this, *adapter, pool_base, backend, *resident);
  for (size_t layer = 0; layer < adapter->layers.size(); ++layer) filler.fill_layer(layer);
  filler.fill_matrices();
  filler.fill_head();
  filler.fill_vectors();
  filler.fill_embedding(adapter);
  resident->max_group_rank = max_group_rank_;
  return resident;
}

}  // namespace lk
