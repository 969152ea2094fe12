// SPDX-License-Identifier: Apache-2.0
// ModuleMatcher: which modules an adapter config targets, and with which rank and alpha, exactly as
// PEFT decides (tuners_utils.check_target_module_exists, other.get_pattern_key). A module is its
// dotted path without "base_model.model.", e.g. "model.layers.3.self_attn.q_proj".
//
// Thread safety: none, not even for const calls: they share one time budget against hostile
// patterns.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"
#include "lk/lora/adapter_config.h"
#include "lk/lora/python_regex.h"

namespace lk {

// A key of rank_pattern or alpha_pattern: Python's re.match(r"(.*\.)?(key)$", module).
class PatternKey {
 public:
  static Result<PatternKey> compile(const std::string& key);
  Result<bool> matches(std::string_view module) const;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::optional<PythonRegex> regex_;  // absent: names and dots only, compared directly
};

class ModuleMatcher {
 public:
  static Result<ModuleMatcher> create(const AdapterConfig& config);

  Result<bool> is_targeted(const std::string& module) const;
  // True when modules_to_save has PEFT train a full copy of the module or of a parent. Here PEFT
  // compares plain endings: "norm" also covers "model.layers.0.input_layernorm".
  bool is_saved(std::string_view module) const;

  // Index into rank_pattern / alpha_pattern of the first key that matches.
  Result<std::optional<size_t>> rank_pattern_of(const std::string& module) const { return first(rank_keys_, module); }
  Result<std::optional<size_t>> alpha_pattern_of(const std::string& module) const { return first(alpha_keys_, module); }

 private:
  Result<bool> target_matches(const std::string& module) const;
  Result<std::optional<size_t>> first(const std::vector<PatternKey>& keys, const std::string& module) const;
  Result<bool> in_layers(const std::string& module) const;
  // modules_to_save as a reason not to put LoRA on a module: whole path segments.
  Result<bool> is_saved_segment(const std::string& module) const;

  AdapterConfig config_;
  ModuleSelector targets_;  // null and all-linear resolved to a list
  std::vector<PatternKey> rank_keys_, alpha_keys_;
  std::vector<PythonRegex> saved_;           // one per modules_to_save entry
  std::vector<PythonRegex> layer_patterns_;  // with a group "idx"
  std::optional<PythonRegex> target_regex_, exclude_regex_;
  mutable std::chrono::steady_clock::duration spent_{};  // in matching, so far
};

}  // namespace lk
