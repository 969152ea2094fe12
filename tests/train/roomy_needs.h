// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lk/train/trainable_adapter.h"

namespace lk {

// Room for whatever adapter of the small models a test may bring.
inline PassNeeds roomy_needs(int64_t rank) {
  PassNeeds needs{.dropout = true, .dora_columns = 1024, .token_columns = 32, .head_weight = true};
  needs.ranks.fill(rank);
  return needs;
}

}  // namespace lk
