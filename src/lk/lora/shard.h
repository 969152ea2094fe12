// SPDX-License-Identifier: Apache-2.0
// What one rank of a model has of an adapter, as an adapter: whoever lays it out, fills pages or merges it need not
// know that there are ranks.
#pragma once

#include <memory>

#include "lk/io/rank_slice.h"
#include "lk/lora/adapter.h"

namespace lk {

// Of linears whose outputs the ranks divide: all of A, and the rank's rows of B, bias, magnitude and scale. Of o and
// down, whose inputs they divide: the rank's columns of A, and all of the rest. Replaced linears as the base's. The
// head, and what follows it, is rank 0's; embeddings and norms are everybody's. The result keeps `whole` in memory.
std::shared_ptr<const Adapter> shard_of(const std::shared_ptr<const Adapter>& whole, RankId rank);

}  // namespace lk
