// SPDX-License-Identifier: Apache-2.0
// A model's generation_config.json: what its makers would have requests say that say nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk {

inline constexpr const char* kGenerationConfigFile = "generation_config.json";

struct GenerationDefaults {
  // "do_sample": false is a temperature of 0, whatever else the file says.
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int64_t> top_k;
  std::optional<int64_t> max_tokens, min_tokens;  // max_new_tokens, min_new_tokens
  std::vector<std::string> stop;                  // stop_strings
  std::vector<int64_t> eos_token_ids;
  std::vector<std::string> warnings;  // keys that would change answers and are not done here

  bool operator==(const GenerationDefaults&) const = default;
  // What is said here, and else what `base` says, but for its warnings.
  GenerationDefaults over(const GenerationDefaults& base) const;
};

// All empty if the directory has no such file. What no request may ask for (request_fields.h) is refused here, by the
// name of the file, and not with every request that leaves it to the model.
Result<GenerationDefaults> load_generation_defaults(const std::string& directory);

}  // namespace lk
