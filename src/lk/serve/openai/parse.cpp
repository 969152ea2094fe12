// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/parse.h"

#include <boost/json.hpp>

#include "lk/base/json_reader.h"
#include "lk/serve/openai/as_chat.h"

namespace lk {
namespace openai {
namespace {

namespace json = boost::json;

ApiError body_error(std::string message) { return {.status = 400, .message = std::move(message)}; }

// One prompt of a completion, or one input of an embedding request.
bool read_prompt(const json::value& value, const std::string& path, int64_t vocab, TextRequest& text,
                 JsonErrors& errors) {
  if (value.is_string()) {
    text.prompt = std::string(value.get_string());
    if (text.prompt.empty()) errors.set(path, fmt::format("\"{}\" must not be empty", path));
  } else if (value.is_array()) {
    if (value.get_array().empty())
      errors.set(path, fmt::format("\"{}\" must not be empty", path));
    else
      read_token_list(value.get_array(), path, vocab, text.token_ids, errors);
  } else {
    errors.set(path, fmt::format("\"{}\" must be a string or a list of token ids, is {}", path, json_kind(value)));
  }
  return !errors.failed();
}

// string | [string] | [int] | [[int]]: one copy of `common` for each prompt.
void read_prompts(RequestFields& fields, RequestFields::Name name, const ApiDefaults& defaults,
                  const TextRequest& common, std::vector<TextRequest>& out) {
  const int64_t vocab = vocab_size(defaults);
  const std::string_view key = fields.row(name).name;
  const auto max_count = static_cast<size_t>(defaults.max_choices);
  const json::value* given = fields.find(name);
  if (given == nullptr) return fields.fail(key, "is missing");
  const json::array* list = given->if_array();
  const bool many = list != nullptr && !list->empty() && !(*list)[0].is_number();
  if (!many) {
    read_prompt(*given, fields.path(key), vocab, out.emplace_back(common), fields.errors());
    return;
  }
  if (list->size() > max_count)
    return fields.fail(key, "has {} entries, at most {} are allowed", list->size(), max_count);
  out.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i)
    if (!read_prompt((*list)[i], fmt::format("{}[{}]", fields.path(key), i), vocab, out.emplace_back(common),
                     fields.errors()))
      return;
}

// The model's own minimum gives way to a request that wants less.
void check_min_tokens(RequestFields& fields, TextRequest& text) {
  if (text.min_tokens <= text.max_tokens) return;
  if (fields.has("min_tokens")) fields.fail("min_tokens", "is larger than \"max_tokens\"");
  text.min_tokens = text.max_tokens;
}

// llama.cpp's max_tokens. Before max_tokens is read.
void read_n_predict(RequestFields& fields, GenerateRequest& request, TextRequest& text) {
  if (!fields.has("n_predict")) return;
  int64_t most = -1;
  fields.read("n_predict", most);
  if (most == 0 && is_chat(request.endpoint)) fields.fail("n_predict", "must be at least 1, or -1");
  text.max_tokens = most < 0 ? kUntilFull : most;
  const bool overruled = fields.has("max_tokens") || (is_chat(request.endpoint) && request.says_length);
  request.says_length = overruled || most >= 0;
}

// Every choice is a request of its own to the engine.
void check_choices(RequestFields& fields, const GenerateRequest& request, size_t num_prompts,
                   const ApiDefaults& defaults) {
  const int64_t choices = request.n * static_cast<int64_t>(num_prompts);
  if (choices > defaults.max_choices)
    fields.fail("n", "is {}, for {} prompt{}: {} answers, at most {} are allowed", request.n, num_prompts,
                num_prompts == 1 ? "" : "s", choices, defaults.max_choices);
  if (request.resumed && static_cast<int64_t>(request.resumed->choices.size()) > choices)
    fields.fail("lorikeet_resume", "has {} choices, the request asks for {}", request.resumed->choices.size(), choices);
}

}  // namespace

ApiError field_error(const JsonErrors& errors) {
  return {.status = 400, .message = errors.status().message(), .param = errors.path()};
}

void add_ignored(const RequestFields& fields, std::vector<std::string>& names) {
  constexpr size_t kMost = 16;
  for (const std::string& name : fields.ignored())
    if (names.size() < kMost) names.push_back(name);
  for (std::string& name : fields.unknown(kMost - std::min(kMost, names.size()))) names.push_back(std::move(name));
}

ApiResult<json::object> read_body(std::string_view body, json::storage_ptr storage) {
  Result<json::value> value = read_json(body, std::move(storage));
  if (!value.ok()) return body_error(fmt::format("The request body is not valid JSON: {}", value.status().message()));
  if (!value->is_object())
    return body_error(fmt::format("The request body must be a JSON object, is {}", json_kind(*value)));
  return std::move(value->get_object());
}

}  // namespace openai

using namespace openai;

void openai::read_chat(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request) {
  TextRequest text{.add_special_tokens = false, .max_tokens = defaults.generation.max_tokens.value_or(kUntilFull)};
  read_common(fields, defaults, request, text);
  check_choices(fields, request, 1, defaults);
  read_messages(fields, text, request.ignored_fields);
  read_template_fields(fields, text);
  read_tools(fields, defaults, request, text);
  read_reasoning(fields, defaults, request, text);
  fields.read("add_special_tokens", text.add_special_tokens);
  text.special_tokens_around_template = text.add_special_tokens;
  request.says_length = fields.has("max_tokens") || fields.has("max_completion_tokens");
  read_n_predict(fields, request, text);
  fields.read("max_tokens", text.max_tokens);
  fields.read("max_completion_tokens", text.max_tokens);
  text.max_tokens = std::min(text.max_tokens, kUntilFull);
  check_min_tokens(fields, text);
  fields.read("logprobs", request.logprobs);
  int top_logprobs = 0;
  fields.read("top_logprobs", top_logprobs);
  if (top_logprobs > 0 && !request.logprobs) fields.fail("top_logprobs", "needs \"logprobs\": true");
  if (request.logprobs) text.sampling.num_logprobs = top_logprobs;
  fields.refuse_others();
  if (const boost::json::array* modalities = fields.array("modalities"))
    for (const boost::json::value& modality : *modalities)
      if (modality != "text") fields.fail("modalities", "may only be [\"text\"]");
  add_ignored(fields, request.ignored_fields);
  request.prompts.push_back(std::move(text));
}

ApiResult<GenerateRequest> parse_chat_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kChatForm, "", errors);
  GenerateRequest request{.endpoint = Endpoint::kChat};
  read_chat(fields, defaults, request);
  if (errors.failed()) return field_error(errors);
  return request;
}

ApiResult<GenerateRequest> parse_completion_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kCompletionForm, "", errors);
  GenerateRequest request{.endpoint = Endpoint::kCompletion};
  TextRequest text{.max_tokens = 16};
  read_common(fields, defaults, request, text);
  fields.read("add_special_tokens", text.add_special_tokens);
  read_n_predict(fields, request, text);
  fields.read("max_tokens", text.max_tokens);
  text.max_tokens = std::min(text.max_tokens, kUntilFull);
  if (text.max_tokens == 0 && !request.echo && !request.prompt_logprobs)
    fields.fail("max_tokens", "may only be 0 with \"echo\" or \"prompt_logprobs\"");
  check_min_tokens(fields, text);
  int logprobs = -1;
  fields.read("logprobs", logprobs);
  request.logprobs = logprobs >= 0;
  text.sampling.num_logprobs = logprobs;
  if (request.echo) text.sampling.num_prompt_logprobs = std::max(text.sampling.num_prompt_logprobs, logprobs);
  fields.refuse_others();
  read_prompts(fields, "prompt", defaults, text, request.prompts);
  check_choices(fields, request, request.prompts.size(), defaults);
  if (errors.failed()) return field_error(errors);
  add_ignored(fields, request.ignored_fields);
  return request;
}

ApiResult<EmbeddingRequest> parse_embedding_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kEmbeddingForm, "", errors);
  EmbeddingRequest request;
  TextRequest text{.max_tokens = 0, .embed = true};
  fields.read("model", request.model);
  std::string format = "float";
  fields.read("encoding_format", format);
  request.base64 = format == "base64";
  fields.read("dimensions", request.dimensions);
  read_truncation(fields, text);
  fields.read("add_special_tokens", text.add_special_tokens);
  fields.refuse_others();
  read_prompts(fields, "input", defaults, text, request.inputs);
  if (errors.failed()) return field_error(errors);
  add_ignored(fields, request.ignored_fields);
  return request;
}

ApiResult<TokenizeRequest> parse_tokenize_request(std::string_view body, const ApiDefaults&) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kTokenizeForm, "", errors);
  TokenizeRequest request;
  TextRequest& text = request.input;
  fields.read("model", request.model);
  fields.read("return_token_strs", request.return_token_strs);
  fields.read("prompt", text.prompt);
  if (fields.has("messages")) {
    if (fields.has("prompt")) fields.fail("prompt", "and \"messages\" exclude each other");
    text.add_special_tokens = false;
    read_messages(fields, text, request.ignored_fields);
  } else if (!fields.has("prompt")) {
    fields.fail("prompt", "is missing");
  }
  // A prompt has no use for these, but they may not be wrong.
  read_template_fields(fields, text);
  read_tool_list(fields, text.tools, request.ignored_fields);
  fields.refuse_others();
  fields.read("add_special_tokens", text.add_special_tokens);
  text.special_tokens_around_template = text.add_special_tokens && fields.has("messages");
  if (errors.failed()) return field_error(errors);
  add_ignored(fields, request.ignored_fields);
  return request;
}

ApiResult<DetokenizeRequest> parse_detokenize_request(std::string_view body, const ApiDefaults& defaults) {
  boost::json::monotonic_resource memory;
  const ApiResult<boost::json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kDetokenizeForm, "", errors);
  DetokenizeRequest request;
  fields.read("model", request.model);
  if (!fields.has("tokens")) fields.fail("tokens", "is missing");
  fields.read("tokens", request.tokens, vocab_size(defaults));
  if (errors.failed()) return field_error(errors);
  add_ignored(fields, request.ignored_fields);
  return request;
}

}  // namespace lk
