// SPDX-License-Identifier: Apache-2.0
// AdapterLayout: where each rank row of an adapter goes inside the layer slices of its pages, and the loader that fills
// them.
//
// A page holds one slice per layer (K and V of 16 tokens); an adapter uses slice l of its pages for layer l. Rows are
// placed by first fit, largest first; a row lies in one slice when it fits there, otherwise it is cut into chunks that
// do. Layers with the same ranks share one placement. Ranks are exact: nothing is padded.
//
// What is not per layer has whole pages: replaced matrices lie in them one after the other without a gap, from page to
// page (PackedWeight), and the lm_head's rank rows are placed like those of a layer whose slice is the page.
#pragma once

#include <memory>
#include <vector>

#include "lk/lora/adapter.h"
#include "lk/memory/unified_pool.h"
#include "lk/model/resident_adapter.h"
#include "lk/ops/backend.h"

namespace lk {

// Byte sizes of the pool as the decoder lays it out.
struct PageGeometry {
  int64_t slice_bytes = 0;  // one layer of one page
  int64_t page_bytes = 0;   // num_layers slices
  DType act = DType::kBF16;
};

class AdapterLayout {
 public:
  AdapterLayout(const Adapter& adapter, const ModelConfig& config, const PageGeometry& geometry);

  int64_t num_pages() const { return layer_pages_ + matrix_pages_ + head_.num_pages; }
  int64_t max_group_rank() const { return max_group_rank_; }

  // Copies the adapter into its pages, converting to the act type. Reads the adapter's file (may block on disk).
  std::shared_ptr<const ResidentAdapter> load(std::shared_ptr<const Adapter> adapter, std::span<const PageId> pages,
                                              std::byte* pool_base, Backend& backend) const;

 private:
  struct Place {
    int32_t page = 0;    // index into the pages of its kind
    int32_t offset = 0;  // bytes into the slice, or into the page
  };
  struct MatrixPlace {
    int32_t num_rows = 0, num_chunks = 1;
    int64_t width = 0, chunk_cols = 0;
    std::vector<Place> chunks;  // [num_rows * num_chunks]
  };
  struct ProjPlace {
    Proj proj;
    MatrixPlace a, b, bias, scale;
    int a_shared_with = -1;  // index of an earlier projection that has the very same A (fused names)
  };
  struct LayerKind {
    std::vector<ProjPlace> projs;
    int64_t num_pages = 0;
  };
  class Filler;

  LayerKind place_layer(const Adapter& adapter, size_t layer) const;
  // Where the rows of one delta could lie if a page has `capacity` bytes for them: sizes, and no places yet.
  ProjPlace shape_of(Proj proj, const LoraDelta& delta, int64_t capacity) const;
  void place_rows(LayerKind& kind, int64_t capacity) const;

  ModelConfig config_;
  PageGeometry geometry_;
  std::vector<LayerKind> kinds_;
  std::vector<size_t> layer_kind_;  // [num_layers]
  LayerKind head_;                  // no projection, or the lm_head's
  // The adapter's pages in their order: those of the layers, of the matrices, of the head.
  int64_t layer_pages_ = 0, matrix_pages_ = 0;
  std::vector<int64_t> matrix_begin_;  // byte in the matrices' pages, in the order of replaced_matrices()
  int64_t max_group_rank_ = 0;
};

}  // namespace lk
