// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/parse.h"

#include <boost/json.hpp>

#include "lk/io/json_fields.h"
#include "lk/serve/openai/json_reader.h"

namespace lk {
namespace openai {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

ApiError body_error(std::string message) { return {.status = 400, .message = std::move(message)}; }

// One prompt of a completion, or one input of an embedding request.
bool read_prompt(const json::value& value, const std::string& path, int64_t vocab, TextRequest& text,
                 FirstError& error) {
  if (value.is_string()) {
    text.prompt = std::string(value.get_string());
    if (text.prompt.empty()) error.set(path, fmt::format("\"{}\" must not be empty", path));
  } else if (value.is_array()) {
    if (value.get_array().empty())
      error.set(path, fmt::format("\"{}\" must not be empty", path));
    else
      to_tokens(value.get_array(), path, vocab, text.token_ids, error);
  } else {
    error.set(path, fmt::format("\"{}\" must be a string or a list of token ids, is {}", path, json_kind(value)));
  }
  return !error.error;
}

// string | [string] | [int] | [[int]]: one copy of `common` for each prompt.
void read_prompts(ApiFields& fields, std::string_view key, size_t max_count, int64_t vocab, const TextRequest& common,
                  std::vector<TextRequest>& out) {
  const json::value* given = fields.find(key);
  if (given == nullptr) return fields.fail(key, "is missing");
  const json::array* list = given->if_array();
  const bool many = list != nullptr && !list->empty() && !(*list)[0].is_number();
  if (!many) {
    read_prompt(*given, fields.path(key), vocab, out.emplace_back(common), fields.error());
    return;
  }
  if (list->size() > max_count)
    return fields.fail(key, "has {} entries, at most {} are allowed", list->size(), max_count);
  out.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i)
    if (!read_prompt((*list)[i], fmt::format("{}[{}]", fields.path(key), i), vocab, out.emplace_back(common),
                     fields.error()))
      return;
}

}  // namespace

ApiResult<json::object> read_body(std::string_view body, json::storage_ptr storage) {
  Result<json::value> value = read_json(body, std::move(storage));
  if (!value.ok()) return body_error(fmt::format("The request body is not valid JSON: {}", value.status().message()));
  if (!value->is_object())
    return body_error(fmt::format("The request body must be a JSON object, is {}", json_kind(*value)));
  return std::move(value->get_object());
}

}  // namespace openai

using namespace openai;

ApiResult<GenerateRequest> parse_chat_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  FirstError error;
  ApiFields fields(*root.value, "", error);
  GenerateRequest request{.endpoint = Endpoint::kChat};
  TextRequest text{.add_special_tokens = false, .max_tokens = kUntilFull};
  read_common(fields, defaults, request, text);
  read_messages(fields, text, request.ignored_fields);
  read_template_fields(fields, text);
  read_tools(fields, defaults, request, text);
  if (!text.output_so_far.empty() && !text.tools.empty() && !request.stream)
    fields.fail("output_so_far", "with \"tools\" needs \"stream\": a call may be cut in two");
  fields.read_bool("add_special_tokens", text.add_special_tokens);
  fields.read_int("max_tokens", text.max_tokens, 1, kMaxInt);
  fields.read_int("max_completion_tokens", text.max_tokens, 1, kMaxInt);
  text.max_tokens = std::min(text.max_tokens, kUntilFull);
  if (text.min_tokens > text.max_tokens) fields.fail("min_tokens", "is larger than \"max_tokens\"");
  fields.read_bool("logprobs", request.logprobs);
  int top_logprobs = 0;
  fields.read_int("top_logprobs", top_logprobs, 0, 20);
  if (top_logprobs > 0 && !request.logprobs) fields.fail("top_logprobs", "needs \"logprobs\": true");
  if (request.logprobs) text.sampling.num_logprobs = top_logprobs;
  read_ignored_and_refused(fields);
  if (const boost::json::array* modalities = fields.array("modalities", 8))
    for (const boost::json::value& modality : *modalities)
      if (modality != "text") fields.fail("modalities", "may only be [\"text\"]");
  if (error.error) return *error.error;
  fields.unknown(request.ignored_fields);
  request.prompts.push_back(std::move(text));
  return request;
}

ApiResult<GenerateRequest> parse_completion_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  FirstError error;
  ApiFields fields(*root.value, "", error);
  GenerateRequest request{.endpoint = Endpoint::kCompletion};
  TextRequest text{.max_tokens = 16};
  read_common(fields, defaults, request, text);
  fields.read_bool("add_special_tokens", text.add_special_tokens);
  fields.read_int("max_tokens", text.max_tokens, 0, kMaxInt);
  text.max_tokens = std::min(text.max_tokens, kUntilFull);
  if (text.max_tokens == 0 && !request.echo && !request.prompt_logprobs)
    fields.fail("max_tokens", "may only be 0 with \"echo\" or \"prompt_logprobs\"");
  if (text.min_tokens > text.max_tokens) fields.fail("min_tokens", "is larger than \"max_tokens\"");
  int logprobs = -1;
  fields.read_int("logprobs", logprobs, 0, 20);
  request.logprobs = logprobs >= 0;
  text.sampling.num_logprobs = logprobs;
  if (request.echo) text.sampling.num_prompt_logprobs = std::max(text.sampling.num_prompt_logprobs, logprobs);
  read_ignored_and_refused(fields);
  read_prompts(fields, "prompt", kMaxPrompts, vocab_size(defaults), text, request.prompts);
  if (!text.output_so_far.empty() && request.prompts.size() > 1)
    fields.fail("output_so_far", "needs one prompt, there are {}", request.prompts.size());
  if (error.error) return *error.error;
  fields.unknown(request.ignored_fields);
  return request;
}

ApiResult<EmbeddingRequest> parse_embedding_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  FirstError error;
  ApiFields fields(*root.value, "", error);
  EmbeddingRequest request;
  TextRequest text{.max_tokens = 0, .embed = true};
  fields.read_string("model", request.model, 0, kMaxNameBytes);
  std::string format = "float";
  fields.read_choice("encoding_format", format, {"float", "base64"});
  request.base64 = format == "base64";
  fields.read_int("dimensions", request.dimensions, 1, 1 << 20);
  fields.read_int("truncate_prompt_tokens", text.truncate_prompt_tokens, 1, kMaxInt);
  fields.read_bool("add_special_tokens", text.add_special_tokens);
  read_prompts(fields, "input", kMaxInputs, vocab_size(defaults), text, request.inputs);
  if (error.error) return *error.error;
  return request;
}

ApiResult<TokenizeRequest> parse_tokenize_request(std::string_view body, const ApiDefaults&) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  FirstError error;
  ApiFields fields(*root.value, "", error);
  TokenizeRequest request;
  TextRequest& text = request.input;
  std::vector<std::string> ignored;
  fields.read_string("model", request.model, 0, kMaxNameBytes);
  fields.read_bool("return_token_strs", request.return_token_strs);
  fields.read_string("prompt", text.prompt, 0, static_cast<size_t>(-1));
  if (fields.has("messages")) {
    if (fields.has("prompt")) fields.fail("prompt", "and \"messages\" exclude each other");
    text.add_special_tokens = false;
    read_messages(fields, text, ignored);
    read_template_fields(fields, text);
    read_tool_list(fields, text.tools);
  } else if (!fields.has("prompt")) {
    fields.fail("prompt", "is missing");
  }
  fields.refuse("chat_template", "requests may not bring templates; the model's own is used");
  fields.read_bool("add_special_tokens", text.add_special_tokens);
  if (error.error) return *error.error;
  return request;
}

ApiResult<DetokenizeRequest> parse_detokenize_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  FirstError error;
  ApiFields fields(*root.value, "", error);
  DetokenizeRequest request;
  fields.read_string("model", request.model, 0, kMaxNameBytes);
  if (!fields.has("tokens")) fields.fail("tokens", "is missing");
  fields.read_tokens("tokens", request.tokens, vocab_size(defaults), kMaxJsonValues);
  if (error.error) return *error.error;
  return request;
}

}  // namespace lk
