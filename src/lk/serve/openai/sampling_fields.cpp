// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <limits>
#include <random>

#include "lk/io/json_fields.h"
#include "lk/serve/openai/parse.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

constexpr int64_t kMinInt = std::numeric_limits<int64_t>::min(), kMaxInt = std::numeric_limits<int64_t>::max();

uint64_t random_seed() {
  thread_local std::random_device device;
  return uint64_t{device()} << 32 | device();
}

void read_sampling(ApiFields& fields, const ApiDefaults& defaults, SamplingParams& s) {
  const GenerationDefaults& generation = defaults.generation;
  s.temperature = generation.temperature.value_or(1.0);
  s.top_p = generation.top_p.value_or(1.0);
  s.top_k = std::max<int64_t>(0, generation.top_k.value_or(0));
  s.repetition_penalty = generation.repetition_penalty.value_or(1.0);
  fields.read_double("temperature", s.temperature, 0, 100);
  fields.read_double("top_p", s.top_p, 0, 1, true);
  fields.read_double("min_p", s.min_p, 0, 1);
  fields.read_double("repetition_penalty", s.repetition_penalty, 0.01, 100);
  fields.read_double("presence_penalty", s.presence_penalty, -2, 2);
  fields.read_double("frequency_penalty", s.frequency_penalty, -2, 2);
  fields.read_int("top_k", s.top_k, -1, kMaxInt);
  s.top_k = std::max<int64_t>(s.top_k, 0);
  const auto seed = fields.integer("seed", kMinInt, kMaxInt);
  s.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
}

void read_logit_bias(ApiFields& fields, int64_t vocab_size, SamplingParams& s) {
  const json::object* biases = fields.object("logit_bias");
  if (biases == nullptr) return;
  if (biases->size() > 1024)
    return fields.fail("logit_bias", "has {} entries, at most 1024 are allowed", biases->size());
  for (const auto& [key, bias] : *biases) {
    int64_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 || token >= vocab_size)
      return fields.fail("logit_bias", "names \"{}\", keys must be token ids below {}",
                         std::string_view(key).substr(0, 32), vocab_size);
    const double number = bias.is_number() ? bias.to_number<double>() : 1e9;
    if (!(number >= -100 && number <= 100))
      return fields.fail("logit_bias", "of token {} must be a number from -100 to 100", token);
    s.logit_bias.emplace_back(static_cast<int32_t>(token), static_cast<float>(number));
  }
}

void read_streaming(ApiFields& fields, GenerateRequest& request) {
  fields.read_bool("stream", request.stream);
  const json::object* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!request.stream) return fields.fail("stream_options", "is only allowed when \"stream\" is true");
  ApiFields inner(*options, "stream_options", fields.error());
  inner.read_bool("include_usage", request.include_usage);
  inner.read_bool("continuous_usage_stats", request.continuous_usage);
  inner.unknown(request.ignored_fields);
}

// A continuation is exact or refused: it needs what the first part was made with, and gives nothing that was given
// then.
void read_output_so_far(ApiFields& fields, int64_t vocab_size, const GenerateRequest& request, TextRequest& text) {
  constexpr std::string_view kKey = "output_so_far";
  fields.read_tokens(kKey, text.output_so_far, vocab_size, kMaxOutputSoFar);
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

void read_common(ApiFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text) {
  const int64_t vocab = vocab_size(defaults);
  fields.read_string("model", request.model, 0, kMaxNameBytes);
  fields.read_string("user", request.user, 0, 4 * kMaxNameBytes);
  fields.read_string("cache_salt", request.cache_salt, 1, 128);
  fields.read_int("n", request.n, 1, 16);
  int best_of = request.n;
  fields.read_int("best_of", best_of, 1, 16);
  if (best_of != request.n) fields.fail("best_of", "must be equal to \"n\": answers are not ranked");
  read_streaming(fields, request);
  read_sampling(fields, defaults, text.sampling);
  read_logit_bias(fields, vocab, text.sampling);
  fields.read_strings("stop", text.stop, 16, 1, 256);
  fields.read_tokens("stop_token_ids", text.stop_token_ids, vocab, 1024);
  fields.read_tokens("allowed_token_ids", text.allowed_token_ids, vocab, 16'384);  // 256 prompts may each hold them
  if (fields.has("allowed_token_ids") && text.allowed_token_ids.empty())
    fields.fail("allowed_token_ids", "must not be empty");
  fields.read_int("min_tokens", text.min_tokens, 0, kMaxInt);
  fields.read_int("truncate_prompt_tokens", text.truncate_prompt_tokens, 1, kMaxInt);
  fields.read_bool("include_stop_str_in_output", text.include_stop_string);
  fields.read_bool("ignore_eos", text.ignore_eos);
  fields.read_bool("skip_special_tokens", text.skip_special_tokens);
  fields.read_bool("echo", request.echo);
  fields.read_bool("return_token_ids", request.return_token_ids);
  fields.read_bool("return_tokens_as_token_ids", request.tokens_as_ids);
  fields.read_int("prompt_logprobs", text.sampling.num_prompt_logprobs, 0, 20);
  request.prompt_logprobs = text.sampling.num_prompt_logprobs >= 0;
  if (request.prompt_logprobs && request.stream)
    fields.fail("prompt_logprobs", "is not available when \"stream\" is true");
  read_output_format(fields, request);
  read_output_so_far(fields, vocab, request, text);
}

void read_ignored_and_refused(ApiFields& fields) {
  // Without meaning here, but known: no line in the log.
  for (const char* key : {"store", "metadata", "service_tier", "request_id", "session_id", "safety_identifier",
                          "prompt_cache_key", "guided_decoding_backend", "spaces_between_special_tokens", "detokenize"})
    fields.ignore(key);
  for (const char* key : {"lora_path", "lora_request", "lora", "adapter_id", "adapter_source", "adapters"})
    fields.refuse(key, "name the adapter in \"model\"");
  fields.refuse("chat_template", "requests may not bring templates; the model's own is used");
  fields.refuse("suffix", "text is only continued, not filled in");
  fields.refuse("functions", "it is deprecated; use \"tools\"");
  fields.refuse("function_call", "it is deprecated; use \"tool_choice\"");
  fields.refuse("use_beam_search", "only sampling is done");
  fields.refuse("bad_words", "use \"logit_bias\"");
  fields.refuse("logits_processors", "requests may not bring code");
  fields.refuse("audio", "the model takes and makes text only");
  fields.refuse("prompt_embeds", "give text or token ids");
  fields.refuse("priority", "all requests of a tenant are equal");
}

}  // namespace lk::openai
