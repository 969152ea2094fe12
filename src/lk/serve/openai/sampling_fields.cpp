// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <random>

#include "lk/base/json_fields.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

uint64_t random_seed() {
  thread_local std::random_device device;
  return uint64_t{device()} << 32 | device();
}

void read_sampling(RequestFields& fields, const ApiDefaults& defaults, SamplingParams& s) {
  const GenerationDefaults& generation = defaults.generation;
  s.temperature = generation.temperature.value_or(1.0);
  s.top_p = generation.top_p.value_or(1.0);
  s.min_p = generation.min_p.value_or(0.0);
  s.top_k = generation.top_k.value_or(0);
  s.repetition_penalty = generation.repetition_penalty.value_or(1.0);
  s.presence_penalty = generation.presence_penalty.value_or(0.0);
  s.frequency_penalty = generation.frequency_penalty.value_or(0.0);
  fields.read("temperature", s.temperature);
  fields.read("top_p", s.top_p);
  fields.read("min_p", s.min_p);
  fields.read("repetition_penalty", s.repetition_penalty);
  fields.read("presence_penalty", s.presence_penalty);
  fields.read("frequency_penalty", s.frequency_penalty);
  fields.read("top_k", s.top_k);
  s.top_k = std::max<int64_t>(s.top_k, 0);
  auto seed = static_cast<int64_t>(fields.has("seed") ? 0 : random_seed());
  fields.read("seed", seed);
  s.seed = static_cast<uint64_t>(seed);
}

void read_streaming(RequestFields& fields, GenerateRequest& request) {
  fields.read("stream", request.stream);
  const json::object* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!request.stream) return fields.fail("stream_options", "is only allowed when \"stream\" is true");
  RequestFields inner(*options, kStreamOptionsForm, "stream_options", fields.errors());
  inner.read("include_usage", request.include_usage);
  inner.read("continuous_usage_stats", request.continuous_usage);
  add_ignored(inner, request.ignored_fields);
}

// Which answer it is, and what there is of it already.
void read_resume(RequestFields& fields, int64_t vocab_size, GenerateRequest& request, TextRequest& text) {
  const json::object* object = fields.object("lorikeet_resume");
  if (object == nullptr) return;
  if (!request.stream) return fields.fail("lorikeet_resume", "needs \"stream\": true");
  RequestFields inner(*object, kResumeForm, "lorikeet_resume", fields.errors());
  ResumedAnswer& resumed = request.resumed.emplace();
  int64_t seed = 0;
  inner.read("id", resumed.id);
  if (!inner.has("id")) inner.fail("id", "is missing");
  inner.read("created", resumed.created);
  inner.read("seed", seed);
  inner.read("digest", resumed.digest);
  if (!fields.has("seed")) text.sampling.seed = static_cast<uint64_t>(seed);
  const json::array* choices = inner.array("choices");
  for (size_t i = 0; choices != nullptr && i < choices->size() && !fields.failed(); ++i) {
    const std::string path = fmt::format("lorikeet_resume.choices[{}]", i);
    if (!(*choices)[i].is_object()) return fields.errors().wrong_kind(path, "an object", (*choices)[i]);
    RequestFields choice((*choices)[i].get_object(), kResumedChoiceForm, path, fields.errors());
    ResumedAnswer::Choice& known = resumed.choices.emplace_back();
    choice.read("tokens", known.tokens, vocab_size);
    choice.read("done", known.done);
    choice.read("events", known.events);
    choice.read("prompt_tokens", known.prompt_tokens);
    choice.read("cached_tokens", known.cached_tokens);
  }
}

}  // namespace

int64_t vocab_size(const ApiDefaults& defaults) {
  return defaults.vocab_size > 0 ? defaults.vocab_size : std::numeric_limits<int32_t>::max();
}

void read_truncation(RequestFields& fields, TextRequest& text) {
  fields.read("truncate_prompt_tokens", text.truncate_prompt_tokens);
  if (fields.has("truncate_prompt_tokens") && text.truncate_prompt_tokens == 0)
    fields.fail("truncate_prompt_tokens", "must be at least 1, or -1");
  std::string side = "left";
  fields.read("truncation_side", side);
  text.truncate_right = side == "right";
}

void read_common(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text) {
  const int64_t vocab = vocab_size(defaults);
  fields.read("model", request.model);
  fields.read("user", request.user);
  fields.read("cache_salt", request.cache_salt);
  fields.read("n", request.n);
  int best_of = request.n;
  fields.read("best_of", best_of);
  if (best_of != request.n) fields.fail("best_of", "must be equal to \"n\": answers are not ranked");
  read_streaming(fields, request);
  read_sampling(fields, defaults, text.sampling);
  fields.read("logit_bias", text.sampling.logit_bias, vocab);
  text.stop = defaults.generation.stop;
  text.min_tokens = defaults.generation.min_tokens.value_or(0);
  fields.read("stop", text.stop);
  fields.read("stop_token_ids", text.stop_token_ids, vocab);
  fields.read("allowed_token_ids", text.allowed_token_ids, vocab);
  if (fields.has("allowed_token_ids") && text.allowed_token_ids.empty())
    fields.fail("allowed_token_ids", "must not be empty");
  fields.read("min_tokens", text.min_tokens);
  fields.read("bad_words", text.bad_words);
  fields.read("priority", request.priority);
  read_truncation(fields, text);
  fields.read("no_stop_trim", text.include_stop_string);
  fields.read("include_stop_str_in_output", text.include_stop_string);
  fields.read("ignore_eos", text.ignore_eos);
  fields.read("skip_special_tokens", text.skip_special_tokens);
  fields.read("echo", request.echo);
  fields.read("return_token_ids", request.return_token_ids);
  fields.read("return_tokens_as_token_ids", request.tokens_as_ids);
  fields.read("prompt_logprobs", text.sampling.num_prompt_logprobs);
  request.prompt_logprobs = text.sampling.num_prompt_logprobs >= 0;
  if (request.prompt_logprobs && request.stream)
    fields.fail("prompt_logprobs", "is not available when \"stream\" is true");
  read_output_format(fields, request);
  read_resume(fields, vocab, request, text);
}

}  // namespace lk::openai
