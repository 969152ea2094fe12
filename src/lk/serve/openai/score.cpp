// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/score.h"
#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "lk/base/logprobs.h"
#include "lk/serve/openai/choice.h"
#include "lk/serve/openai/json_writer.h"
#include "lk/serve/openai/parse.h"

namespace lk {

using namespace openai;

namespace {

namespace json = boost::json;

// Of all prompts together: so much is tokenized before any limit counts its tokens.
constexpr size_t kMaxPromptBytes = size_t{32} << 20;

// A text or token ids. False: neither, and it is said.
bool read_half(const json::value& value, const std::string& path, int64_t vocab, ScoreRequest::Half& half,
               JsonErrors& errors) {
  if (value.is_string())
    half.text = std::string(value.get_string());
  else if (value.is_array())
    read_token_list(value.get_array(), path, vocab, half.token_ids, errors);
  else
    errors.wrong_kind(path, "a string or a list of token ids", value);
  return !errors.failed();
}

void read_halves(RequestFields& fields, const ApiDefaults& defaults, ScoreRequest& request) {
  const json::value *query = fields.find("query"), *items = fields.find("items");
  if (query == nullptr) return fields.fail("query", "is missing");
  if (items == nullptr) return fields.fail("items", "is missing");
  const int64_t vocab = vocab_size(defaults);
  if (!read_half(*query, fields.path("query"), vocab, request.query, fields.errors())) return;
  fields.read("item_first", request.item_first);
  const auto add = [&](const json::value& item, const std::string& path) {
    ScoreRequest::Half& own = request.items.emplace_back();
    if (!read_half(item, path, vocab, own, fields.errors())) return false;
    if (item.is_string() != query->is_string()) {
      fields.errors().set(path, fmt::format("\"{}\" must be {}, as \"query\" is", path,
                                            query->is_string() ? "a string" : "a list of token ids"));
      return false;
    }
    if (own.bytes() + request.query.bytes() == 0)
      fields.errors().set(path, fmt::format("\"{}\" and \"query\" must not both be empty", path));
    return !fields.failed();
  };
  const json::array* list = items->if_array();
  const bool many = list != nullptr && (list->empty() || !(*list)[0].is_number());
  if (!many) {
    (void)add(*items, fields.path("items"));
    return;
  }
  if (list->empty()) return fields.fail("items", "must not be empty");
  if (static_cast<int64_t>(list->size()) > defaults.max_choices)
    return fields.fail("items", "has {} entries, at most {} are allowed", list->size(), defaults.max_choices);
  if (const size_t bytes = list->size() * request.query.bytes(); bytes > kMaxPromptBytes)
    return fields.fail("items",
                       "has {} entries, which with \"query\" make prompts of {} bytes, more than {}: send "
                       "fewer items at a time",
                       list->size(), bytes, kMaxPromptBytes);
  for (size_t i = 0; i < list->size(); ++i)
    if (!add((*list)[i], fmt::format("{}[{}]", fields.path("items"), i))) return;
}

}  // namespace

ApiResult<ScoreRequest> parse_score_request(std::string_view body, const ApiDefaults& defaults) {
  json::monotonic_resource memory;
  const ApiResult<json::object> root = read_body(body, &memory);
  if (!root.ok()) return root.error;
  JsonErrors errors;
  RequestFields fields(*root.value, kScoreForm, "", errors);
  ScoreRequest request;
  // One token is drawn behind each prompt, and told nobody.
  TextRequest& text = request.common;
  text.max_tokens = 1;
  text.ignore_eos = true;
  text.sampling.temperature = 0;
  text.sampling.num_logprobs = kLogprobsOfBiased;
  fields.read("model", request.model);
  fields.read("user", request.user);
  fields.read("priority", request.priority);
  fields.read("cache_salt", request.cache_salt);
  fields.read("apply_softmax", request.apply_softmax);
  fields.read("add_special_tokens", text.add_special_tokens);
  fields.read("label_token_ids", request.labels, vocab_size(defaults));
  if (!errors.failed() && request.labels.empty())
    fields.fail("label_token_ids", "{}", fields.has("label_token_ids") ? "must not be empty" : "is missing");
  for (const int32_t label : request.labels) text.sampling.logit_bias.emplace_back(label, 0.0F);
  fields.refuse_others();
  read_halves(fields, defaults, request);
  if (errors.failed()) return field_error(errors);
  add_ignored(fields, request.ignored_fields);
  return request;
}

TextRequest ScoreRequest::prompt(size_t item) const {
  const Half& own = items[item];
  const Half &first = item_first ? own : query, &second = item_first ? query : own;
  TextRequest prompt = common;
  prompt.prompt.reserve(first.text.size() + second.text.size());
  prompt.prompt.append(first.text).append(second.text);
  prompt.token_ids.reserve(first.token_ids.size() + second.token_ids.size());
  for (const Half* half : {&first, &second})
    prompt.token_ids.insert(prompt.token_ids.end(), half->token_ids.begin(), half->token_ids.end());
  return prompt;
}

std::string format_scores(const ScoreRequest& request, const std::string& model,
                          const std::vector<Completion>& results) {
  std::string out = "{\"object\":\"scoring\",\"model\":";
  append_string(out, model);
  out += ",\"scores\":[";
  AnswerUsage usage;
  for (size_t i = 0; i < results.size(); ++i) {
    out += i > 0 ? ",[" : "[";
    const std::vector<std::pair<int32_t, float>>& labels = results[i].logprobs.at(0).top;
    double sum = 0, most = -INFINITY;
    for (const auto& [token, logprob] : labels) most = std::max<double>(most, logprob);
    for (const auto& [token, logprob] : labels) sum += std::exp(logprob - most);
    for (size_t k = 0; k < labels.size(); ++k) {
      const double logprob = labels[k].second;
      // Of labels none of which can come, none is likelier.
      const double score = !request.apply_softmax ? std::exp(logprob)
                           : std::isfinite(most)  ? std::exp(logprob - most) / sum
                                                  : 1.0 / static_cast<double>(labels.size());
      fmt::format_to(std::back_inserter(out), "{}{}", k > 0 ? "," : "", score);
    }
    out += ']';
    usage.prompt_tokens += results[i].prompt_tokens;
    usage.cached_tokens += results[i].cached_tokens;
    usage.completion_tokens += std::ssize(results[i].token_ids);
  }
  out += "],";
  append_usage(out, usage);
  return out + "}";
}

int64_t scores_size(const ScoreRequest& request) {
  constexpr int64_t kScore = 24;  // 1.2345678901234567e-10,
  return 256 + std::ssize(request.items) * (2 + kScore * std::ssize(request.labels));
}

}  // namespace lk
