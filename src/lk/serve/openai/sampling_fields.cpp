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

// A continuation is exact or refused: it needs what the first part was made with, and gives nothing that was given
// then.
void read_output_so_far(RequestFields& fields, int64_t vocab_size, const GenerateRequest& request, TextRequest& text) {
  constexpr std::string_view kKey = "output_so_far";
  fields.read("output_so_far", text.output_so_far, vocab_size);
  if (text.output_so_far.empty()) return;
  if (request.n != 1) fields.fail(kKey, "needs \"n\" to be 1: choice k of an answer had the seed plus k");
  if (text.sampling.temperature > 0 && !fields.has("seed"))
    fields.fail(kKey, "needs the \"seed\" of the first part, or \"temperature\" 0");
  if (request.echo) fields.fail(kKey, "excludes \"echo\": the prompt was shown with the first part");
  if (request.prompt_logprobs) fields.fail(kKey, "excludes \"prompt_logprobs\": they came with the first part");
}

}  // namespace

int64_t vocab_size(const ApiDefaults& defaults) {
  return defaults.vocab_size > 0 ? defaults.vocab_size : std::numeric_limits<int32_t>::max();
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
  fields.read("stop", text.stop);
  fields.read("stop_token_ids", text.stop_token_ids, vocab);
  fields.read("allowed_token_ids", text.allowed_token_ids, vocab);
  if (fields.has("allowed_token_ids") && text.allowed_token_ids.empty())
    fields.fail("allowed_token_ids", "must not be empty");
  fields.read("min_tokens", text.min_tokens);
  fields.read("truncate_prompt_tokens", text.truncate_prompt_tokens);
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
  read_output_so_far(fields, vocab, request, text);
}

}  // namespace lk::openai
