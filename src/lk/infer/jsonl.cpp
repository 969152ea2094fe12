// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/jsonl.h"

#include <boost/json.hpp>

#include <algorithm>
#include <limits>

#include "lk/base/json_reader.h"
#include "lk/base/json_text.h"
#include "lk/infer/request_fields.h"

namespace lk {
namespace {

namespace json = boost::json;

void read_id(RequestFields& fields, json::value& id) {
  const json::value* given = fields.find("id");
  if (given == nullptr) return;
  if (!given->is_string() && !given->is_int64() && !given->is_uint64())
    return fields.wrong_kind("id", "a string or an integer", *given);
  id = *given;
}

void read_messages(RequestFields& fields, json::array& messages) {
  const json::array* given = fields.array("messages");
  if (given == nullptr) return;
  for (const json::value& message : *given)
    if (!message.is_object()) return fields.wrong_kind("messages", "a list of objects", message);
  messages = *given;
}

// The whole range of the generator's seeds, where the API of the server has signed ones.
void read_seed(RequestFields& fields, uint64_t& seed) {
  const json::value* given = fields.find("seed");
  if (given != nullptr && given->is_uint64()) {
    seed = given->get_uint64();
  } else {
    auto number = static_cast<int64_t>(seed);
    fields.read("seed", number);
    seed = static_cast<uint64_t>(number);
  }
}

json::object logprob_json(const TokenLogprob& entry) {
  json::object object{{"token", entry.token}, {"logprob", entry.logprob}, {"rank", entry.rank}};
  if (!entry.top.empty()) {
    json::array top;
    for (const auto& [token, logprob] : entry.top) top.push_back(json::object{{"token", token}, {"logprob", logprob}});
    object["top"] = std::move(top);
  }
  return object;
}

json::array logprobs_json(const std::vector<TokenLogprob>& entries) {
  json::array array;
  for (const TokenLogprob& entry : entries) array.push_back(logprob_json(entry));
  return array;
}

}  // namespace

Result<JsonlRequest> parse_jsonl_request(std::string_view line, const TextRequest& defaults) {
  const Result<json::value> root = read_json(line);
  if (!root.ok()) return root.status().with_context("not valid JSON");
  if (!root->is_object()) return invalid_argument("a request must be a JSON object");
  JsonlRequest parsed{.request = defaults};
  TextRequest& r = parsed.request;
  SamplingParams& s = r.sampling;
  constexpr int64_t kAnyToken = std::numeric_limits<int32_t>::max();  // the model checks them against its vocabulary
  JsonErrors errors({.noun = "field ", .shows_values = true});
  RequestFields fields(root->get_object(), kBatchForm, "", errors);
  read_id(fields, parsed.id);
  fields.read("adapter", r.adapter);
  fields.read("prompt", r.prompt);
  read_messages(fields, r.messages);
  fields.read("token_ids", r.token_ids, kAnyToken);
  fields.read("max_tokens", r.max_tokens);
  fields.read("output_so_far", r.output_so_far, kAnyToken);
  fields.read("temperature", s.temperature);
  fields.read("top_k", s.top_k);
  s.top_k = std::max<int64_t>(s.top_k, 0);
  fields.read("top_p", s.top_p);
  fields.read("min_p", s.min_p);
  fields.read("repetition_penalty", s.repetition_penalty);
  fields.read("presence_penalty", s.presence_penalty);
  fields.read("frequency_penalty", s.frequency_penalty);
  fields.read("logit_bias", s.logit_bias, kAnyToken);
  read_seed(fields, s.seed);
  fields.read("stop", r.stop);
  fields.read("stop_token_ids", r.stop_token_ids, kAnyToken);
  fields.read("logprobs", s.num_logprobs);
  fields.read("prompt_logprobs", s.num_prompt_logprobs);
  fields.read("ignore_eos", r.ignore_eos);
  fields.read("skip_special_tokens", r.skip_special_tokens);
  fields.read("add_special_tokens", r.add_special_tokens);
  if (fields.has("expected")) fields.read("expected", parsed.expected.emplace());
  fields.refuse_unknown();
  LK_RETURN_IF_ERROR(errors.status());
  return parsed;
}

json::value jsonl_id(std::string_view line) {
  boost::system::error_code error;
  const json::value root = json::parse(line, error);
  if (error || !root.is_object()) return nullptr;
  const json::value* id = root.get_object().if_contains("id");
  return id ? *id : json::value(nullptr);
}

bool matches_expected(const std::string& text, const std::string& expected) {
  const auto trim = [](std::string_view s) {
    const size_t first = s.find_first_not_of(" \t\r\n");
    return first == std::string_view::npos ? std::string_view{}
                                           : s.substr(first, s.find_last_not_of(" \t\r\n") - first + 1);
  };
  return trim(text) == trim(expected);
}

std::string format_jsonl_result(const json::value& id, const std::string& adapter, const Completion& completion,
                                const std::optional<std::string>& expected) {
  if (completion.finish == FinishReason::kError) return format_jsonl_error(id, adapter, completion.error);
  json::object object{{"id", id}, {"adapter", adapter.empty() ? "base" : adapter}, {"text", completion.text}};
  if (!completion.reasoning.empty()) object["reasoning"] = completion.reasoning;
  object["token_ids"] = json::value_from(completion.token_ids);
  if (!completion.logprobs.empty()) object["logprobs"] = logprobs_json(completion.logprobs);
  if (!completion.prompt_logprobs.empty()) object["prompt_logprobs"] = logprobs_json(completion.prompt_logprobs);
  if (expected) object["match"] = matches_expected(completion.text, *expected);
  object["finish_reason"] = to_string(completion.finish);
  object["prompt_tokens"] = completion.prompt_tokens;
  object["completion_tokens"] = completion.token_ids.size();
  return json_text(object);
}

std::string format_jsonl_error(const json::value& id, const std::string& adapter, const Status& error) {
  return json_text(json::object{{"id", id},
                                {"adapter", adapter.empty() ? "base" : adapter},
                                {"error", {{"code", to_string(error.code())}, {"message", error.message()}}}});
}

}  // namespace lk
