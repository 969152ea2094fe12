// SPDX-License-Identifier: Apache-2.0
// A fixed prompt through a running engine: what it makes of it says whether an adapter works, and whether two replicas
// compute alike.
#pragma once

#include <vector>

#include "lk/serve/http/engine_service.h"

namespace lk {

// Log-probabilities of the prompt's `tokens` tokens (fewer if the context is shorter), greedy, before other requests.
// Waits for the engine: not on its thread, nor on an io thread. kDeadlineExceeded after half a minute: the machine has
// no time for it now, or something has all pages.
Result<std::vector<TokenLogprob>> probe_engine(EngineService& service, AdapterId adapter, int64_t tokens);

}  // namespace lk
