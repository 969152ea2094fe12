// SPDX-License-Identifier: Apache-2.0
// How a model directory makes embeddings of hidden states, as sentence-transformers writes it: modules.json lists the
// modules, 1_Pooling/config.json says which tokens count. Embeddings are always normalised here.
#pragma once

#include <string>

#include "lk/base/status.h"
#include "lk/sched/request.h"

namespace lk {

// kMean where the directory does not say. kUnsupported: other poolings (max, weighted, several at once), and modules
// after the pooling that change its result (Dense).
Result<Pooling> load_pooling(const std::string& directory);

}  // namespace lk
