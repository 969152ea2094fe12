// SPDX-License-Identifier: Apache-2.0
// Holds the published description against routes, parsers and answers: a limit that is described is a limit that is
// kept, and what an answer holds is described.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>

#include "lk/base/json_text.h"
#include "lk/infer/request_fields.h"
#include "lk/serve/access/access_json.h"
#include "lk/serve/http/routes.h"
#include "lk/serve/observe/status_json.h"
#include "lk/serve/openai/openai.h"
#include "lk/serve/openai/score.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;

const json::value& document() {
  static const json::value parsed = json::parse(openapi_json("1.2.3"));
  return parsed;
}
const json::object& properties(std::string_view schema) {
  return document().at("components").at("schemas").at(schema).at("properties").as_object();
}

TEST(OpenApi, DescribesEveryRouteOrTheOneOfWhichItIsAnotherName) {
  std::set<std::string> found, expected, ids;
  for (const auto& [path, item] : document().at("paths").as_object())
    for (const auto& [method, unused] : item.as_object()) found.insert(std::string(method) + " " + std::string(path));
  for (const Route& route : routes()) {
    if (!route.doc.id.empty()) {
      std::string method(route.method);
      for (char& c : method) c = static_cast<char>(std::tolower(c));
      EXPECT_TRUE(expected.insert(method + " " + std::string(route.path)).second) << route.path;
      EXPECT_TRUE(ids.insert(std::string(route.doc.id)).second) << route.doc.id;
      EXPECT_FALSE(route.doc.summary.empty());
      continue;
    }
    const bool other_name = std::any_of(routes().begin(), routes().end(), [&](const Route& other) {
      return !other.doc.id.empty() && other.handler == route.handler;
    });
    EXPECT_TRUE(other_name || route.path == "/" || route.path.starts_with("/console/")) << route.path;
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(document().at("info").at("version"), "1.2.3");
}

TEST(OpenApi, ReferencesResolveAndNoneIsLeftOver) {
  std::set<std::string> used, defined;
  const std::function<void(const json::value&)> walk = [&](const json::value& v) {
    if (v.is_array())
      for (const json::value& item : v.get_array()) walk(item);
    if (!v.is_object()) return;
    for (const auto& [key, item] : v.get_object()) {
      if (key == "$ref")
        used.emplace(item.as_string());
      else
        walk(item);
    }
  };
  walk(document());
  for (const char* kind : {"schemas", "responses"})
    for (const auto& [name, unused] : document().at("components").at(kind).as_object())
      defined.insert("#/components/" + std::string(kind) + "/" + std::string(name));
  EXPECT_EQ(used, defined);
}

TEST(OpenApi, GuardedRoutesSayHowTheyRefuse) {
  for (const char* path : {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/load_lora_adapter"})
    for (const char* status : {"400", "401", "403", "404", "408", "413", "429", "503"})
      EXPECT_TRUE(document().at("paths").at(path).at("post").at("responses").as_object().contains(status))
          << path << status;
  for (const char* path : {"/health", "/ready", "/live"})
    EXPECT_TRUE(document().at("paths").at(path).at("get").at("security").as_array().empty());
}

// "" when the body is accepted, else the field that was named.
using Parser = std::function<std::string(json::object body)>;

// What a field needs beside it.
const std::map<std::string, json::object, std::less<>>& companions() {
  static const std::map<std::string, json::object, std::less<>> all = {
      {"top_logprobs", {{"logprobs", true}}},
      {"min_tokens", {{"max_tokens", std::numeric_limits<int64_t>::max()}}},
      {"best_of", {{"n", 16}}}};
  return all;
}

void expect_caps(std::string_view schema, const Parser& parse, json::object base, int at_least) {
  int num_caps = 0;
  for (const auto& [key, property] : properties(schema)) {
    if (!property.is_object()) continue;
    const std::string name(key);
    const auto with = [&](json::value value) {
      json::object body = base;
      if (const auto it = companions().find(name); it != companions().end())
        for (const auto& [other, needed] : it->second) body[other] = needed;
      body[name] = std::move(value);
      return parse(std::move(body));
    };
    const auto expect = [&](json::value good, json::value bad, const char* cap) {
      EXPECT_EQ(with(std::move(good)), "") << name << " at its " << cap;
      EXPECT_TRUE(with(std::move(bad)).starts_with(name)) << name << " beyond its " << cap;
      ++num_caps;
    };
    const json::object& p = property.as_object();
    const auto number = [&](const char* cap) { return p.contains(cap) ? p.at(cap).to_number<double>() : std::nan(""); };
    if (p.contains("maximum")) expect(number("maximum"), number("maximum") + 1, "maximum");
    if (p.contains("minimum") && name != "best_of" && !(name == "max_tokens" && p.at("minimum") == 0))
      expect(number("minimum"), number("minimum") - 1, "minimum");
    if (p.contains("exclusiveMinimum"))
      expect(number("exclusiveMinimum") + 0.5, number("exclusiveMinimum"), "exclusive minimum");
    if (p.contains("maxLength") && name != "guided_regex" && name != "guided_grammar") {
      const auto length = p.at("maxLength").to_number<size_t>();
      expect(json::string(length, 'a'), json::string(length + 1, 'a'), "longest text");
    }
    if (p.contains("maxItems") && p.at("items").is_object() && p.at("items").as_object().contains("type") &&
        p.at("items").at("type") == "integer") {
      const auto length = p.at("maxItems").to_number<size_t>();
      expect(json::array(length, 1), json::array(length + 1, 1), "longest list");
    }
  }
  EXPECT_GE(num_caps, at_least);
}

// Numbers as the client would write them: 16, not 1.6E1.
std::string write(const json::object& body) {
  json::object copy = body;
  for (auto& [key, value] : copy)
    if (value.is_double() && value.get_double() == std::floor(value.get_double()) &&
        std::abs(value.get_double()) < 9e15)
      value = static_cast<int64_t>(value.get_double());
  return json::serialize(copy);
}

template <class T>
Parser parser(ApiResult<T> (*function)(std::string_view, const ApiDefaults&)) {
  return [function](json::object body) -> std::string {
    const auto result =
        function(write(body), ApiDefaults{.context = 4096, .vocab_size = 1000, .reasoning = ReasoningFormat::kQwen3});
    return result.ok() ? "" : result.error.param.empty() ? "no field: " + result.error.message : result.error.param;
  };
}

const json::object kChat{{"messages", {{{"role", "user"}, {"content", "hi"}}}}};

TEST(OpenApi, CapsOfChatRequestsAreKept) { expect_caps("ChatRequest", parser(&parse_chat_request), kChat, 30); }
TEST(OpenApi, CapsOfCompletionRequestsAreKept) {
  expect_caps("CompletionRequest", parser(&parse_completion_request), {{"prompt", "hi"}}, 25);
}
TEST(OpenApi, CapsOfEmbeddingRequestsAreKept) {
  expect_caps("EmbeddingRequest", parser(&parse_embedding_request), {{"input", "hi"}}, 3);
}

TEST(OpenApi, CapsOfListsAndMapsAreKept) {
  const Parser chat = parser(&parse_chat_request);
  const auto with = [&](std::string_view name, json::value value) {
    json::object body = kChat;
    body[name] = std::move(value);
    return chat(body);
  };
  const auto cap = [](std::string_view name, const char* what) {
    const json::object& property = properties("ChatRequest").at(name).as_object();
    return (property.contains("oneOf") ? property.at("oneOf").at(1).at(what) : property.at(what)).to_number<size_t>();
  };
  const json::object& stop = properties("ChatRequest").at("stop").at("oneOf").at(1).as_object();
  const auto num_stops = stop.at("maxItems").to_number<size_t>(),
             stop_bytes = stop.at("items").at("maxLength").to_number<size_t>();
  EXPECT_EQ(num_stops, 16u);
  EXPECT_EQ(stop_bytes, 256u);
  EXPECT_EQ(with("stop", json::array(num_stops, json::string(stop_bytes, 'x'))), "");
  EXPECT_EQ(with("stop", json::array(num_stops + 1, "x")), "stop");
  EXPECT_TRUE(with("stop", json::array(1, json::string(stop_bytes + 1, 'x'))).starts_with("stop"));
  const auto biases = [](size_t n) {
    json::object map;
    for (size_t i = 0; i < n; ++i) map[std::to_string(i)] = 1;
    return map;
  };
  EXPECT_EQ(cap("logit_bias", "maxProperties"), 1024u);
  const auto wide = [&](json::object map) {
    json::object body = kChat;
    body["logit_bias"] = std::move(map);
    const auto result = parse_chat_request(write(body), ApiDefaults{.context = 4096, .vocab_size = 100'000});
    return result.ok() ? std::string() : result.error.param;
  };
  EXPECT_EQ(wide(biases(1024)), "");
  EXPECT_EQ(wide(biases(1025)), "logit_bias");
  const auto tools = [](size_t n) {
    json::array list;
    for (size_t i = 0; i < n; ++i)
      list.push_back({{"type", "function"}, {"function", {{"name", "f" + std::to_string(i)}}}});
    return list;
  };
  EXPECT_EQ(cap("tools", "maxItems"), 128u);
  const auto tool_error = [&](size_t n) {
    json::object body = kChat;
    body["tools"] = tools(n);
    const auto result = parse_chat_request(
        write(body), ApiDefaults{.context = 4096, .vocab_size = 1000, .tool_format = ToolFormat::kHermes});
    return result.ok() ? std::string() : result.error.param;
  };
  EXPECT_EQ(tool_error(128), "");
  EXPECT_EQ(tool_error(129), "tools");
  EXPECT_EQ(with("guided_regex", json::string(cap("guided_regex", "maxLength"), 'a')), "");
  EXPECT_EQ(with("guided_regex", json::string(cap("guided_regex", "maxLength") + 1, 'a')), "guided_regex");
  EXPECT_EQ(with("guided_choice", json::array(cap("guided_choice", "maxItems") + 1, "a")), "guided_choice");
}

json::object with_length(json::object body) {
  body["max_tokens"] = 5;
  return body;
}

// No row of the table is there for show.
TEST(OpenApi, EveryFieldOfARequestIsRead) {
  struct Api {
    uint64_t form;
    Parser parse;
    json::object base;
  };
  const Api apis[] = {
      {kChatForm, parser(&parse_chat_request), kChat},
      {kCompletionForm, parser(&parse_completion_request), {{"prompt", "hi"}}},
      {kEmbeddingForm, parser(&parse_embedding_request), {{"input", "hi"}}},
      {kTokenizeForm, parser(&parse_tokenize_request), kChat},
      {kDetokenizeForm, parser(&parse_detokenize_request), {{"tokens", {1}}}},
      {kScoreForm, parser(&parse_score_request), {{"query", "a"}, {"items", "b"}, {"label_token_ids", {1}}}},
      {kResponsesForm, parser(&parse_responses_request), {{"input", "hi"}}},
      {kMessagesForm, parser(&parse_messages_request), with_length(kChat)},
      {kCountTokensForm, parser(&parse_count_tokens_request), kChat}};
  int num_fields = 0;
  for (const Api& api : apis) {
    EXPECT_EQ(api.parse(api.base), "");
    for (const Field& field : kRequestFields) {
      if (!(field.forms & api.form) || field.kind == FieldKind::kIgnored) continue;
      json::object body = api.base;
      body[field.name] = json::array{json::array{}};
      EXPECT_TRUE(api.parse(body).starts_with(field.name)) << field.name << ": " << api.parse(body);
      if (field.required) {
        body.erase(field.name);
        EXPECT_EQ(api.parse(body), field.name);
      }
      ++num_fields;
    }
  }
  EXPECT_GE(num_fields, 140);
}

// --- Answers

void expect_described(const json::value& value, const json::value& schema, const std::string& where) {
  const json::object& s = schema.as_object();
  if (const json::value* reference = s.if_contains("$ref")) {
    constexpr std::string_view kSchemas = "#/components/schemas/";
    const std::string_view name = std::string_view(reference->as_string()).substr(kSchemas.size());
    return expect_described(value, document().at("components").at("schemas").at(name), where);
  }
  if (const json::value* one = s.if_contains("const")) {
    EXPECT_EQ(value, *one) << where;
  }
  if (const json::value* words = s.if_contains("enum")) {
    EXPECT_NE(std::find(words->as_array().begin(), words->as_array().end(), value), words->as_array().end()) << where;
  }
  if (value.is_array() && s.contains("items"))
    for (const json::value& item : value.get_array()) expect_described(item, s.at("items"), where + "[]");
  if (!value.is_object() || !s.contains("properties")) return;
  const json::object& described = s.at("properties").as_object();
  for (const auto& [key, item] : value.get_object()) {
    const std::string path = where + "." + std::string(key);
    if (described.contains(key))
      expect_described(item, described.at(key), path);
    else
      ADD_FAILURE() << path << " is not described";
  }
  if (const json::value* required = s.if_contains("required")) {
    for (const json::value& key : required->as_array())
      EXPECT_TRUE(value.get_object().contains(key.as_string())) << where << " lacks " << key;
  }
}
void expect_described(const std::string& answer, const char* schema) {
  expect_described(json::parse(answer), json::object{{"$ref", "#/components/schemas/" + std::string(schema)}}, schema);
}

TEST(OpenApi, AnswersAreAsDescribed) {
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  const ApiDefaults defaults{.context = 4096, .vocab_size = 400, .tool_format = ToolFormat::kHermes};
  Completion completion{.text = "ab",
                        .token_ids = {97, 98},
                        .logprobs = {{.token = 97, .logprob = -1, .rank = 1, .top = {{97, -1.0F}}}, {.token = 98}},
                        .finish = FinishReason::kStop,
                        .prompt_token_ids = {112, 113},
                        .prompt_tokens = 2,
                        .cached_tokens = 1,
                        .embedding = {1, 0}};
  const auto answer = [&](const GenerateRequest& request) {
    return AnswerFormatter(request, "id", 7, "sql", tokenizer.get(), ToolFormat::kHermes).response({completion});
  };
  for (const char* more :
       {"", R"(, "logprobs": true, "top_logprobs": 1, "return_token_ids": true, "prompt_logprobs": 1)",
        R"(, "tools": [{"type": "function", "function": {"name": "f"}}])"}) {
    const auto chat =
        parse_chat_request(fmt::format(R"({{"messages": [{{"role": "user", "content": "q"}}]{}}})", more), defaults);
    ASSERT_TRUE(chat.ok()) << chat.error.message;
    expect_described(answer(*chat.value), "ChatResponse");
    completion.text = R"(<tool_call>{"name": "f", "arguments": {}}</tool_call>)";
    if (chat.value->tools_allowed) expect_described(answer(*chat.value), "ChatResponse");
    completion.text = "ab";
  }
  for (const char* more : {"", R"(, "logprobs": 1, "echo": true, "return_token_ids": true, "prompt_logprobs": 1)"}) {
    const auto text = parse_completion_request(fmt::format(R"({{"prompt": "pq"{}}})", more), defaults);
    ASSERT_TRUE(text.ok()) << text.error.message;
    expect_described(answer(*text.value), "CompletionResponse");
  }
  for (const char* text : {"ab", R"(<tool_call>{"name": "f", "arguments": {}}</tool_call>)"}) {
    completion.text = text;
    completion.reasoning = "hm";
    const auto items = parse_responses_request(
        R"({"input": "q", "include": ["message.output_text.logprobs"], "tools": [{"type": "function", "name": "f"}]})",
        defaults);
    ASSERT_TRUE(items.ok()) << items.error.message;
    expect_described(answer(*items.value), "ResponsesResponse");
    const auto blocks = parse_messages_request(
        R"({"max_tokens": 9, "messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f", "input_schema": {}}]})",
        defaults);
    ASSERT_TRUE(blocks.ok()) << blocks.error.message;
    expect_described(answer(*blocks.value), "MessagesResponse");
  }
  completion.text = "ab";
  completion.reasoning.clear();
  for (const bool base64 : {false, true})
    expect_described(format_embeddings({.inputs = {{}}, .base64 = base64}, "sql", {completion}), "EmbeddingResponse");
  expect_described(format_tokenize({.return_token_strs = true}, {97}, 4096, *tokenizer), "TokenizeResponse");
  expect_described(format_detokenize("a"), "DetokenizeResponse");
  expect_described(format_error({.message = "m"}), "Error");
  const AdapterSnapshot adapter{.name = "sql", .version = 1, .tier = "host", .targets = {"q_proj"}};
  expect_described(format_adapters({adapter}), "AdapterList");
  expect_described(json_text(json::object{{"object", "list"}, {"data", {key_json({}, 0)}}}), "KeyList");
  expect_described(json_text(json::object{{"object", "list"}, {"data", {tenant_json({.name = "t"})}}}), "TenantList");
  expect_described(format_status({.adapters = {adapter}, .tenants = {{.name = "t"}}}), "Status");
}

}  // namespace
}  // namespace lk
