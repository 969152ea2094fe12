// SPDX-License-Identifier: Apache-2.0
// Dense linear algebra of adapters, at load and merge time: DoRA norms, the factors that PiSSA and
// OLoRA took out of the base, and merged weights. Not for the step path.
#pragma once

#include <functional>
#include <vector>

#include "lk/base/status.h"
#include "lk/lora/adapter.h"
#include "lk/lora/adapter_config.h"
#include "lk/tensor/buffer.h"
#include "lk/tensor/tensor_view.h"

namespace lk {

// Calls visit(first_row, num_rows, block) with blocks of W + scaling B A as f32 [num_rows, in], in
// row order.
void for_each_merged_block(const TensorView& weight, const LoraDelta& delta,
                           const std::function<void(int64_t, int64_t, float*)>& visit);

// out[row] = magnitude[row] / ||W + scaling B A||_row, norms accumulated in f64. False when a norm
// is zero.
bool dora_scales(const TensorView& weight, const LoraDelta& delta, float* out);

// The factors an initialisation subtracted from W: W_residual = W - scaling b0 a0. f32, [rank, in]
// and [out, rank]. Independent of the signs a decomposition chooses, so any exact SVD or QR agrees.
struct InitFactors {
  std::vector<float> a0, b0;
};
InitFactors initial_factors(BaseChange change, const TensorView& weight, int64_t rank, double scaling);

// A transposed copy of a matrix, same dtype, kept in `owned`.
TensorView transposed(const TensorView& matrix, std::vector<Buffer>& owned);

}  // namespace lk
