// SPDX-License-Identifier: Apache-2.0
// Requests of the OpenAI API: for each field a good, a boundary and a bad value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <functional>
#include <limits>

#include "lk/serve/openai/openai.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ApiDefaults defaults() {
  return {.context = 1000, .vocab_size = 500, .generation = {}, .tool_format = ToolFormat::kHermes};
}

std::string chat_body(const std::string& fields) {
  return R"({"messages": [{"role": "user", "content": "hi"}])" + (fields.empty() ? "" : ", " + fields) + "}";
}
std::string completion_body(const std::string& fields) {
  return R"({"prompt": "hi")" + (fields.empty() ? "" : ", " + fields) + "}";
}

ApiResult<GenerateRequest> chat(const std::string& fields) { return parse_chat_request(chat_body(fields), defaults()); }
ApiResult<GenerateRequest> completion(const std::string& fields) {
  return parse_completion_request(completion_body(fields), defaults());
}

struct Good {
  const char* fields;
  std::function<bool(const GenerateRequest&, const TextRequest&)> check;
};
using G = const GenerateRequest&;
using T = const TextRequest&;

const std::vector<Good>& common_good() {
  static const std::vector<Good> cases = {
      {R"("model": "sql")", [](G g, T) { return g.model == "sql"; }},
      {R"("model": null)", [](G g, T) { return g.model.empty(); }},
      {R"("user": "u", "cache_salt": "s")", [](G g, T) { return g.user == "u" && g.cache_salt == "s"; }},
      {R"("n": 16)", [](G g, T) { return g.n == 16; }},
      {R"("n": null)", [](G g, T) { return g.n == 1; }},
      {R"("n": 2.0, "best_of": 2)", [](G g, T) { return g.n == 2; }},
      {R"("stream": true)", [](G g, T) { return g.stream && !g.include_usage && !g.continuous_usage; }},
      {R"("stream": true, "stream_options": {"include_usage": true})",
       [](G g, T) { return g.include_usage && !g.continuous_usage; }},
      {R"("stream": true, "stream_options": {"continuous_usage_stats": true})",
       [](G g, T) { return g.continuous_usage; }},
      {R"("stream": true, "stream_options": null)", [](G g, T) { return g.stream; }},
      {R"("temperature": 0)", [](G, T t) { return t.sampling.temperature == 0; }},
      {R"("temperature": 100)", [](G, T t) { return t.sampling.temperature == 100; }},
      {R"("temperature": null)", [](G, T t) { return t.sampling.temperature == 1; }},
      {R"("top_p": 1)", [](G, T t) { return t.sampling.top_p == 1; }},
      {R"("top_p": 1e-9)", [](G, T t) { return t.sampling.top_p == 1e-9; }},
      {R"("min_p": 1)", [](G, T t) { return t.sampling.min_p == 1; }},
      {R"("top_k": -1)", [](G, T t) { return t.sampling.top_k == 0; }},
      {R"("top_k": 7)", [](G, T t) { return t.sampling.top_k == 7; }},
      {R"("presence_penalty": -2, "frequency_penalty": 2)",
       [](G, T t) { return t.sampling.presence_penalty == -2 && t.sampling.frequency_penalty == 2; }},
      {R"("repetition_penalty": 0.5)", [](G, T t) { return t.sampling.repetition_penalty == 0.5; }},
      {R"("seed": -9223372036854775808)", [](G, T t) { return t.sampling.seed == uint64_t{1} << 63; }},
      {R"("seed": 9223372036854775807)", [](G, T t) { return t.sampling.seed == (uint64_t{1} << 63) - 1; }},
      {R"("seed": -1)", [](G, T t) { return t.sampling.seed == ~uint64_t{0}; }},
      {R"("logit_bias": {"0": -100, "499": 100})", [](G, T t) { return t.sampling.logit_bias.size() == 2; }},
      {R"("stop": "x")", [](G, T t) { return t.stop == std::vector<std::string>{"x"}; }},
      {R"("stop": ["x", "é"])",
       [](G, T t) {
         return t.stop == std::vector<std::string>{"x", "é"};
       }},
      {R"("stop": [])", [](G, T t) { return t.stop.empty(); }},
      {R"("stop_token_ids": [0, 499])",
       [](G, T t) {
         return t.stop_token_ids == std::vector<int32_t>{0, 499};
       }},
      {R"("allowed_token_ids": [3])", [](G, T t) { return t.allowed_token_ids == std::vector<int32_t>{3}; }},
      {R"("min_tokens": 2, "max_tokens": 2)", [](G, T t) { return t.min_tokens == 2 && t.max_tokens == 2; }},
      {R"("max_tokens": 9223372036854775807)",
       [](G, T t) { return t.max_tokens > 1'000'000 && t.max_tokens < int64_t{1} << 50; }},
      {R"("truncate_prompt_tokens": 1)", [](G, T t) { return t.truncate_prompt_tokens == 1; }},
      {R"("include_stop_str_in_output": true, "ignore_eos": true, "skip_special_tokens": false)",
       [](G, T t) { return t.include_stop_string && t.ignore_eos && !t.skip_special_tokens; }},
      {R"("return_token_ids": true, "return_tokens_as_token_ids": true)",
       [](G g, T) { return g.return_token_ids && g.tokens_as_ids; }},
      {R"("prompt_logprobs": 0)", [](G g, T t) { return g.prompt_logprobs && t.sampling.num_prompt_logprobs == 0; }},
      {R"("prompt_logprobs": null)",
       [](G g, T t) { return !g.prompt_logprobs && t.sampling.num_prompt_logprobs == -1; }},
      {R"("add_special_tokens": true)", [](G, T t) { return t.add_special_tokens; }},
      {R"("response_format": {"type": "text"})", [](G g, T) { return !g.grammar; }},
      {R"("response_format": {"type": "json_object"})",
       [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kJsonObject; }},
      {R"("response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": {"type": "integer"}}})",
       [](G g, T) {
         return g.grammar->kind == GrammarSpec::Kind::kJsonSchema && g.grammar->text == R"({"type":"integer"})";
       }},
      {R"("guided_json": {"type": "string"})", [](G g, T) { return g.grammar->text == R"({"type":"string"})"; }},
      {R"("guided_json": "{\"type\": \"string\"}")", [](G g, T) { return g.grammar->text == R"({"type": "string"})"; }},
      {R"("guided_regex": "a+")",
       [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kRegex && g.grammar->text == "a+"; }},
      {R"("guided_choice": ["a", "b"])",
       [](G g, T) {
         return g.grammar->choices == std::vector<std::string>{"a", "b"};
       }},
      {R"("guided_grammar": "root ::= \"a\"")", [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kEbnf; }},
      {R"("structured_outputs": {"json": {"type": "null"}})",
       [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kJsonSchema; }},
      {R"("structured_outputs": {"regex": "b"})", [](G g, T) { return g.grammar->text == "b"; }},
      {R"("structured_outputs": {"choice": ["x"]})", [](G g, T) { return g.grammar->choices.size() == 1; }},
      {R"("structured_outputs": {"grammar": "g"})", [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kEbnf; }},
      {R"("suffix": "", "functions": [], "function_call": null, "priority": 0, "bad_words": [], "use_beam_search": false)",
       [](G g, T) { return g.ignored_fields.empty(); }},
      {R"("zorp": 1, "metadata": {}, "store": true)",
       [](G g, T) {
         return g.ignored_fields == std::vector<std::string>{"store", "metadata", "zorp"};
       }},
      // As other servers call it.
      {R"("regex": "a")", [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kRegex; }},
      {R"("ebnf": "g")", [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kEbnf; }},
      {R"("grammar": "g")", [](G g, T) { return g.grammar->kind == GrammarSpec::Kind::kEbnf; }},
      {R"("json_schema": {"type": "null"})", [](G g, T) { return g.grammar->text == R"({"type":"null"})"; }},
      {R"("response_format": {"type": "json_object", "schema": {"type": "null"}})",
       [](G g, T) { return g.grammar->text == R"({"type":"null"})" && g.grammar_field == "response_format.schema"; }},
      {R"("response_format": {"type": "json_schema", "schema": {"type": "null"}, "mine": 1})",
       [](G g, T) {
         return g.grammar->kind == GrammarSpec::Kind::kJsonSchema &&
                g.ignored_fields == std::vector<std::string>{"response_format.mine"};
       }},
      {R"("no_stop_trim": true)", [](G, T t) { return t.include_stop_string; }},
      {R"("n_predict": 7)", [](G, T t) { return t.max_tokens == 7; }},
      {R"("n_predict": 7, "max_tokens": 5)", [](G, T t) { return t.max_tokens == 5; }},
      {R"("n_predict": -1)", [](G g, T t) { return t.max_tokens > 1'000'000 && !g.says_length; }},
      {R"("truncate_prompt_tokens": -1, "truncation_side": "right")",
       [](G, T t) { return t.truncate_prompt_tokens == -1 && t.truncate_right; }},
      {R"("bad_words": ["a", "b c"])", [](G, T t) { return t.bad_words.size() == 2; }},
      {R"("priority": -5)", [](G g, T) { return g.priority == -5; }},
      // What means "off" to those who made it.
      {R"("repeat_penalty": 1.0, "typical_p": 1, "top_n_sigma": -1, "mirostat": 0, "dry_multiplier": 0.0, "length_penalty": 1)",
       [](G g, T) { return g.ignored_fields.empty(); }},
  };
  return cases;
}

struct Bad {
  std::string fields;
  std::string param;    // "" = the message must hold `message`
  std::string message;  // substring
};

std::string repeat(const std::string& item, int count) {
  std::string list = "[";
  for (int i = 0; i < count; ++i) list += (i ? "," : "") + item;
  return list + "]";
}

std::vector<Bad> common_bad() {
  std::string biases = "{";
  for (int i = 0; i < 1025; ++i) biases += fmt::format("{}\"{:05}\":1", i ? "," : "", i % 500 * 100 + i / 500);
  return {
      {R"("model": 1)", "model", "must be a string, is a number"},
      {R"("model": ")" + std::string(257, 'm') + "\"", "model", "at most 256"},
      {R"("user": {})", "user", "is an object"},
      {R"("cache_salt": "")", "cache_salt", "empty"},
      {R"("n": 0)", "n", "from 1 to 16"},
      {R"("n": 17)", "n", "from 1 to 16, is 17"},
      {R"("n": 1.5)", "n", "an integer"},
      {R"("n": true)", "n", "is a boolean"},
      {R"("n": 99999999999)", "n", "from 1 to 16"},
      {R"("n": 9223372036854775808)", "n", "integer"},
      {R"("n": 2, "best_of": 3)", "best_of", "equal"},
      {R"("stream": "yes")", "stream", "true or false"},
      {R"("stream_options": {})", "stream_options", "only allowed when \"stream\""},
      {R"("stream": true, "stream_options": [])", "stream_options", "an object"},
      {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options.include_usage", "true or false"},
      {R"("temperature": -0.1)", "temperature", "at least 0"},
      {R"("temperature": 100.1)", "temperature", "at most 100"},
      {R"("temperature": "hot")", "temperature", "a number, is a string"},
      {R"("top_p": 0)", "top_p", "above 0"},
      {R"("top_p": 1.01)", "top_p", "at most 1"},
      {R"("min_p": -0.5)", "min_p", "at least 0"},
      {R"("top_k": -2)", "top_k", "at least -1"},
      {R"("presence_penalty": 2.1)", "presence_penalty", "at most 2"},
      {R"("frequency_penalty": -2.1)", "frequency_penalty", "at least -2"},
      {R"("repetition_penalty": 1e-31)", "repetition_penalty", "at least 0.01"},
      {R"("seed": 9223372036854775808)", "seed", "integer"},
      {R"("seed": "1")", "seed", "is a string"},
      {R"("logit_bias": [1])", "logit_bias", "an object"},
      {R"("logit_bias": {"500": 1})", "logit_bias", "token ids below 500"},
      {R"("logit_bias": {"x": 1})", "logit_bias", "\"x\""},
      {R"("logit_bias": {"1": 101})", "logit_bias", "from -100 to 100"},
      {R"("logit_bias": {"1": "2"})", "logit_bias", "number"},
      {R"("logit_bias": )" + biases + "}", "logit_bias", "1025 entries"},
      {R"("stop": "")", "stop", "0 bytes"},
      {R"("stop": )" + repeat("\"a\"", 17), "stop", "17 strings"},
      {R"("stop": ")" + std::string(257, 's') + "\"", "stop", "257 bytes"},
      {R"("stop": ["a", 1])", "stop", "a list of strings"},
      {R"("stop_token_ids": [500])", "stop_token_ids", "outside the vocabulary of 500"},
      {R"("stop_token_ids": [-1])", "stop_token_ids", "token id -1"},
      {R"("stop_token_ids": 5)", "stop_token_ids", "a list"},
      {R"("stop_token_ids": )" + repeat("1", 1025), "stop_token_ids", "at most 1024"},
      {R"("allowed_token_ids": [])", "allowed_token_ids", "not be empty"},
      {R"("allowed_token_ids": ["a"])", "allowed_token_ids", "entry 0 is a string"},
      {R"("min_tokens": -1)", "min_tokens", "at least 0"},
      {R"("min_tokens": 3, "max_tokens": 2)", "min_tokens", "larger than"},
      {R"("max_tokens": -1)", "max_tokens", "at least"},
      {R"("truncate_prompt_tokens": 0)", "truncate_prompt_tokens", "at least 1"},
      {R"("include_stop_str_in_output": 1)", "include_stop_str_in_output", "true or false"},
      {R"("ignore_eos": "")", "ignore_eos", "true or false"},
      {R"("skip_special_tokens": 0)", "skip_special_tokens", "true or false"},
      {R"("echo": "a")", "echo", "true or false"},
      {R"("add_special_tokens": 1)", "add_special_tokens", "true or false"},
      {R"("return_token_ids": 1)", "return_token_ids", "true or false"},
      {R"("prompt_logprobs": 21)", "prompt_logprobs", "from 0 to 20"},
      {R"("prompt_logprobs": 1, "stream": true)", "prompt_logprobs", "stream"},
      {R"("response_format": "json")", "response_format", "an object"},
      {R"("response_format": {})", "response_format.type", "missing"},
      {R"("response_format": {"type": "xml"})", "response_format.type", "one of text, json_object, json_schema"},
      {R"("response_format": {"type": "json_schema"})", "response_format.json_schema", "missing"},
      {R"("response_format": {"type": "json_schema", "json_schema": {}})", "response_format.json_schema.schema",
       "missing"},
      {R"("response_format": {"type": "json_schema", "json_schema": {"schema": 1}})",
       "response_format.json_schema.schema", "a JSON schema"},
      {R"("guided_json": "{")", "guided_json", "not a JSON schema"},
      {R"("guided_json": "[1]")", "guided_json", "a JSON schema"},
      {R"("guided_regex": ")" + std::string((64 << 10) + 1, 'a') + "\"", "guided_regex", "at most 65536"},
      {R"("guided_choice": [])", "guided_choice", "not empty"},
      {R"("guided_choice": ")" + std::string(64 << 10, 'a') + "\", \"guided_regex\": \"a\"", "guided_choice",
       "second constraint"},
      {R"("guided_grammar": 1)", "guided_grammar", "a string"},
      {R"("guided_regex": "a", "response_format": {"type": "json_object"})", "guided_regex", "second constraint"},
      {R"("structured_outputs": {"structural_tag": "x"})", "structured_outputs.structural_tag", "not supported"},
      {R"("structured_outputs": {"regex": "a", "choice": ["b"]})", "structured_outputs.choice", "second constraint"},
      {R"("suffix": "end")", "suffix", "not supported"},
      {R"("functions": [{}])", "functions", "use \"tools\""},
      {R"("function_call": "auto")", "function_call", "use \"tool_choice\""},
      {R"("chat_template": "{{ x }}")", "chat_template", "may not bring templates"},
      {R"("lora_path": "/p")", "lora_path", "name the adapter in \"model\""},
      {R"("bad_words": [""])", "bad_words", "1 to 256"},
      {R"("priority": "high")", "priority", "an integer"},
      {R"("repeat_penalty": 1.1)", "repeat_penalty", "not supported"},
      {R"("typical_p": 0.9)", "typical_p", "not supported"},
      {R"("stop_regex": "a")", "stop_regex", "not supported"},
      {R"("input_ids": [1])", "input_ids", "not supported"},
      {R"("vllm_xargs": {"a": 1})", "vllm_xargs", "not supported"},
      {R"("n_predict": -2)", "n_predict", "-1"},
      {R"("truncation_side": "middle")", "truncation_side", "left"},
      {R"("regex": "a", "json_schema": {}, "guided_json": {})", "json_schema", "second constraint"},
      {R"("response_format": {"type": "text", "schema": {}})", "response_format.schema", "text"},
      {R"("response_format": {"type": "json_object", "json_schema": {"schema": {}}})", "response_format.json_schema",
       "json_schema"},
      {R"("temperature": NaN)", "", "not valid JSON"},
      {R"("temperature": Infinity)", "", "not valid JSON"},
      {R"("temperature": 1e999)", "", "out of the range of a double"},
      {R"("seed": 99999999999999999999)", "", "out of the range of 64 bits"},
      {R"("n": 1, "n": 2)", "", "the key \"n\" is given twice"},
      {R"("logit_bias": {"1": 1, "1": 2})", "", "the key \"1\" is given twice"},
      {"\"user\": \"\xff\"", "", "invalid UTF-8 at byte "},
      {R"("user": "\ud800")", "", "not valid JSON"},
      {R"("documents": )" + std::string(64, '[') + std::string(64, ']'), "", "64 levels"},
  };
}

void expect_bad(const ApiResult<GenerateRequest>& parsed, const Bad& bad) {
  ASSERT_FALSE(parsed.ok()) << bad.fields.substr(0, 200);
  EXPECT_EQ(parsed.error.status, 400) << bad.fields.substr(0, 200);
  EXPECT_EQ(parsed.error.param, bad.param) << parsed.error.message;
  EXPECT_THAT(parsed.error.message, HasSubstr(bad.message));
  EXPECT_EQ(parsed.error.type, "invalid_request_error");
}

TEST(OpenAiParse, CommonFieldsOfBothEndpoints) {
  for (const Good& good : common_good())
    for (const bool is_chat : {true, false}) {
      const auto parsed = is_chat ? chat(good.fields) : completion(good.fields);
      ASSERT_TRUE(parsed.ok()) << good.fields << ": " << parsed.error.message;
      EXPECT_TRUE(good.check(*parsed.value, parsed.value->prompts.at(0))) << good.fields << " chat: " << is_chat;
    }
}

TEST(OpenAiParse, BadFieldsAreNamed) {
  for (const Bad& bad : common_bad()) {
    expect_bad(chat(bad.fields), bad);
    expect_bad(completion(bad.fields), bad);
  }
}

TEST(OpenAiParse, BodiesThatAreNoObject) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "ends too early"},       {"[1]", "must be a JSON object"}, {"{", "ends too early"},
      {"{} x", "follows the JSON"}, {"{}{}", "follows the JSON"},     {"null", "is null"},
      {"{\"a\":}", "syntax error"}, {"{'a':1}", "syntax error"},      {"{} \n", "messages"}};
  for (const auto& [body, message] : cases) {
    const auto parsed = parse_chat_request(body, defaults());
    ASSERT_FALSE(parsed.ok()) << body;
    EXPECT_THAT(parsed.error.message, HasSubstr(message)) << body;
  }
  const auto many = parse_completion_request("{\"prompt\":" + repeat("1", (1 << 20) + 1) + "}", defaults());
  ASSERT_FALSE(many.ok());
  EXPECT_THAT(many.error.message, HasSubstr("more than 1048576 values"));
}

TEST(OpenAiParse, DefaultsAreThoseOfTheModelThenOfTheApi) {
  ApiDefaults own = defaults();
  own.generation.temperature = 0.6;
  own.generation.top_p = 0.9;
  own.generation.top_k = 20;
  own.generation.repetition_penalty = 1.05;
  const auto silent = parse_chat_request(chat_body(""), own);
  ASSERT_TRUE(silent.ok());
  const SamplingParams& s = silent.value->prompts[0].sampling;
  EXPECT_EQ(s.temperature, 0.6);
  EXPECT_EQ(s.top_p, 0.9);
  EXPECT_EQ(s.top_k, 20);
  EXPECT_EQ(s.repetition_penalty, 1.05);
  EXPECT_EQ(s.num_logprobs, -1);
  const auto said = parse_chat_request(chat_body(R"("temperature": 1.0, "top_k": -1)"), own);
  EXPECT_EQ(said.value->prompts[0].sampling.temperature, 1.0);
  EXPECT_EQ(said.value->prompts[0].sampling.top_k, 0);
  EXPECT_EQ(completion("").value->prompts[0].max_tokens, 16);
  EXPECT_EQ(completion(R"("max_tokens": null)").value->prompts[0].max_tokens, 16);
  EXPECT_GT(chat("").value->prompts[0].max_tokens, 1'000'000);
  EXPECT_FALSE(chat("").value->prompts[0].add_special_tokens);
  EXPECT_TRUE(completion("").value->prompts[0].add_special_tokens);
  // Without a seed each request draws its own.
  EXPECT_NE(chat("").value->prompts[0].sampling.seed, chat("").value->prompts[0].sampling.seed);
}

TEST(OpenAiParse, ChatLogprobsAndLimits) {
  const auto logprobs = [](const std::string& fields) { return chat(fields).value->prompts[0].sampling.num_logprobs; };
  EXPECT_EQ(logprobs(R"("logprobs": true)"), 0);
  EXPECT_EQ(logprobs(R"("logprobs": true, "top_logprobs": 20)"), 20);
  EXPECT_EQ(logprobs(R"("logprobs": false, "top_logprobs": 0)"), -1);
  EXPECT_EQ(chat(R"("max_tokens": 5, "max_completion_tokens": 6)").value->prompts[0].max_tokens, 6);
  for (const Bad& bad : std::vector<Bad>{
           {R"("logprobs": 1)", "logprobs", "true or false"},
           {R"("top_logprobs": 2)", "top_logprobs", "needs \"logprobs\""},
           {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs", "from 0 to 20"},
           {R"("max_tokens": 0)", "max_tokens", "at least 1"},
           {R"("max_completion_tokens": 0)", "max_completion_tokens", "at least 1"},
           {R"("modalities": ["text", "audio"])", "modalities", "text"},
           {R"("continue_final_message": true, "add_generation_prompt": true)", "continue_final_message", "exclude"},
           {R"("chat_template_kwargs": {"tools": null})", "chat_template_kwargs", "may not set \"tools\""},
           {R"("documents": [1])", "documents", "a list of objects"}})
    expect_bad(chat(bad.fields), bad);
  const auto open = chat(
      R"("continue_final_message": true, "chat_template_kwargs": {"enable_thinking": false, "l": [1, {"a": null}]}, "reasoning_effort": "low")");
  ASSERT_TRUE(open.ok()) << open.error.message;
  const TextRequest& text = open.value->prompts[0];
  EXPECT_TRUE(text.continue_final_message);
  EXPECT_FALSE(text.add_generation_prompt);
  EXPECT_EQ(text.template_variables.at("enable_thinking").as_bool(), false);
  EXPECT_EQ(text.template_variables.at("l"), boost::json::parse(R"([1, {"a": null}])"));
  EXPECT_EQ(chat(R"("chat_template": "rag")").value->prompts[0].template_name, "rag");
  EXPECT_EQ(text.template_variables.at("reasoning_effort").as_string(), "low");
}

TEST(OpenAiParse, MessagesAreBroughtIntoTheFormOfTemplates) {
  const auto parsed = parse_chat_request(R"({"messages": [
      {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
      {"role": "user", "content": "q", "x": 1},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1]}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "r"},
      {"role": "assistant", "refusal": "no"}]})",
                                         defaults());
  ASSERT_TRUE(parsed.ok()) << parsed.error.message;
  EXPECT_EQ(boost::json::value(parsed.value->prompts[0].messages), boost::json::parse(R"([
      {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
      {"role": "user", "content": "q"},
      {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1]}}, "id": "c1"}]},
      {"role": "tool", "content": "r", "tool_call_id": "c1"}, {"role": "assistant", "content": "no"}])"));
  EXPECT_THAT(parsed.value->ignored_fields, ElementsAre("messages[1].x"));
}

// Broken calls, nothing said, what was thought: a conversation holds what a model made of it.
TEST(OpenAiParse, AgentHistoryIsTakenBack) {
  const auto message = [](const std::string& fields) {
    const auto parsed = parse_chat_request(R"({"messages": [{"role": "assistant", )" + fields + "}]}", defaults());
    return parsed.ok() ? boost::json::serialize(parsed.value->prompts[0].messages[0]) : parsed.error.message;
  };
  const auto arguments = [&](const std::string& given) {
    const std::string shown =
        message(R"("content": null, "tool_calls": [{"function": {"name": "f", "arguments": )" + given + "}}]");
    const std::string_view key = R"("arguments":)";
    const size_t at = shown.find(key);
    return at == shown.npos ? shown : shown.substr(at + key.size(), shown.size() - at - key.size() - 4);
  };
  EXPECT_EQ(arguments(R"("{\"a\": [1]}")"), R"({"a":[1]})");
  EXPECT_EQ(arguments(R"({"a": 1})"), R"({"a":1})");
  EXPECT_EQ(arguments(R"("{\"a\": \"b")"), R"("{\"a\": \"b")");
  EXPECT_EQ(arguments(R"("[1, 2]")"), "[1,2]");
  EXPECT_EQ(arguments("[1, 2]"), "[1,2]");
  for (const char* nothing : {"null", "\"\"", "\"  \"", "\"null\"", "\"{}\"", "{}"})
    EXPECT_EQ(arguments(nothing), "{}");
  EXPECT_EQ(arguments("\"5\""), "\"5\"");
  EXPECT_THAT(arguments("5"), HasSubstr("must be"));
  EXPECT_EQ(message(R"("content": null)"), R"({"role":"assistant","content":""})");
  EXPECT_EQ(message(R"("content": null, "reasoning": "hm", "tool_calls": null)"),
            R"({"role":"assistant","reasoning":"hm","content":""})");
  EXPECT_EQ(message(R"("reasoning_content": "hm", "function_call": null, "audio": null, "refusal": null)"),
            R"({"role":"assistant","reasoning_content":"hm","content":""})");
  EXPECT_EQ(message(R"("content": [{"type": "refusal", "refusal": "no"}, {"type": "text", "text": "x", "k": 1}])"),
            R"({"role":"assistant","content":[{"type":"text","text":"no"},{"type":"text","text":"x","k":1}]})");
}

TEST(OpenAiParse, ToolFormatIsThatOfTheTemplateThatShowsThem) {
  TokenizerConfig config;
  config.templates = {{"default", "{{ tools }}[TOOL_CALLS]", "t"}, {"rag", "{{ messages }}", "t"}};
  ApiDefaults own = defaults();
  own.templates = ChatTemplates::parse(config).value();
  const auto format = [&](const std::string& fields) {
    const auto parsed =
        parse_chat_request(chat_body(R"("tools": [{"type": "function", "function": {"name": "f"}}])" + fields), own);
    EXPECT_TRUE(parsed.ok()) << parsed.error.message;
    return parsed.value->tool_format;
  };
  EXPECT_EQ(format(""), ToolFormat::kMistral);
  EXPECT_EQ(format(R"(, "chat_template": "rag")"), ToolFormat::kHermes) << "what the operator says where none is known";
  config.templates.push_back({"tool_use", "{{ tools }}<|python_tag|>", "t"});
  own.templates = ChatTemplates::parse(config).value();
  EXPECT_EQ(format(""), ToolFormat::kLlama3);
}

TEST(OpenAiParse, TheModelsDefaultsCountWhereARequestIsSilent) {
  ApiDefaults own_defaults = defaults();
  own_defaults.generation.temperature = 0.25;
  own_defaults.generation.presence_penalty = 1.5;
  own_defaults.generation.max_tokens = 9;
  own_defaults.generation.min_tokens = 3;
  own_defaults.generation.stop = {"END"};
  const auto own = parse_chat_request(chat_body(R"("model": "own")"), own_defaults);
  ASSERT_TRUE(own.ok());
  const TextRequest& text = own.value->prompts[0];
  EXPECT_EQ(text.sampling.temperature, 0.25);
  EXPECT_EQ(text.sampling.presence_penalty, 1.5);
  EXPECT_EQ(text.max_tokens, 9);
  EXPECT_EQ(text.min_tokens, 3);
  EXPECT_THAT(text.stop, ElementsAre("END"));
  // The request's word counts more, and the model's minimum gives way to it.
  const auto said =
      parse_chat_request(chat_body(R"("max_tokens": 2, "stop": [], "presence_penalty": 0)"), own_defaults);
  ASSERT_TRUE(said.ok()) << said.error.message;
  EXPECT_EQ(said.value->prompts[0].max_tokens, 2);
  EXPECT_EQ(said.value->prompts[0].min_tokens, 2);
  EXPECT_TRUE(said.value->prompts[0].stop.empty());
  EXPECT_EQ(said.value->prompts[0].sampling.presence_penalty, 0);
  EXPECT_EQ(parse_completion_request(completion_body(""), own_defaults).value->prompts[0].max_tokens, 16)
      << "as OpenAI's";
}

TEST(OpenAiParse, BadMessagesAreNamed) {
  const auto call = [](const std::string& body) { return R"([{"role": "assistant", "tool_calls": [)" + body + "]}]"; };
  const std::tuple<std::string, std::string, std::string> cases[] = {
      {"[]", "messages", "at least one"},
      {"\"hi\"", "messages", "a list"},
      {"[1]", "messages[0]", "an object"},
      {R"([{"content": "a"}])", "messages[0].role", "missing"},
      {R"([{"role": "user"}])", "messages[0].content", "missing"},
      {R"([{"role": "assistant"}])", "messages[0].content", "missing"},
      {R"([{"role": "user", "content": 1}])", "messages[0].content", "a string or a list"},
      {R"([{"role": "user", "content": ["a"]}])", "messages[0].content[0]", "an object"},
      {R"([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])", "messages[0].content[0].type",
       "image_url"},
      {R"([{"role": "user", "content": [{"type": "text"}]}])", "messages[0].content[0].text", "a string"},
      {R"([{"role": "function", "content": "a"}])", "messages[0].role", "deprecated"},
      {R"([{"role": "assistant", "content": "", "function_call": {"name": "f"}}])", "messages[0].function_call",
       "tool_calls"},
      {R"([{"role": "user", "content": "a", "tool_calls": [{}]}])", "messages[0].tool_calls", "assistant"},
      {call("1"), "messages[0].tool_calls[0]", "an object"},
      {call("{}"), "messages[0].tool_calls[0].function", "missing"},
      {call(R"({"function": {}})"), "messages[0].tool_calls[0].function.name", "missing"},
      {call(R"({"function": {"name": "f", "arguments": 5}})"), "messages[0].tool_calls[0].function.arguments",
       "JSON object"},
      {call(R"({"type": "x", "function": {"name": "f"}})"), "messages[0].tool_calls[0].type", "one of function"},
  };
  for (const auto& [messages, param, message] : cases) {
    const auto parsed = parse_chat_request("{\"messages\": " + messages + "}", defaults());
    ASSERT_FALSE(parsed.ok()) << messages;
    EXPECT_EQ(parsed.error.param, param) << parsed.error.message;
    EXPECT_THAT(parsed.error.message, HasSubstr(message));
  }
}

TEST(OpenAiParse, PromptsInEveryForm) {
  const auto prompts = [](const std::string& prompt) {
    return parse_completion_request("{\"prompt\": " + prompt + "}", defaults());
  };
  EXPECT_EQ(prompts("\"a\"").value->prompts[0].prompt, "a");
  EXPECT_EQ(prompts(R"(["a", "b"])").value->prompts[1].prompt, "b");
  EXPECT_EQ(prompts("[1, 2]").value->prompts[0].token_ids, (std::vector<int32_t>{1, 2}));
  const auto many = prompts("[[1], [2, 499]]");
  EXPECT_EQ(many.value->prompts[1].token_ids, (std::vector<int32_t>{2, 499}));
  EXPECT_EQ(many.value->prompts.size(), 2u);
  EXPECT_EQ(prompts(repeat("\"a\"", 128)).value->prompts.size(), 128u);
  const std::tuple<std::string, std::string, std::string> bad[] = {{"null", "prompt", "missing"},
                                                                   {"\"\"", "prompt", "empty"},
                                                                   {"[]", "prompt", "empty"},
                                                                   {"[\"\"]", "prompt[0]", "empty"},
                                                                   {"[[]]", "prompt[0]", "empty"},
                                                                   {"1", "prompt", "string or a list"},
                                                                   {"[500]", "prompt", "outside"},
                                                                   {"[[1], [-1]]", "prompt[1]", "-1"},
                                                                   {"[1, \"a\"]", "prompt", "entry 1 is a string"},
                                                                   {"[\"a\", 1]", "prompt[1]", "is a number"},
                                                                   {repeat("\"a\"", 129), "prompt", "at most 128"}};
  for (const auto& [prompt, param, message] : bad) {
    const auto parsed = prompts(prompt);
    ASSERT_FALSE(parsed.ok()) << prompt;
    EXPECT_EQ(parsed.error.param, param);
    EXPECT_THAT(parsed.error.message, HasSubstr(message));
  }
}

TEST(OpenAiParse, ScoringRequests) {
  const auto scoring = completion(R"("echo": true, "max_tokens": 0, "logprobs": 1)");
  ASSERT_TRUE(scoring.ok()) << scoring.error.message;
  EXPECT_EQ(scoring.value->prompts[0].max_tokens, 0);
  EXPECT_EQ(scoring.value->prompts[0].sampling.num_prompt_logprobs, 1);
  EXPECT_FALSE(scoring.value->prompt_logprobs);
  EXPECT_TRUE(scoring.value->echo);
  EXPECT_TRUE(completion(R"("max_tokens": 0, "prompt_logprobs": 2)").ok());
  expect_bad(completion(R"("max_tokens": 0)"), {"", "max_tokens", "echo"});
  expect_bad(completion(R"("logprobs": 21)"), {"", "logprobs", "from 0 to 20"});
  expect_bad(completion(R"("logprobs": true)"), {"", "logprobs", "an integer"});
}

constexpr const char* kTools =
    R"("tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters":
    {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "g"}}])";

TEST(OpenAiParse, ToolChoices) {
  const auto with = [](const std::string& fields) { return chat(std::string(kTools) + fields); };
  const auto automatic = with("");
  ASSERT_TRUE(automatic.ok()) << automatic.error.message;
  EXPECT_TRUE(automatic.value->tools_allowed);
  EXPECT_FALSE(automatic.value->tool_forced);
  EXPECT_TRUE(automatic.value->parallel_tool_calls);
  EXPECT_EQ(automatic.value->prompts[0].tools.size(), 2u);
  EXPECT_FALSE(automatic.value->prompts[0].skip_special_tokens);
  EXPECT_FALSE(with(R"(, "parallel_tool_calls": false)").value->parallel_tool_calls);
  const auto none = with(R"(, "tool_choice": "none")");
  EXPECT_TRUE(none.value->prompts[0].tools.empty());
  EXPECT_FALSE(none.value->tools_allowed);
  EXPECT_TRUE(none.value->prompts[0].skip_special_tokens);
  EXPECT_TRUE(with(R"(, "response_format": {"type": "json_object"})").value->tools_allowed);
  EXPECT_FALSE(with(R"(, "guided_json_object": true)").value->tools_allowed);
  const auto named = with(R"(, "tool_choice": {"type": "function", "function": {"name": "g"}})");
  ASSERT_TRUE(named.ok()) << named.error.message;
  EXPECT_TRUE(named.value->tool_forced);
  EXPECT_EQ(named.value->forced_tool, "g");
  EXPECT_EQ(named.value->grammar->text, R"({"type":"object","properties":{}})");
  const auto required = with(R"(, "tool_choice": "required")");
  ASSERT_TRUE(required.ok());
  EXPECT_TRUE(required.value->tool_forced);
  EXPECT_EQ(boost::json::parse(required.value->grammar->text), boost::json::parse(R"({"anyOf": [
      {"type": "object", "properties": {"name": {"const": "f"}, "arguments": {"$ref": "#/$defs/f0"}}, "required": ["name", "arguments"],
       "additionalProperties": false},
      {"type": "object", "properties": {"name": {"const": "g"}, "arguments": {"$ref": "#/$defs/f1"}}, "required": ["name", "arguments"],
       "additionalProperties": false}],
      "$defs": {"f0.X": {"type": "integer"}, "f0": {"type": "object", "properties": {"x": {"$ref": "#/$defs/f0.X"}}},
                "f1": {"type": "object", "properties": {}}}})"));
  EXPECT_TRUE(chat(R"("tools": null, "tool_choice": "auto")").ok());
}

// The grammar of a required call takes a call of any function, with arguments of its schema, and nothing else.
TEST(OpenAiParse, RequiredCallsFollowTheSchemas) {
  const auto parsed = chat(std::string(kTools) + R"(, "tool_choice": "required")");
  ASSERT_TRUE(parsed.ok());
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  const std::vector<int32_t> ends = {testing::kEndToken};
  const auto grammar =
      compile_grammar(*parsed.value->grammar, TokenVocabulary::create(*tokenizer, tokenizer->vocab_size(), ends));
  ASSERT_TRUE(grammar.ok()) << grammar.status().message();
  const auto accepts = [&](std::string_view text) {
    GrammarState state(*grammar);
    for (const int32_t token : testing::byte_tokens(text))
      if (!state.accept(token)) return false;
    return state.can_end();
  };
  EXPECT_TRUE(accepts(R"({"name": "f", "arguments": {"x": 12}})"));
  EXPECT_TRUE(accepts(R"({"name": "g", "arguments": {}})"));
  EXPECT_FALSE(accepts(R"({"name": "h", "arguments": {}})"));
  EXPECT_FALSE(accepts(R"({"name": "f", "arguments": {"x": "a"}})"));
  EXPECT_FALSE(accepts(R"({"name": "f"})"));
}

TEST(OpenAiParse, BadToolsAreNamed) {
  const auto tool = [](const std::string& function) {
    return R"("tools": [{"type": "function", "function": )" + function + "}]";
  };
  for (
      const Bad& bad : std::vector<Bad>{
          {R"("tools": {})", "tools", "a list"},
          {R"("tools": [1])", "tools[0]", "an object"},
          {R"("tools": [{"function": {"name": "f"}}])", "tools[0].type", "function"},
          {R"("tools": [{"type": "function"}])", "tools[0].function", "missing"},
          {tool(R"({"name": "a b"})"), "tools[0].function.name", "a-z"},
          {tool("{}"), "tools[0].function.name", "1 to 64"},
          {tool(R"({"name": ")" + std::string(65, 'f') + "\"}"), "tools[0].function.name", "at most 64"},
          {tool(R"({"name": "f", "parameters": []})"), "tools[0].function.parameters", "an object"},
          {R"("tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}])",
           "tools[1].function.name", "another tool"},
          {R"("tools": )" + repeat("1", 129), "tools", "at most 128"},
          {R"("tool_choice": "required")", "tool_choice", "needs \"tools\""},
          {tool(R"({"name": "f"})") + R"(, "tool_choice": "maybe")", "tool_choice", "one of none, auto, required"},
          {tool(R"({"name": "f"})") + R"(, "tool_choice": {"type": "function"})", "tool_choice.function", "missing"},
          {tool(R"({"name": "f"})") + R"(, "tool_choice": {"type": "function", "function": {"name": "h"}})",
           "tool_choice.function.name", "none of"},
          {tool(R"({"name": "f"})") + R"(, "tool_choice": "required", "guided_regex": "a")", "tool_choice",
           "second constraint"},
          {tool(R"({"name": "f"})") + R"(, "parallel_tool_calls": 1)", "parallel_tool_calls", "true or false"}})
    expect_bad(chat(bad.fields), bad);
}

TEST(OpenAiParse, ResumedAnswers) {
  const auto resume = [](const std::string& choices, const std::string& more = R"("stream": true, "n": 2)") {
    return more + R"(, "lorikeet_resume": {"id": "abc", "created": 12, "seed": 77, "digest": "d", "choices": )" +
           choices + "}";
  };
  for (const auto& good :
       {chat(resume(R"([{"tokens": [1, 499], "prompt_tokens": 9, "cached_tokens": 4}, {"tokens": [], "done": true}])")),
        completion(resume(
            R"([{"tokens": [1, 499], "prompt_tokens": 9, "cached_tokens": 4}, {"tokens": [], "done": true}])"))}) {
    ASSERT_TRUE(good.ok()) << good.error.message;
    const ResumedAnswer& resumed = good.value->resumed.value();
    EXPECT_EQ(resumed.id, "abc");
    EXPECT_EQ(resumed.created, 12);
    EXPECT_EQ(resumed.digest, "d");
    EXPECT_EQ(good.value->prompts[0].sampling.seed, 77u);
    ASSERT_EQ(resumed.choices.size(), 2u);
    EXPECT_THAT(resumed.choices[0].tokens, ElementsAre(1, 499));
    EXPECT_EQ(resumed.choices[0].prompt_tokens, 9);
    EXPECT_EQ(resumed.choices[0].cached_tokens, 4);
    EXPECT_TRUE(resumed.choices[0].begun() && !resumed.choices[0].done && resumed.choices[1].done);
  }
  EXPECT_EQ(chat(resume("[]", R"("stream": true, "seed": 3)")).value->prompts[0].sampling.seed, 3u) << "its own";
  EXPECT_FALSE(chat(R"("stream": true, "lorikeet_resume": null)").value->resumed);
  for (const auto& [fields, word] : std::vector<std::pair<std::string, const char*>>{
           {resume("[]", R"("stream": false)"), "needs \"stream\""},
           {resume(R"([{"tokens": [500]}])"), "tokens"},
           {resume(R"([{"tokens": [-1]}])"), "tokens"},
           {resume(R"([{"tokens": "1"}])"), "tokens"},
           {resume(R"([7])"), "an object"},
           {resume(R"([{"tokens": []}, {"tokens": []}, {"tokens": []}])"), "has 3 choices, the request asks for 2"},
           {R"("stream": true, "lorikeet_resume": {"created": 1})", "is missing"},
           {R"("stream": true, "lorikeet_resume": [])", "an object"}}) {
    for (const auto& parsed : {chat(fields), completion(fields)}) {
      ASSERT_FALSE(parsed.ok()) << fields;
      EXPECT_EQ(parsed.error.param.substr(0, 15), "lorikeet_resume") << fields;
      EXPECT_THAT(parsed.error.message, HasSubstr(word));
    }
  }
}

TEST(OpenAiParse, EmbeddingTokenizeDetokenize) {
  const auto embedding = parse_embedding_request(
      R"({"model": "a", "input": ["x", "y"], "encoding_format": "base64", "dimensions": 8, "user": "u"})", defaults());
  ASSERT_TRUE(embedding.ok()) << embedding.error.message;
  EXPECT_TRUE(embedding.value->base64);
  EXPECT_EQ(embedding.value->dimensions, 8);
  EXPECT_EQ(embedding.value->inputs.size(), 2u);
  EXPECT_TRUE(embedding.value->inputs[1].embed);
  EXPECT_EQ(embedding.value->inputs[1].max_tokens, 0);
  const std::pair<std::string, std::string> bad[] = {{R"({"input": ""})", "input"},
                                                     {"{}", "input"},
                                                     {R"({"input": "a", "encoding_format": "hex"})", "encoding_format"},
                                                     {R"({"input": "a", "dimensions": 0})", "dimensions"}};
  for (const auto& [body, param] : bad) EXPECT_EQ(parse_embedding_request(body, defaults()).error.param, param) << body;

  const auto tokenize = parse_tokenize_request(R"({"prompt": "x", "return_token_strs": true})", defaults());
  ASSERT_TRUE(tokenize.ok());
  EXPECT_TRUE(tokenize.value->return_token_strs && tokenize.value->input.add_special_tokens);
  const auto messages = parse_tokenize_request(
      R"({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false})", defaults());
  ASSERT_TRUE(messages.ok());
  EXPECT_FALSE(messages.value->input.add_special_tokens || messages.value->input.add_generation_prompt);
  EXPECT_EQ(parse_tokenize_request("{}", defaults()).error.param, "prompt");
  EXPECT_EQ(parse_tokenize_request(R"({"prompt": "x", "tools": 5})", defaults()).error.param, "tools");
  EXPECT_EQ(parse_tokenize_request(R"({"prompt": "x", "chat_template_kwargs": []})", defaults()).error.param,
            "chat_template_kwargs");
  EXPECT_EQ(parse_detokenize_request(R"({"tokens": [1, 2]})", defaults()).value->tokens, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(parse_detokenize_request(R"({"tokens": [500]})", defaults()).error.param, "tokens");
  EXPECT_EQ(parse_detokenize_request("{}", defaults()).error.param, "tokens");
}

TEST(OpenAiErrors, StatusCodesBecomeHttp) {
  const std::tuple<Status, int, std::string, std::string> cases[] = {
      {invalid_argument("m"), 400, "invalid_request_error", ""},
      {unsupported("m"), 400, "invalid_request_error", ""},
      {data_loss("m"), 400, "invalid_request_error", ""},
      {not_found("m"), 404, "invalid_request_error", "not_found"},
      {unauthenticated("m"), 401, "invalid_request_error", "invalid_api_key"},
      {permission_denied("m"), 403, "invalid_request_error", "permission_denied"},
      {resource_exhausted("m"), 429, "rate_limit_error", "rate_limit_exceeded"},
      {unavailable("m"), 503, "server_error", "overloaded"},
      {deadline_exceeded("m"), 408, "server_error", "timeout"},
      {internal_error("secret"), 500, "server_error", "internal_error"},
      {io_error("/secret/path"), 500, "server_error", "internal_error"}};
  for (const auto& [status, http, type, code] : cases) {
    const ApiError error = api_error(status, "req-7");
    EXPECT_EQ(error.status, http);
    EXPECT_EQ(error.type, type);
    EXPECT_EQ(error.code, code);
    EXPECT_EQ(error.retry_after_seconds > 0, http == 429 || http == 503);
    if (http == 500)
      EXPECT_THAT(error.message, ::testing::AllOf(HasSubstr("req-7"), ::testing::Not(HasSubstr("secret"))));
    else
      EXPECT_EQ(error.message, "m");
  }
  EXPECT_EQ(format_error({.message = "a\"b", .param = "n"}),
            R"({"error":{"message":"a\"b","type":"invalid_request_error","param":"n","code":null}})");
}

}  // namespace
}  // namespace lk
