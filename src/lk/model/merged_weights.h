// SPDX-License-Identifier: Apache-2.0
// MergedWeights: the base's linears with one adapter's deltas added, W' = W + s B A (DoRA: times its scale), packed
// like the base, in pool pages. The base is never written (design principle 1), so un-merging is not using
// them. What a matrix cannot hold stays where it was: replaced matrices and biases, norms, embeddings and the lm_head
// are the ResidentAdapter's.
#pragma once

#include <array>
#include <vector>

#include "lk/kernels/args.h"
#include "lk/model/weights.h"
#include "lk/ops/device_buffer.h"

namespace lk {

struct MergedWeights {
  struct Layer {
    std::array<PackedWeight, kNumProjGroups> linear;  // data null: this group is not merged, it runs as without merging
    std::array<const float*, kNumProjGroups>
        bias{};  // LoRA biases (and DoRA's scale on them), [group_columns], or null
  };
  std::vector<Layer> layers;
  std::vector<DeviceBuffer> buffers;  // what `bias` points to
  std::vector<int32_t> pages;         // of all layers, what linear[].pages point into
};

}  // namespace lk
