// SPDX-License-Identifier: Apache-2.0
// A fixed prompt through a running engine: what it makes of it says whether an adapter works, and whether two replicas
// compute alike.
#pragma once

#include <span>
#include <vector>

#include "lk/serve/http/engine_service.h"

namespace lk {

// Log-probabilities of a prompt of `tokens` tokens (fewer if the context is shorter) behind `beginning`, greedy, before
// other requests. `side`: of the adapter; null for the base's.
// Waits for the engine: not on its thread, nor on an io thread. kDeadlineExceeded after half a minute: the machine has
// no time for it now, or something has all pages.
Result<std::vector<TokenLogprob>> probe_engine(EngineService& service, AdapterId adapter, int64_t tokens,
                                               std::span<const int32_t> beginning = {}, const TextSide* side = nullptr);

}  // namespace lk
