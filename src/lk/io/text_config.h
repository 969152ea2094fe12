// SPDX-License-Identifier: Apache-2.0
// The text model inside a multimodal one: its part of config.json as a text-only config.json would have it. Pictures
// and sounds are not read; text alone gives what transformers gives for text alone (tests/golden/hub).
#pragma once

#include <boost/json/object.hpp>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

// The object itself unless it describes a multimodal model. kUnsupported names a multimodal model whose text model
// differs from the plain families, or is not known.
Result<boost::json::object> text_config_of(const boost::json::object& config, std::string_view where);

}  // namespace lk
