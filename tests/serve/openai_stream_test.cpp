// SPDX-License-Identifier: Apache-2.0
// Property: however a completion is cut into deltas, the stream adds up to the answer that is not streamed.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>

#include "lk/base/utf8.h"
#include "lk/serve/openai/openai.h"
#include "lk/text/unicode.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

namespace json = boost::json;
using Random = std::mt19937_64;

struct Exchange {
  GenerateRequest request;
  std::vector<Completion> completions;
  ToolFormat format = ToolFormat::kNone;
};

std::string pick(Random& random, const std::vector<std::string>& items) { return items[random() % items.size()]; }

std::string random_text(Random& random, ToolFormat format) {
  const std::vector<std::string> words = {"a", "é", "漢",  "🙂",        "\n",           " ",   "\"", "\\", "<",
                                          "[", "{", "end", "<tool_call>", "[TOOL_CALLS]", "x: 1"};
  const std::vector<std::string> calls =
      format == ToolFormat::kHermes
          ? std::vector<std::string>{R"(<tool_call>{"name": "f", "arguments": {"é": "漢\n"}}</tool_call>)",
                                     R"(<tool_call>{"name": "g"}</tool_call>)"}
      : format == ToolFormat::kLlama3
          ? std::vector<std::string>{R"(<|python_tag|>{"name": "f", "parameters": {"🙂": [1]}})"}
          : std::vector<std::string>{R"([TOOL_CALLS][{"name": "f", "arguments": {"é": 1}}])",
                                     R"([TOOL_CALLS]g[ARGS]{"a": "漢"})"};
  std::string text;
  for (size_t count = random() % 12; count > 0; --count)
    text += random() % 4 == 0 ? pick(random, calls) : pick(random, words);
  return text;
}

TokenLogprob random_logprob(Random& random, int32_t token, int num_top) {
  TokenLogprob result{.token = token, .logprob = -static_cast<float>(random() % 1000) / 64, .rank = 1, .top = {}};
  for (int k = 0; k < num_top; ++k)
    result.top.emplace_back(static_cast<int32_t>(random() % 256), -static_cast<float>(k));
  return result;
}

Completion random_completion(Random& random, const std::string& text, int num_top) {
  Completion completion{.text = text, .token_ids = testing::byte_tokens(text)};
  // Tokens whose text a stop string cut off, and the token that stopped.
  if (random() % 3 == 0) {
    completion.token_ids.push_back('E');
    completion.stop_string = "E";
  } else if (random() % 2 == 0) {
    completion.token_ids.push_back(testing::kEndToken);
  }
  completion.finish = random() % 4 == 0 ? FinishReason::kLength : FinishReason::kStop;
  if (num_top >= 0)
    for (const int32_t token : completion.token_ids)
      completion.logprobs.push_back(random_logprob(random, token, num_top));
  completion.prompt_tokens = static_cast<int64_t>(random() % 5) + 1;
  completion.cached_tokens = static_cast<int64_t>(random() % 2);
  for (int64_t i = 0; i < completion.prompt_tokens; ++i)
    completion.prompt_token_ids.push_back(static_cast<int32_t>(random() % 256));
  for (int64_t i = 1; i < completion.prompt_tokens; ++i)
    completion.prompt_logprobs.push_back(
        random_logprob(random, completion.prompt_token_ids[static_cast<size_t>(i)], 1));
  return completion;
}

Exchange random_exchange(Random& random) {
  Exchange exchange;
  const bool is_chat = random() % 2 == 0;
  const std::vector<ToolFormat> formats = {ToolFormat::kHermes, ToolFormat::kLlama3, ToolFormat::kMistral};
  exchange.format = formats[random() % 3];
  json::object body;
  if (is_chat) {
    body["messages"] = json::parse(R"([{"role": "user", "content": "q"}])");
    if (random() % 2)
      body["tools"] = json::parse(
          R"([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}])");
    body["parallel_tool_calls"] = random() % 2 == 0;
  } else {
    body["prompt"] = json::array{"p1é", "p2"};
    body["echo"] = random() % 2 == 0;
  }
  body["n"] = random() % 2 + 1;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", random() % 2 == 0}};
  body["return_token_ids"] = random() % 2 == 0;
  const int num_top = static_cast<int>(random() % 4) - 1;
  if (is_chat && num_top >= 0) body["logprobs"] = true, body["top_logprobs"] = num_top;
  if (!is_chat && num_top >= 0) body["logprobs"] = num_top;
  const ApiDefaults defaults{.context = 1000, .vocab_size = 400, .generation = {}, .tool_format = exchange.format};
  const auto parsed = is_chat ? parse_chat_request(json::serialize(body), defaults)
                              : parse_completion_request(json::serialize(body), defaults);
  LK_CHECK(parsed.ok(), "{}", parsed.error.message);
  exchange.request = *parsed.value;
  for (size_t i = 0; i < exchange.request.prompts.size() * static_cast<size_t>(exchange.request.n); ++i)
    exchange.completions.push_back(random_completion(random, random_text(random, exchange.format), num_top));
  return exchange;
}

// The deltas of a completion: text never cut inside a character, tokens never after the text they make, both in pieces
// of any size.
std::string stream_of(Random& random, AnswerFormatter& format, const std::vector<Completion>& completions,
                      bool with_begin) {
  std::vector<size_t> text_at(completions.size()), token_at(completions.size());
  std::vector<size_t> open;
  std::string stream;
  for (size_t i = 0; i < completions.size(); ++i) open.push_back(i);
  std::vector<bool> begun(completions.size());
  while (!open.empty()) {
    const size_t k = random() % open.size(), i = open[k];
    const Completion& c = completions[i];
    if (with_begin && !begun[i]) stream += format.begin(static_cast<int>(i), c);
    begun[i] = true;
    if (random() % 8 == 0 || token_at[i] == c.token_ids.size()) {  // what was not shown comes with the end
      stream += format.done(static_cast<int>(i), c);
      open.erase(open.begin() + static_cast<ptrdiff_t>(k));
      continue;
    }
    StreamDelta delta;
    for (size_t count = 1 + random() % 6; count > 0 && token_at[i] < c.token_ids.size(); --count, ++token_at[i])
      delta.tokens.push_back(c.logprobs.empty() ? TokenLogprob{.token = c.token_ids[token_at[i]]}
                                                : c.logprobs[token_at[i]]);
    size_t end = std::min(token_at[i], c.text.size());
    while (end > text_at[i] && end < c.text.size() && (static_cast<unsigned char>(c.text[end]) & 0xC0) == 0x80) --end;
    if (random() % 3 != 0 && end > text_at[i]) {
      delta.text = c.text.substr(text_at[i], end - text_at[i]);
      text_at[i] = end;
    }
    stream += format.delta(static_cast<int>(i), delta);
  }
  return stream + format.end();
}

void append_all(json::value& to, const json::value& from) {
  for (const json::value& item : from.as_array()) to.as_array().push_back(item);
}

// The chunks of a stream put together to what response() gives.
class Assembler {
 public:
  Assembler(bool is_chat, size_t num_choices) : is_chat_(is_chat) {
    for (size_t i = 0; i < num_choices; ++i)
      choices_.push_back(json::object{{"index", i}, {"text", ""}, {"logprobs", nullptr}});
  }

  void add(const json::object& chunk) {
    EXPECT_EQ(chunk.at("id"), "id-1");
    EXPECT_EQ(chunk.at("created"), 7);
    if (const json::value* usage = chunk.if_contains("usage");
        usage != nullptr && chunk.at("choices").as_array().empty())
      usage_ = *usage;
    for (const json::value& choice : chunk.at("choices").as_array()) add_choice(choice.as_object(), chunk);
  }

  const json::value& usage() const { return usage_; }
  const json::array& choices() const { return choices_; }

 private:
  void add_choice(const json::object& choice, const json::object& chunk) {
    json::object& whole = choices_.at(choice.at("index").to_number<size_t>()).as_object();
    EXPECT_FALSE(whole.contains("finish_reason")) << "a chunk after the last";
    const bool first = !whole.contains("seen");
    whole["seen"] = true;
    if (is_chat_)
      add_delta(choice.at("delta").as_object(), first, whole);
    else
      add_text(choice.at("text").as_string(), whole);
    if (const json::value& logprobs = choice.at("logprobs"); !logprobs.is_null()) {
      if (whole["logprobs"].is_null()) {
        whole["logprobs"] = logprobs;
      } else {
        for (const auto& [key, list] : logprobs.as_object()) append_all(whole["logprobs"].as_object()[key], list);
      }
    }
    const json::object& ids_of_prompt = is_chat_ ? chunk : choice;
    if (const json::value* ids = ids_of_prompt.if_contains("prompt_token_ids")) whole["prompt_token_ids"] = *ids;
    if (const json::value* ids = choice.if_contains("token_ids")) {
      if (!whole.contains("token_ids")) whole["token_ids"] = json::array();
      append_all(whole["token_ids"], *ids);
    }
    if (choice.at("finish_reason").is_null()) return;
    whole["finish_reason"] = choice.at("finish_reason");
    whole["stop_reason"] = choice.at("stop_reason");
  }

  static void add_text(const json::string& text, json::object& whole) {
    EXPECT_FALSE(utf8::find_invalid(std::string_view(text.data(), text.size())));
    whole["text"].as_string() += text;
  }

  void add_delta(const json::object& delta, bool first, json::object& whole) {
    EXPECT_EQ(delta.contains("role"), first);
    if (const json::value* content = delta.if_contains("content")) add_text(content->as_string(), whole);
    const json::value* calls = delta.if_contains("tool_calls");
    if (calls == nullptr) return;
    if (!whole.contains("tool_calls")) whole["tool_calls"] = json::array();
    json::array& all = whole["tool_calls"].as_array();
    json::object piece = calls->as_array().at(0).as_object();
    const size_t index = piece.at("index").to_number<size_t>();
    piece.erase("index");
    if (index == all.size()) return void(all.push_back(piece));
    json::string& arguments = all.at(index).as_object().at("function").as_object().at("arguments").as_string();
    arguments += piece.at("function").at("arguments").as_string();
  }

  bool is_chat_;
  json::array choices_;
  json::value usage_;
};

void compare(const Assembler& stream, const json::object& response, bool is_chat) {
  EXPECT_EQ(stream.usage(), response.at("usage"));
  const json::array& choices = response.at("choices").as_array();
  ASSERT_EQ(choices.size(), stream.choices().size());
  for (size_t i = 0; i < choices.size(); ++i) {
    const json::object& one = stream.choices()[i].as_object();
    const json::object& other = choices[i].as_object();
    const json::object& message = is_chat ? other.at("message").as_object() : other;
    const json::value& text = message.at(is_chat ? "content" : "text");
    EXPECT_EQ(one.at("text"), text.is_null() ? json::value("") : text);
    for (const char* key : {"logprobs", "finish_reason", "stop_reason"}) EXPECT_EQ(one.at(key), other.at(key)) << key;
    ASSERT_EQ(one.contains("tool_calls"), message.contains("tool_calls"));
    if (message.contains("tool_calls")) {
      EXPECT_EQ(one.at("tool_calls"), message.at("tool_calls"));
    }
    ASSERT_EQ(one.contains("token_ids"), other.contains("token_ids"));
    if (!other.contains("token_ids")) continue;
    EXPECT_EQ(one.at("token_ids"), other.at("token_ids"));
    if (!is_chat || i == 0) {
      EXPECT_EQ(one.at("prompt_token_ids"), (is_chat ? response : other).at("prompt_token_ids"));
    }
  }
}

TEST(OpenAiStream, AddsUpToTheResponse) {
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  int num_calls = 0, num_logprobs = 0;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Exchange exchange = random_exchange(random);
    const bool is_chat = exchange.request.endpoint == Endpoint::kChat;
    const auto formatter = [&] {
      return AnswerFormatter(exchange.request, "id-1", 7, "m", tokenizer.get(), exchange.format);
    };
    AnswerFormatter streaming = formatter();
    const std::string stream = stream_of(random, streaming, exchange.completions, random() % 2 == 0);
    AnswerFormatter whole = formatter();
    const json::object response = json::parse(whole.response(exchange.completions)).as_object();
    Assembler assembler(is_chat, exchange.completions.size());
    std::string_view rest = stream;
    while (!rest.empty()) {
      ASSERT_TRUE(rest.starts_with("data: "));
      const size_t end = rest.find("\n\n");
      ASSERT_NE(end, std::string_view::npos);
      const std::string_view data = rest.substr(6, end - 6);
      rest.remove_prefix(end + 2);
      if (data == "[DONE]") break;
      assembler.add(json::parse(json::string_view(data.data(), data.size())).as_object());
    }
    EXPECT_TRUE(rest.empty());
    compare(assembler, response, is_chat);
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << stream << "\n" << json::serialize(response);
      return;
    }
    for (const json::value& choice : assembler.choices()) {
      num_calls += choice.as_object().contains("tool_calls");
      num_logprobs += !choice.at("logprobs").is_null();
    }
  }
  EXPECT_GT(num_calls, 100);
  EXPECT_GT(num_logprobs, 500);
}

// A stream that is cut after any token and goes on in a formatter elsewhere reads as if it had not been cut.
TEST(OpenAiStream, ResumedStreamReadsAsIfItHadNotBeenCut) {
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  int num_calls = 0, num_offsets = 0;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Exchange exchange = random_exchange(random);
    GenerateRequest& request = exchange.request;
    const bool is_chat = request.endpoint == Endpoint::kChat;
    request.prompts.resize(1);
    request.n = 1;
    request.echo = request.return_token_ids = request.include_usage = request.continuous_usage = false;
    exchange.completions.resize(1);
    Completion& whole = exchange.completions[0];
    // One token is one character, so that each token of the first part has been shown with its text.
    std::erase_if(whole.text, [](char c) { return (static_cast<unsigned char>(c) & 0x80) != 0; });
    whole.token_ids = testing::byte_tokens(whole.text);
    whole.logprobs.clear();
    if (request.logprobs)
      for (const int32_t token : whole.token_ids) whole.logprobs.push_back(random_logprob(random, token, 1));
    if (is_chat) request.logprobs = false;  // of a tool call's tokens, some come with a later chunk
    const auto formatter = [&] { return AnswerFormatter(request, "id-1", 7, "m", tokenizer.get(), exchange.format); };
    AnswerFormatter uncut = formatter();
    const json::object response = json::parse(uncut.response(exchange.completions)).as_object();
    const size_t cut = whole.text.empty() ? 0 : random() % whole.text.size();
    const auto delta = [&](AnswerFormatter& to, size_t i) {
      StreamDelta delta{.text = whole.text.substr(i, 1)};
      delta.tokens.push_back(whole.logprobs.empty() ? TokenLogprob{.token = whole.token_ids[i]} : whole.logprobs[i]);
      return to.delta(0, delta);
    };
    AnswerFormatter first = formatter();
    std::string stream;
    for (size_t i = 0; i < cut; ++i) stream += delta(first, i);
    AnswerFormatter second = formatter();
    if (cut > 0) second.resume(whole.text.substr(0, cut), std::span(whole.token_ids).first(cut));
    for (size_t i = cut; i < whole.text.size(); ++i) stream += delta(second, i);
    Completion rest = whole;
    rest.text = whole.text.substr(cut);
    rest.token_ids.erase(rest.token_ids.begin(), rest.token_ids.begin() + static_cast<ptrdiff_t>(cut));
    if (!rest.logprobs.empty())
      rest.logprobs.erase(rest.logprobs.begin(), rest.logprobs.begin() + static_cast<ptrdiff_t>(cut));
    stream += second.done(0, rest);

    Assembler assembler(is_chat, 1);
    std::string_view left = stream;
    while (!left.empty()) {
      const size_t end = left.find("\n\n");
      ASSERT_TRUE(left.starts_with("data: ") && end != std::string_view::npos);
      const std::string_view data = left.substr(6, end - 6);
      left.remove_prefix(end + 2);
      assembler.add(json::parse(json::string_view(data.data(), data.size())).as_object());
    }
    const json::object& one = assembler.choices()[0].as_object();
    const json::object& other = response.at("choices").as_array()[0].as_object();
    const json::object& message = is_chat ? other.at("message").as_object() : other;
    const json::value& text = message.at(is_chat ? "content" : "text");
    EXPECT_EQ(one.at("text"), text.is_null() ? json::value("") : text);
    for (const char* key : {"logprobs", "finish_reason", "stop_reason"}) EXPECT_EQ(one.at(key), other.at(key)) << key;
    ASSERT_EQ(one.contains("tool_calls"), message.contains("tool_calls"));
    if (message.contains("tool_calls")) {
      EXPECT_EQ(one.at("tool_calls"), message.at("tool_calls"));
    }
    num_calls += message.contains("tool_calls") && cut > 0;
    num_offsets += !one.at("logprobs").is_null() && cut > 0;
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << "cut at " << cut << "\n" << stream << "\n" << json::serialize(response);
      return;
    }
  }
  EXPECT_GT(num_calls, 20);
  EXPECT_GT(num_offsets, 50);
}

}  // namespace
}  // namespace lk
