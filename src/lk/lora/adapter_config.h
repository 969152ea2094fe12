// SPDX-License-Identifier: Apache-2.0
// AdapterConfig: adapter_config.json as PEFT writes it. A key that changes the maths and is not
// implemented is refused by name; a key nobody knows is a warning.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// target_modules and exclude_modules: null, a list of names or suffixes, or one regular expression.
struct ModuleSelector {
  enum class Kind { kNone, kList, kRegex, kAllLinear };
  Kind kind = Kind::kNone;
  std::vector<std::string> names;
  std::string pattern;
};

// Initialisations that leave the saved A and B relative to a changed base: W_trained_on = W -
// scaling * B0 A0.
enum class BaseChange { kNone, kPissa, kOlora };

struct AdapterConfig {
  std::optional<int64_t> rank;  // absent: taken from the tensors
  double alpha = 8;
  double dropout = 0;  // of training; nothing else knows it
  bool use_rslora = false;
  bool use_dora = false;
  bool lora_bias = false;
  bool trained_biases = false;  // "bias" is "all" or "lora_only": biases of the base that the adapter brings its own of
  bool ensure_weight_tying = false;
  BaseChange base_change = BaseChange::kNone;
  std::vector<std::pair<std::string, int64_t>> rank_pattern;  // in file order: the first hit counts
  std::vector<std::pair<std::string, double>> alpha_pattern;
  ModuleSelector target_modules, exclude_modules;
  std::vector<int64_t> layers_to_transform;
  std::vector<std::string> layers_pattern;
  std::vector<std::string> modules_to_save;
  // Activated LoRA: the deltas act from the last of these tokens' occurrences in a prompt on. Empty: everywhere.
  std::vector<int64_t> alora_invocation_tokens;
  // Module name -> token ids; a bare list stands for "embed_tokens".
  std::map<std::string, std::vector<int64_t>> trainable_token_indices;
  std::string base_model_name;
  std::string task_type;
  std::string peft_version;
  std::vector<std::string> warnings;
};

// `where` (a path) prefixes errors.
Result<AdapterConfig> parse_adapter_config(std::string_view json, std::string_view where);

}  // namespace lk
