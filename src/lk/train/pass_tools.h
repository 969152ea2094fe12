// SPDX-License-Identifier: Apache-2.0
// PassTools: what the parts of a pass, its layers and its head, work with.
#pragma once

#include "lk/model/adapted_ops.h"
#include "lk/train/norm_gradients.h"
#include "lk/train/train_linear.h"

namespace lk {

struct PassTools {
  PassTools(const ModelWeights& w, Backend& b, const PassNeeds& needs, int64_t max_rows)
      : weights(w),
        backend(b),
        ops(b.train_ops()),
        adapted(w, b, max_rows),
        linears(w, b, adapted, needs),
        norms(w, ops),
        act_bytes(dtype_bytes(w.act)) {}
  PassTools(const PassTools&) = delete;
  PassTools& operator=(const PassTools&) = delete;

  const ModelWeights& weights;
  Backend& backend;
  TrainOps& ops;
  AdaptedOps adapted;
  TrainLinears linears;
  NormGradients norms;
  const int64_t act_bytes;  // of an element of the compute type
};

}  // namespace lk
