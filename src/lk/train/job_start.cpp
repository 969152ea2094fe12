// SPDX-License-Identifier: Apache-2.0
#include "lk/train/job_start.h"

#include <algorithm>
#include <cctype>

#include "lk/base/rng.h"
#include "lk/lora_tools/initial.h"
#include "lk/train/eva.h"

namespace lk {
namespace {

// Names of modules hold letters, digits, '_' and '.'; what holds more is a regular expression.
ModuleSelector selector_of(const std::vector<std::string>& entries) {
  using Kind = ModuleSelector::Kind;
  if (entries.empty()) return {};
  if (entries == std::vector<std::string>{"all-linear"}) return {.kind = Kind::kAllLinear, .names = {}, .pattern = {}};
  const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; };
  if (entries.size() == 1 && !std::ranges::all_of(entries[0], plain))
    return {.kind = Kind::kRegex, .names = {}, .pattern = entries[0]};
  return {.kind = Kind::kList, .names = entries, .pattern = {}};
}

int64_t modules_of(const AdapterSpec& spec) { return spec.kind == AdapterKind::kMultiLora ? spec.num_modules : 0; }

bool freezes(const AdapterSpec& spec, const char* factor) {
  return std::ranges::find(spec.freeze, factor) != spec.freeze.end();
}

Result<InitialAdapter> make_initial(const JobConfig& config, const TrainBase& base, const std::string& base_name) {
  const AdapterSpec& spec = config.adapter;
  return make_initial_adapter(base.weights->config, peft_config(spec, base_name), spec.init, modules_of(spec),
                              config.train.seed, *base.weights->checkpoint);
}

}  // namespace

AdapterConfig peft_config(const AdapterSpec& spec, const std::string& base) {
  AdapterConfig config;
  config.rank = spec.rank;
  config.alpha = spec.alpha;
  config.use_rslora = spec.use_rslora;
  config.use_dora = spec.kind == AdapterKind::kDora;
  config.lora_bias = spec.lora_bias;
  config.dropout = spec.dropout.value_or(0);
  config.rank_pattern = spec.rank_pattern;
  config.alpha_pattern = spec.alpha_pattern;
  config.layers_to_transform = spec.layers_to_transform;
  config.modules_to_save = spec.modules_to_save;
  if (!spec.trainable_tokens.empty()) config.trainable_token_indices["embed_tokens"] = spec.trainable_tokens;
  config.target_modules = selector_of(spec.target_modules);
  config.exclude_modules = selector_of(spec.exclude_modules);
  config.base_model_name = base;
  return config;
}

Result<JobStart> make_job_start(const JobConfig& config, const TrainBase& base, const std::string& base_name) {
  const AdapterSpec& spec = config.adapter;
  const ModelWeights& weights = *base.weights;
  JobStart start{
      .adapter = nullptr,
      .options = {
          .freeze_a = freezes(spec, "A"), .freeze_b = freezes(spec, "B"), .dropout_seed = mix64(config.train.seed)}};
  if (!spec.init_from.empty()) {
    LK_ASSIGN_OR_RETURN(start.adapter,
                        load_adapter(config.name, spec.init_from, weights.config, weights.checkpoint.get()));
    if (start.adapter->own_vocab_size)
      return unsupported(
          "adapter.init_from: {} has a vocabulary of its own ({} tokens, the base has {}), which is not "
          "trained here",
          spec.init_from, *start.adapter->own_vocab_size, weights.config.vocab_size);
    if (start.adapter->is_activated())
      return unsupported(
          "adapter.init_from: {} is an activated LoRA (alora_invocation_tokens), which is not trained here",
          spec.init_from);
    start.options.frozen_half = start.adapter->config.base_change != BaseChange::kNone;
  } else {
    for (const int64_t layer : spec.layers_to_transform)
      if (layer >= weights.config.num_layers)
        return invalid_argument("adapter.layers_to_transform names layer {}; the base has {}, from 0 on", layer,
                                weights.config.num_layers);
    LK_ASSIGN_OR_RETURN(InitialAdapter made, make_initial(config, base, base_name));
    start.adapter = std::make_shared<Adapter>(std::move(made.adapter));
    start.options.frozen_half = made.frozen_half;
    start.options.num_modules = modules_of(spec);
  }
  start.options.dropout = spec.dropout.value_or(start.adapter->config.dropout);
  return start;
}

bool waits_for_data(const AdapterSpec& spec) { return spec.init_from.empty() && spec.init == AdapterInit::kEva; }

int64_t settling_bytes(const AdapterSpec& spec, const Adapter& start) {
  return waits_for_data(spec) ? eva_bytes(start) : 0;
}

Status settle_start(JobStart& start, const JobConfig& config, const TrainBase& base, const std::string& base_name,
                    TrainPass& pass, SampleReader& data, const AskStop& stop) {
  if (!waits_for_data(config.adapter)) return Status();
  start.adapter.reset();
  LK_ASSIGN_OR_RETURN(InitialAdapter made, make_initial(config, base, base_name));
  LK_ASSIGN_OR_RETURN(Adapter with_eva,
                      apply_eva(std::move(made.adapter), pass, *base.backend, *base.weights, data, {}, stop));
  start.adapter = std::make_shared<Adapter>(std::move(with_eva));
  return Status();
}

}  // namespace lk
