// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/generation_config.h"

#include <algorithm>
#include <limits>

#include <fmt/ranges.h>

#include "lk/base/file.h"
#include "lk/infer/request_fields.h"

namespace lk {
namespace {

// Keys of transformers' GenerationConfig that change which tokens come out and that are not done here, with the values
// that change nothing. 1-beams and the like are what everybody writes.
struct Unapplied {
  std::string_view key;
  std::optional<double> neutral;  // beside null, false, "" and empty lists
};
constexpr Unapplied kUnapplied[] = {
    {"max_time", {}},
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"penalty_alpha", 0},
    {"diversity_penalty", 0},
    {"top_h", {}},
    {"typical_p", 1},
    {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},
    {"encoder_repetition_penalty", 1},
    {"no_repeat_ngram_size", 0},
    {"encoder_no_repeat_ngram_size", 0},
    {"bad_words_ids", {}},
    {"renormalize_logits", {}},
    {"constraints", {}},
    {"force_words_ids", {}},
    {"forced_bos_token_id", {}},
    {"forced_eos_token_id", {}},
    {"exponential_decay_length_penalty", {}},
    {"suppress_tokens", {}},
    {"begin_suppress_tokens", {}},
    {"sequence_bias", {}},
    {"token_healing", {}},
    {"guidance_scale", 1},
    {"dola_layers", {}},
    {"watermarking_config", {}},
};

bool is_neutral(const boost::json::value& value, std::optional<double> neutral) {
  if (value.is_null() || value == false) return true;
  if (value.is_number()) return neutral && value.to_number<double>() == *neutral;
  if (const auto* list = value.if_array()) return list->empty();
  if (const auto* object = value.if_object()) return object->empty();
  return value.is_string() && value.get_string().empty();
}

}  // namespace

GenerationDefaults GenerationDefaults::over(const GenerationDefaults& base) const {
  GenerationDefaults both = *this;
  const auto fill = [&](auto field) {
    if (!(both.*field)) both.*field = base.*field;
  };
  fill(&GenerationDefaults::temperature);
  fill(&GenerationDefaults::top_p);
  fill(&GenerationDefaults::min_p);
  fill(&GenerationDefaults::repetition_penalty);
  fill(&GenerationDefaults::presence_penalty);
  fill(&GenerationDefaults::frequency_penalty);
  fill(&GenerationDefaults::top_k);
  fill(&GenerationDefaults::max_tokens);
  fill(&GenerationDefaults::min_tokens);
  if (both.stop.empty()) both.stop = base.stop;
  if (both.eos_token_ids.empty()) both.eos_token_ids = base.eos_token_ids;
  both.warnings = base.warnings;
  return both;
}

Result<GenerationDefaults> load_generation_defaults(const std::string& directory) {
  GenerationDefaults defaults;
  const std::string path = join_path(directory, kGenerationConfigFile);
  if (!file_exists(path)) return defaults;
  LK_ASSIGN_OR_RETURN(const boost::json::object object, load_json_object(path));
  RequestFields fields(object, kGenerationConfigForm, path);
  const auto read = [&](RequestFields::Name name, auto& out) {
    if (fields.find(name) != nullptr) fields.read(name, out.emplace());
  };
  read("temperature", defaults.temperature);
  read("top_p", defaults.top_p);
  read("min_p", defaults.min_p);
  read("repetition_penalty", defaults.repetition_penalty);
  read("presence_penalty", defaults.presence_penalty);
  read("frequency_penalty", defaults.frequency_penalty);
  read("top_k", defaults.top_k);
  if (defaults.top_k) defaults.top_k = std::max<int64_t>(*defaults.top_k, 0);  // 0 and -1: off
  read("max_new_tokens", defaults.max_tokens);
  read("min_new_tokens", defaults.min_tokens);
  fields.read("stop_strings", defaults.stop);
  bool sample = true;
  fields.read("do_sample", sample);
  if (!sample) defaults.temperature = 0;
  // -1 appears in the wild for "none".
  fields.read_ints("eos_token_id", defaults.eos_token_ids, -1, std::numeric_limits<int32_t>::max());
  std::erase(defaults.eos_token_ids, -1);
  LK_RETURN_IF_ERROR(fields.status());
  if (defaults.max_tokens && defaults.min_tokens && *defaults.min_tokens > *defaults.max_tokens)
    return invalid_argument("{}: \"min_new_tokens\" is larger than \"max_new_tokens\"", path);
  std::vector<std::string_view> unapplied;
  for (const Unapplied& row : kUnapplied)
    if (const boost::json::value* value = object.if_contains(row.key); value && !is_neutral(*value, row.neutral))
      unapplied.push_back(row.key);
  if (!unapplied.empty())
    defaults.warnings.push_back(fmt::format("{} is not applied: {}", path, fmt::join(unapplied, ", ")));
  return defaults;
}

}  // namespace lk
