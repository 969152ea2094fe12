// SPDX-License-Identifier: Apache-2.0
// AdapterLayout: where each rank row and each matrix of an adapter goes inside its pages. Sizes in, places out: what
// lies there is engine/adapter_filler's.
//
// A page holds one slice per layer (K and V of 16 tokens); an adapter uses slice l of its pages for layer l. Rows are
// placed by first fit, largest first; a row lies in one slice when it fits there, otherwise it is cut into chunks that
// do. Layers with the same ranks share one placement. Ranks are exact: nothing is padded.
//
// What is not per layer has whole pages: packed matrices lie in them one after the other without a gap, from page to
// page (PackedWeight), and the lm_head's rank rows are placed like those of a layer whose slice is the page.
#pragma once

#include <optional>
#include <vector>

#include "lk/lora/adapter.h"
#include "lk/model/weights.h"

namespace lk {

// Byte sizes of the pool as the decoder lays it out.
struct PageGeometry {
  int64_t slice_bytes = 0;  // one layer of one page
  int64_t page_bytes = 0;   // num_layers slices
  DType act = DType::kBF16;
};

class AdapterLayout {
 public:
  struct Place {
    int32_t page = 0;    // index into the pages of its kind
    int32_t offset = 0;  // bytes into the slice, or into the page
  };
  // Rank rows of one matrix, or one f32 row of biases or scales.
  struct RowsPlace {
    int32_t num_rows = 0, num_chunks = 1;
    int64_t width = 0, chunk_cols = 0;
    std::vector<Place> chunks;  // [num_rows * num_chunks]
  };
  struct ProjPlace {
    Proj proj;
    RowsPlace a, b, bias, scale;
    int a_shared_with = -1;  // index of an earlier projection that has the very same A (fused names)
  };
  // What one slice of the pages holds: a kind of layer, or the lm_head.
  struct SlicePlace {
    std::vector<ProjPlace> projs;
    int64_t num_pages = 0;
  };
  // A packed matrix in the matrices' pages, from byte `begin` of these pages strung together.
  struct MatrixPlace {
    std::optional<WeightId> weight;  // of the base that it replaces; nullopt: the head's rows of trained tokens
    WeightFormat format = WeightFormat::kBF16Panels;
    int64_t n = 0, k = 0, begin = 0;
  };

  // `tied_head`: the lm_head is the embedding, so it follows the adapter's trained rows.
  AdapterLayout(const Adapter& adapter, const ModelShape& shape, bool tied_head, const PageGeometry& geometry);

  const ModelShape& shape() const { return shape_; }
  const PageGeometry& geometry() const { return geometry_; }
  // The adapter's pages in their order: those of the layers, of the matrices, of the head.
  int64_t num_pages() const { return layer_pages_ + matrix_pages_ + head_.num_pages; }
  int64_t first_matrix_page() const { return layer_pages_; }
  int64_t first_head_page() const { return layer_pages_ + matrix_pages_; }
  int64_t max_group_rank() const { return max_group_rank_; }

  size_t num_kinds() const { return kinds_.size(); }
  size_t kind_of(size_t layer) const { return layer_kind_[layer]; }
  const SlicePlace& kind(size_t kind) const { return kinds_[kind]; }
  const SlicePlace& head() const { return head_; }  // no projection, or the lm_head's
  const std::vector<MatrixPlace>& matrices() const { return matrices_; }

 private:
  SlicePlace place_layer(const Adapter& adapter, size_t layer) const;
  // Where the rows of one delta could lie if a page has `capacity` bytes for them: sizes, and no places yet.
  ProjPlace shape_of(Proj proj, const LoraDelta& delta, int64_t capacity) const;
  void place_rows(SlicePlace& slice, int64_t capacity) const;
  void place_matrices(const Adapter& adapter, bool tied_head);

  ModelShape shape_;
  PageGeometry geometry_;
  std::vector<SlicePlace> kinds_;
  std::vector<size_t> layer_kind_;  // [num_layers]
  SlicePlace head_;
  std::vector<MatrixPlace> matrices_;
  int64_t layer_pages_ = 0, matrix_pages_ = 0, max_group_rank_ = 0;
};

}  // namespace lk
