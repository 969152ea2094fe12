// SPDX-License-Identifier: Apache-2.0
// The token constraint of a text request: its grammar (where GrammarGate says), its allowed tokens, no end before
// min_tokens, no thoughts beyond their budget, none of its bad words.
#pragma once

#include <memory>

#include "lk/infer/text_model.h"

namespace lk {

// Null when nothing constrains the request. `side`: whose tokens they are; may be null for a request that neither
// thinks nor may call tools beside a grammar, nor has bad words.
std::shared_ptr<TokenConstraint> make_constraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids,
                                                 int64_t vocab_size, const TextSide* side = nullptr);

}  // namespace lk
