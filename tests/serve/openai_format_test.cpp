// SPDX-License-Identifier: Apache-2.0
// Answers of the OpenAI API, compared with literal JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <limits>

#include "lk/serve/openai/openai.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;
using testing::byte_tokenizer;
using testing::byte_tokens;

const Tokenizer* tokenizer() {
  static const std::shared_ptr<const Tokenizer> shared = byte_tokenizer();
  return shared.get();
}

GenerateRequest parse(Endpoint endpoint, const std::string& body) {
  const ApiDefaults defaults{.context = 1000, .vocab_size = 400, .generation = {}, .tool_format = ToolFormat::kHermes};
  auto parsed =
      endpoint == Endpoint::kChat ? parse_chat_request(body, defaults) : parse_completion_request(body, defaults);
  LK_CHECK(parsed.ok(), "{}", parsed.error.message);
  return *parsed.value;
}
GenerateRequest chat(const std::string& fields = "") {
  return parse(Endpoint::kChat, R"({"messages": [{"role": "user", "content": "q"}])" + fields + "}");
}
GenerateRequest completion(const std::string& fields = "") {
  return parse(Endpoint::kCompletion, R"({"prompt": "pq")" + fields + "}");
}

AnswerFormatter formatter(const GenerateRequest& request) {
  return {request, "id-1", 7, "sql", tokenizer(), ToolFormat::kHermes};
}

Completion answer(const std::string& text, FinishReason finish = FinishReason::kStop) {
  return {.text = text,
          .token_ids = byte_tokens(text),
          .finish = finish,
          .prompt_token_ids = {112, 113},
          .prompt_tokens = 2,
          .cached_tokens = 1};
}

// The events of a stream as JSON; "[DONE]" as a string.
std::vector<json::value> events(std::string_view stream) {
  std::vector<json::value> list;
  while (!stream.empty()) {
    LK_CHECK(stream.starts_with("data: "));
    const size_t end = stream.find("\n\n");
    LK_CHECK(end != std::string_view::npos);
    const std::string_view data = stream.substr(6, end - 6);
    list.push_back(data == "[DONE]" ? json::value("[DONE]") : json::parse(json::string_view(data.data(), data.size())));
    stream.remove_prefix(end + 2);
  }
  return list;
}

// In this order, unlike the operands of +.
std::string joined(std::initializer_list<std::string> parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

StreamDelta piece(const std::string& text) {
  StreamDelta delta{.text = text, .tokens = {}};
  for (const int32_t token : byte_tokens(text))
    delta.tokens.push_back({.token = token, .logprob = -0.5f, .rank = 1, .top = {{token, -0.5f}}});
  return delta;
}

void expect_json(const json::value& actual, std::string_view expected) {
  const json::value value = json::parse(json::string_view(expected.data(), expected.size()));
  EXPECT_EQ(actual, value) << json::serialize(actual) << "\nexpected\n" << json::serialize(value);
}

TEST(OpenAiFormat, ChatResponse) {
  expect_json(json::parse(formatter(chat()).response({answer("h\"i\n")})),
              R"({"id": "id-1", "object": "chat.completion", "created": 7,
      "model": "sql", "system_fingerprint": null, "choices": [{"index": 0, "message": {"role": "assistant", "content": "h\"i\n", "refusal": null},
      "logprobs": null, "finish_reason": "stop", "stop_reason": null}],
      "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6, "prompt_tokens_details": {"cached_tokens": 1}}})");
}

TEST(OpenAiFormat, ChatStream) {
  AnswerFormatter format = formatter(chat(R"(, "stream": true, "stream_options": {"include_usage": true})"));
  Completion completion = answer("hey");
  completion.stop_string = "END";
  const std::string stream =
      joined({format.delta(0, piece("he")), format.delta(0, piece("y")), format.done(0, completion), format.end()});
  EXPECT_TRUE(stream.starts_with(
      R"(data: {"id":"id-1","object":"chat.completion.chunk","created":7,"model":"sql","choices":[{"index":0,)"));
  const auto list = events(stream);
  const std::string head = R"("id": "id-1", "object": "chat.completion.chunk", "created": 7, "model": "sql")";
  const auto chunk = [&](const std::string& delta, const std::string& finish = R"("finish_reason": null)") {
    return "{" + head + R"(, "choices": [{"index": 0, "delta": )" + delta + R"(, "logprobs": null, )" + finish + "}]}";
  };
  ASSERT_EQ(list.size(), 6u);
  expect_json(list[0], chunk(R"({"role": "assistant", "content": ""})"));
  expect_json(list[1], chunk(R"({"content": "he"})"));
  expect_json(list[2], chunk(R"({"content": "y"})"));
  expect_json(list[3], chunk("{}", R"("finish_reason": "stop", "stop_reason": "END")"));
  expect_json(list[4],
              "{" + head + R"(, "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5,
      "prompt_tokens_details": {"cached_tokens": 1}}})");
  expect_json(list[5], R"("[DONE]")");
}

TEST(OpenAiFormat, ChatLogprobs) {
  const GenerateRequest request = chat(R"(, "logprobs": true, "top_logprobs": 1)");
  Completion completion = answer("\xc3\xa9");  // é in two tokens
  completion.token_ids.push_back(testing::kEndToken);
  completion.logprobs = {
      {.token = 0xc3, .logprob = -0.25f, .rank = 1, .top = {{'a', -0.125f}}},
      {.token = 0xa9, .logprob = 0.0f, .rank = 1, .top = {{0xa9, 0.0f}}},
      {.token = testing::kEndToken, .logprob = -std::numeric_limits<float>::infinity(), .rank = 1, .top = {}}};
  expect_json(json::parse(formatter(request).response({completion})).at("choices").at(0).at("logprobs"),
              R"({"content": [
      {"token": "\\xc3", "logprob": -0.25, "bytes": [195], "top_logprobs": [{"token": "a", "logprob": -0.125, "bytes": [97]}]},
      {"token": "\\xa9", "logprob": 0.0, "bytes": [169], "top_logprobs": [{"token": "\\xa9", "logprob": 0.0, "bytes": [169]}]},
      {"token": "<|end|>", "logprob": -9999.0, "bytes": [60, 124, 101, 110, 100, 124, 62], "top_logprobs": []}]})");
  const GenerateRequest ids = chat(R"(, "logprobs": true, "return_tokens_as_token_ids": true)");
  EXPECT_EQ(json::parse(formatter(ids).response({completion})).at_pointer("/choices/0/logprobs/content/1/token"),
            "token_id:169");
}

TEST(OpenAiFormat, CompletionResponse) {
  Completion done = answer("\xc3\xa9x", FinishReason::kLength);
  done.logprobs = {{.token = 0xc3, .logprob = -1, .rank = 2, .top = {{'a', -0.5f}}},
                   {.token = 0xa9, .logprob = -2, .rank = 1, .top = {{0xa9, -2.0f}}},
                   {.token = 'x', .logprob = -3, .rank = 1, .top = {}}};
  done.stop_token = 9;
  expect_json(json::parse(formatter(completion(R"(, "logprobs": 1)")).response({done})),
              R"({"id": "id-1", "object": "text_completion", "created": 7,
      "model": "sql", "system_fingerprint": null, "choices": [{"index": 0, "text": "éx", "logprobs": {"text_offset": [0, 1, 1],
      "token_logprobs": [-1.0, -2.0, -3.0], "tokens": ["bytes:\\xc3", "bytes:\\xa9", "x"],
      "top_logprobs": [{"a": -0.5, "bytes:\\xc3": -1.0}, {"bytes:\\xa9": -2.0}, {"x": -3.0}]}, "finish_reason": "length", "stop_reason": 9}],
      "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}})");
}

TEST(OpenAiFormat, EchoScoresThePrompt) {
  Completion scored = answer("", FinishReason::kLength);
  scored.prompt_logprobs = {{.token = 'q', .logprob = -0.75f, .rank = 2, .top = {{'z', -0.5f}}}};
  const char* fields = R"(, "echo": true, "max_tokens": 0, "logprobs": 1)";
  const char* expected =
      R"({"text_offset": [0, 1], "token_logprobs": [null, -0.75], "tokens": ["p", "q"], "top_logprobs": [null, {"z": -0.5, "q": -0.75}]})";
  const json::value response = json::parse(formatter(completion(fields)).response({scored}));
  EXPECT_EQ(response.at_pointer("/choices/0/text"), "pq");
  EXPECT_EQ(response.at_pointer("/choices/0/finish_reason"), "length");
  expect_json(response.at_pointer("/choices/0/logprobs"), expected);
  // The same as a stream, whose first chunk waits for the prompt's logprobs.
  for (const bool with_begin : {true, false}) {
    AnswerFormatter format = formatter(completion(std::string(fields) + R"(, "stream": true)"));
    const auto list = events(joined({with_begin ? format.begin(0, scored) : "", format.done(0, scored), format.end()}));
    ASSERT_EQ(list.size(), 3u);
    EXPECT_EQ(list[0].at_pointer("/choices/0/text"), "pq");
    expect_json(list[0].at_pointer("/choices/0/logprobs"), expected);
    EXPECT_EQ(list[1].at_pointer("/choices/0/finish_reason"), "length");
  }
}

TEST(OpenAiFormat, EchoOfTokenIdsAndOfAnOpenChatMessage) {
  EXPECT_EQ(json::parse(formatter(parse(Endpoint::kCompletion, R"({"prompt": [[104, 105], [120]], "echo": true})"))
                            .response({answer("!"), answer("?")}))
                .at_pointer("/choices/1/text"),
            "x?");
  const GenerateRequest open = parse(
      Endpoint::kChat, R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Once"}],
      "echo": true, "continue_final_message": true})");
  EXPECT_EQ(json::parse(formatter(open).response({answer(" upon")})).at_pointer("/choices/0/message/content"),
            "Once upon");
}

TEST(OpenAiFormat, SeveralPromptsAndChoices) {
  const GenerateRequest request =
      parse(Endpoint::kCompletion,
            R"({"prompt": ["a", "b"], "n": 2, "stream": true, "stream_options": {"include_usage": true}})");
  const std::vector<Completion> all = {answer("1"), answer("22"), answer("333"), answer("4444")};
  const json::value response = json::parse(formatter(request).response(all));
  ASSERT_EQ(response.at("choices").as_array().size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(response.at("choices").at(static_cast<size_t>(i)).at("index"), i);
    EXPECT_EQ(response.at("choices").at(static_cast<size_t>(i)).at("text").as_string().size(),
              static_cast<size_t>(i + 1));
  }
  const char* usage =
      R"({"prompt_tokens": 4, "completion_tokens": 10, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 2}})";
  expect_json(response.at("usage"), usage);
  AnswerFormatter format = formatter(request);
  std::string stream;
  for (int i : {2, 0, 3, 1}) stream += format.done(i, all[static_cast<size_t>(i)]);
  const auto list = events(stream + format.end());
  EXPECT_EQ(list[0].at_pointer("/choices/0/index"), 2);
  EXPECT_EQ(list[0].at_pointer("/choices/0/text"), "333");
  expect_json(list[list.size() - 2].at("usage"), usage);
}

TEST(OpenAiFormat, TokenIdsPromptLogprobsAndContinuousUsage) {
  Completion done = answer("ab");
  done.prompt_logprobs = {{.token = 'q', .logprob = -0.5f, .rank = 3, .top = {{'z', -0.25f}}}};
  const json::value response =
      json::parse(formatter(chat(R"(, "return_token_ids": true, "prompt_logprobs": 1)")).response({done}));
  expect_json(response.at("prompt_token_ids"), "[112, 113]");
  expect_json(response.at_pointer("/choices/0/token_ids"), "[97, 98]");
  expect_json(response.at("prompt_logprobs"), R"([null, {"113": {"logprob": -0.5, "rank": 3, "decoded_token": "q"},
                                                         "122": {"logprob": -0.25, "rank": 1, "decoded_token": "z"}}])");
  AnswerFormatter format = formatter(
      chat(R"(, "return_token_ids": true, "stream": true, "stream_options": {"continuous_usage_stats": true})"));
  EXPECT_EQ(format.delta(0, piece("a")), "");  // the first chunk names the prompt's tokens
  std::string stream = format.begin(0, done);
  EXPECT_EQ(events(stream).size(), 2u);
  stream += joined({format.delta(0, piece("b")), format.done(0, done), format.end()});
  const auto list = events(stream);
  ASSERT_EQ(list.size(), 5u);
  expect_json(list[0].at("prompt_token_ids"), "[112, 113]");
  expect_json(list[1].at_pointer("/choices/0/token_ids"), "[97]");
  expect_json(list[2].at_pointer("/choices/0/token_ids"), "[98]");
  EXPECT_EQ(list[1].at_pointer("/usage/completion_tokens"), 1);
  EXPECT_EQ(list[2].at_pointer("/usage/total_tokens"), 4);
  // In completions the prompt's ids belong to the choice.
  EXPECT_EQ(json::parse(formatter(completion(R"(, "return_token_ids": true)")).response({done}))
                .at_pointer("/choices/0/prompt_token_ids/1"),
            113);
}

TEST(OpenAiFormat, ErrorsInAStreamEndIt) {
  AnswerFormatter format = formatter(chat(R"(, "stream": true, "stream_options": {"include_usage": true})"));
  format.delta(0, piece("a"));
  const auto list = events(format.error(api_error(unavailable("later"))));
  ASSERT_EQ(list.size(), 2u);
  expect_json(list[0],
              R"({"error": {"message": "later", "type": "server_error", "param": null, "code": "overloaded"}})");
  EXPECT_EQ(list[1], "[DONE]");
  EXPECT_EQ(format.end(), "");
  EXPECT_EQ(format.done(0, answer("a")), "");

  AnswerFormatter failed = formatter(chat(R"(, "stream": true, "stream_options": {"include_usage": true})"));
  Completion broken = answer("", FinishReason::kError);
  broken.error = internal_error("secret");
  const auto tail = events(joined({failed.done(0, broken), failed.end()}));
  ASSERT_EQ(tail.size(), 2u);
  EXPECT_EQ(tail[0].at_pointer("/error/code"), "internal_error");
  EXPECT_EQ(tail[1], "[DONE]");
}

TEST(OpenAiFormat, WithoutATokenizerIdsStandForText) {
  AnswerFormatter format(completion(R"(, "logprobs": 0, "echo": true)"), "i", 1, "m", nullptr, ToolFormat::kNone);
  Completion done{.token_ids = {5},
                  .logprobs = {{.token = 5, .logprob = -1, .rank = 1, .top = {}}},
                  .finish = FinishReason::kCancelled};
  const json::value response = json::parse(format.response({done}));
  EXPECT_EQ(response.at_pointer("/choices/0/finish_reason"), "abort");
  EXPECT_EQ(response.at_pointer("/choices/0/logprobs/tokens/0"), "token_id:5");
}

TEST(OpenAiFormat, ForcedToolsAreCalls) {
  const std::string tools = R"(, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": )";
  const json::value named = json::parse(
      formatter(chat(tools + R"({"type": "function", "function": {"name": "f"}})")).response({answer(R"({"x": 1})")}));
  EXPECT_EQ(named.at_pointer("/choices/0/finish_reason"), "stop");
  EXPECT_EQ(named.at_pointer("/choices/0/message/tool_calls/0/function/name"), "f");
  EXPECT_EQ(named.at_pointer("/choices/0/message/tool_calls/0/function/arguments"), R"({"x": 1})");
  EXPECT_EQ(named.at_pointer("/choices/0/message/tool_calls/0/id").as_string().size(), 29u);
  EXPECT_TRUE(named.at_pointer("/choices/0/message/content").is_null());
  const json::value required = json::parse(
      formatter(chat(tools + "\"required\"")).response({answer(R"({"name": "f", "arguments": {"x": 1}})")}));
  EXPECT_EQ(required.at_pointer("/choices/0/finish_reason"), "tool_calls");
  EXPECT_EQ(required.at_pointer("/choices/0/message/tool_calls/0/function/arguments"), R"({"x": 1})");
}

TEST(OpenAiFormat, ToolCallsAsAStream) {
  const std::string tools = R"(, "stream": true, "tools": [{"type": "function", "function": {"name": "f"}}])";
  AnswerFormatter format = formatter(chat(tools));
  std::string stream = format.delta(0, piece("Hm <tool_call>{\"name\": \"f\", \"arguments\": {\"x\""));
  stream += format.delta(0, piece(": 1}}</tool_call>"));
  const Completion done = answer("Hm <tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>");
  stream += joined({format.done(0, done), format.end()});
  const auto list = events(stream);
  ASSERT_EQ(list.size(), 7u);
  expect_json(list[1].at_pointer("/choices/0/delta"), R"({"content": "Hm "})");
  const json::value& call = list[2].at_pointer("/choices/0/delta/tool_calls/0");
  EXPECT_EQ(call.at("index"), 0);
  EXPECT_EQ(call.at("type"), "function");
  expect_json(call.at("function"), R"({"name": "f", "arguments": ""})");
  expect_json(list[3].at_pointer("/choices/0/delta"),
              R"({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\""}}]})");
  expect_json(list[4].at_pointer("/choices/0/delta"),
              R"({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]})");
  EXPECT_EQ(list[5].at_pointer("/choices/0/finish_reason"), "tool_calls");
  // The same request gives the same ids, streamed or not; another request others.
  const auto id_of = [&](std::string id) {
    AnswerFormatter other(chat(tools), std::move(id), 7, "sql", tokenizer(), ToolFormat::kHermes);
    return json::parse(other.response({done})).at_pointer("/choices/0/message/tool_calls/0/id");
  };
  EXPECT_EQ(id_of("id-1"), call.at("id"));
  EXPECT_NE(id_of("id-2"), call.at("id"));
}

TEST(OpenAiFormat, EmbeddingsTokensAndText) {
  Completion result{.prompt_tokens = 3, .embedding = {0.6f, 0.8f, 0.0f}};
  expect_json(json::parse(format_embeddings({.model = "m", .inputs = {}}, "m", {result, result})),
              R"({"object": "list", "data": [
      {"object": "embedding", "index": 0, "embedding": [0.6, 0.8, 0.0]}, {"object": "embedding", "index": 1, "embedding": [0.6, 0.8, 0.0]}],
      "model": "m", "usage": {"prompt_tokens": 6, "total_tokens": 6}})");
  // struct.pack("<3f", 1, -2, 0.5) in base64; and one float, which needs padding.
  result.embedding = {1.0f, -2.0f, 0.5f};
  EXPECT_EQ(json::parse(format_embeddings({.base64 = true}, "m", {result})).at_pointer("/data/0/embedding"),
            "AACAPwAAAMAAAAA/");
  result.embedding = {3.0f, 4.0f};
  EXPECT_EQ(
      json::parse(format_embeddings({.base64 = true, .dimensions = 1}, "m", {result})).at_pointer("/data/0/embedding"),
      "AACAPw==");
  expect_json(json::parse(format_embeddings({.dimensions = 5}, "m", {result})).at_pointer("/data/0/embedding"),
              "[3.0, 4.0]");

  expect_json(json::parse(format_tokenize({.return_token_strs = true}, {'a', ' '}, 100, *tokenizer())),
              R"({"count": 2, "max_model_len": 100, "tokens": [97, 32], "token_strs": ["a", "Ġ"]})");
  expect_json(json::parse(format_tokenize({}, {}, 100, *tokenizer())),
              R"({"count": 0, "max_model_len": 100, "tokens": [], "token_strs": null})");
  expect_json(json::parse(format_detokenize("a\x01\"")), R"({"prompt": "a\u0001\""})");
}

}  // namespace
}  // namespace lk
