// SPDX-License-Identifier: Apache-2.0
// A model's generation_config.json: what its makers would have requests say that say nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk {

struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<int64_t> eos_token_ids;
};

// All empty if the directory has no such file. What no request may ask for (request_fields.h) is refused here, by the
// name of the file, and not with every request that leaves it to the model.
Result<GenerationDefaults> load_generation_defaults(const std::string& directory);

}  // namespace lk
