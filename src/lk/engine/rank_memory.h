// SPDX-License-Identifier: Apache-2.0
// What the jobs that fill pages need to know of one rank.
#pragma once

#include <memory>

#include "lk/io/rank_slice.h"
#include "lk/model/weights.h"
#include "lk/ops/backend.h"

namespace lk {

struct RankMemory {
  std::shared_ptr<const ModelWeights> weights;  // also whose rank it is
  Backend* backend = nullptr;
  std::byte* pool_base = nullptr;
};

}  // namespace lk
