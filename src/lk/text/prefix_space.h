// SPDX-License-Identifier: Apache-2.0
// "add_prefix_space" of tokenizer_config.json: the classes of transformers that look at it make their own pipeline, so
// it counts more than what tokenizer.json says.
#pragma once

#include <optional>
#include <string_view>

#include <boost/json/value.hpp>

#include "lk/text/tokenizer_config.h"

namespace lk {

// The normalizer, pre_tokenizer or decoder section (`key`) as the class would have it; nothing when it stays as it is.
std::optional<boost::json::value> with_prefix_space(const TokenizerConfig& config, std::string_view key,
                                                    const boost::json::value& root);

}  // namespace lk
