// SPDX-License-Identifier: Apache-2.0
// The collective of ranks that are threads of one process: each reads the others' parts where they are.
#pragma once

#include <memory>
#include <vector>

#include "lk/ops/collective.h"

namespace lk {

// One for each of `size` ranks, to be used by a thread of its own. Requires: size is a power of two, at most
// kMaxShards. They may be destroyed in any order once no rank is in a call.
std::vector<std::unique_ptr<Collective>> make_local_collectives(int size);

}  // namespace lk
