// SPDX-License-Identifier: Apache-2.0
// AdapterLayout: where each rank row of an adapter goes inside the layer slices of its pages, and the loader that fills
// them.
//
// A page holds one slice per layer (K and V of 16 tokens); an adapter uses slice l of its pages for layer l. Rows are
// placed by first fit, largest first; a row lies in one slice when it fits there, otherwise it is cut into chunks that
// do. Layers with the same ranks share one placement. Ranks are exact: nothing is padded. Replaced matrices and the
// lm_head's rank rows are not per layer and go to a contiguous run of whole pages.
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

  AdapterFootprint footprint() const { return {.num_pages = num_pages_, .run_length = run_pages_}; }
  int64_t max_group_rank() const { return max_group_rank_; }
  // Bytes of rank rows and matrices, without what page rounding wastes.
  int64_t payload_bytes() const { return payload_bytes_; }

  // Copies the adapter into its pages, converting to the act type. Reads the adapter's file (may block on disk).
  std::shared_ptr<const ResidentAdapter> load(std::shared_ptr<const Adapter> adapter, const AdapterPages& pages,
                                              std::byte* pool_base, Backend& backend) const;

 private:
  struct Place {
    int32_t page = 0;    // index into AdapterPages::pages
    int32_t offset = 0;  // bytes into the slice
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

  ModelConfig config_;
  PageGeometry geometry_;
  std::vector<LayerKind> kinds_;
  std::vector<size_t> layer_kind_;  // [num_layers]
  int64_t num_pages_ = 0, run_pages_ = 0, run_bytes_ = 0, max_group_rank_ = 0, payload_bytes_ = 0;
};

}  // namespace lk
