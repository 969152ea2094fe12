// SPDX-License-Identifier: Apache-2.0
// The token constraint of a text request: its grammar, its allowed tokens, no end before min_tokens.
#pragma once

#include <memory>

#include "lk/infer/text_model.h"

namespace lk {

// Null when nothing constrains the request.
std::shared_ptr<TokenConstraint> make_constraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids,
                                                 int64_t vocab_size);

}  // namespace lk
