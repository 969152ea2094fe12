// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/adapter_layout.h"

#include <algorithm>
#include <map>
#include <string>

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

}  // namespace

AdapterLayout::AdapterLayout(const Adapter& adapter, const ModelShape& shape, bool tied_head,
                             const PageGeometry& geometry)
    : shape_(shape), geometry_(geometry) {
  std::map<std::string, size_t> kind_of;
  for (size_t layer = 0; layer < adapter.layers.size(); ++layer) {
    const auto [it, is_new] = kind_of.emplace(shape_key(adapter.layers[layer]), kinds_.size());
    if (is_new) kinds_.push_back(place_layer(adapter, layer));
    layer_kind_.push_back(it->second);
    const SlicePlace& kind = kinds_[it->second];
    layer_pages_ = std::max(layer_pages_, kind.num_pages);
    std::array<int64_t, kNumProjGroups> group_rank{};
    for (const ProjPlace& place : kind.projs) group_rank[static_cast<size_t>(group_of(place.proj))] += place.a.num_rows;
    max_group_rank_ = std::max(max_group_rank_, *std::max_element(group_rank.begin(), group_rank.end()));
  }
  place_matrices(adapter, tied_head);
  if (!adapter.lm_head) return;
  head_.projs.push_back(shape_of(Proj{}, *adapter.lm_head, geometry.page_bytes));
  place_rows(head_, geometry.page_bytes);
  max_group_rank_ = std::max(max_group_rank_, adapter.lm_head->rank);
}

// The replaced matrices that are packed for products (rows of an embedding are looked up in the host tier), then the
// head's rows of trained tokens, without rounding them: they are summed in f64 (GemmColumnsArgs).
void AdapterLayout::place_matrices(const Adapter& adapter, bool tied_head) {
  int64_t bytes = 0;
  const auto add = [&](std::optional<WeightId> weight, const TensorView& matrix, WeightFormat format) {
    matrices_.push_back({.weight = weight, .format = format, .n = matrix.dim(0), .k = matrix.dim(1), .begin = bytes});
    bytes += packed_weight_bytes(format, matrix.dim(0), matrix.dim(1));
  };
  for (const WeightId id : adapter.replaced.ids()) {
    const bool is_matrix = !id.bias && (id.module.proj() || id.module == kLmHead);
    if (is_matrix) add(id, adapter.replaced.of(id), weight_format_of(geometry_.act));
  }
  if (tied_head && !adapter.trained_token_ids.empty())
    add(std::nullopt, adapter.trained_token_rows, exact_format_of(adapter.trained_token_rows.dtype()));
  matrix_pages_ = (bytes + geometry_.page_bytes - 1) / geometry_.page_bytes;
}

AdapterLayout::ProjPlace AdapterLayout::shape_of(Proj proj, const LoraDelta& delta, int64_t capacity) const {
  const auto shape = [&](int64_t rows, int64_t width, int64_t elem_bytes) {
    RowsPlace m{.num_rows = static_cast<int32_t>(rows), .width = width, .chunk_cols = width};
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

AdapterLayout::SlicePlace AdapterLayout::place_layer(const Adapter& adapter, size_t layer) const {
  SlicePlace slice;
  const auto& deltas = adapter.layers[layer];
  for (size_t p = 0; p < deltas.size(); ++p) {
    if (!deltas[p]) continue;
    ProjPlace place = shape_of(static_cast<Proj>(p), *deltas[p], geometry_.slice_bytes);
    for (size_t i = 0; i < slice.projs.size(); ++i)
      if (deltas[static_cast<size_t>(slice.projs[i].proj)]->a.raw() == deltas[p]->a.raw())
        place.a_shared_with = static_cast<int>(i);
    slice.projs.push_back(std::move(place));
  }
  place_rows(slice, geometry_.slice_bytes);
  return slice;
}

void AdapterLayout::place_rows(SlicePlace& slice, int64_t capacity) const {
  const int64_t elem = dtype_bytes(geometry_.act);
  struct Piece {
    int64_t bytes;
    Place* place;
  };
  std::vector<Piece> pieces;
  for (ProjPlace& proj : slice.projs) {
    const auto add = [&](RowsPlace& m, int64_t elem_bytes) {
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
  for (ProjPlace& proj : slice.projs)
    if (proj.a_shared_with >= 0) proj.a.chunks = slice.projs[static_cast<size_t>(proj.a_shared_with)].a.chunks;
  slice.num_pages = static_cast<int64_t>(used.size());
}

}  // namespace lk
