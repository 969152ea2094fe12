// SPDX-License-Identifier: Apache-2.0
// Property: however a completion is cut into deltas, the stream adds up to the answer that is not streamed.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>

#include "lk/base/utf8.h"
#include "lk/cluster/answer_log.h"
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

// What a model that thinks makes of it: thoughts first, whole or cut off, or none.
void think_first(Random& random, Exchange& exchange) {
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  exchange.request.reasoning = ReasoningFormat::kQwen3;
  exchange.request.include_reasoning = random() % 4 != 0;
  for (TextRequest& text : exchange.request.prompts) {
    text.reasoning = ReasoningFormat::kQwen3;
    text.thinking_start = static_cast<ThinkingStart>(random() % 3);
    text.stop = {"E"};
  }
  for (Completion& completion : exchange.completions) {
    std::string text = pick(random, {"<think>\n", "", " <think>"});
    for (size_t count = random() % 8; count > 0; --count) text += pick(random, {"so", "é", "漢", " ", "\n", "<", "</"});
    text += pick(random, {"\n</think>\n\n", "</think>", "</thin", ""});
    const std::vector<int32_t> tokens = testing::byte_tokens(text);
    completion.token_ids.insert(completion.token_ids.begin(), tokens.begin(), tokens.end());
    for (const int32_t token : tokens)
      if (!completion.logprobs.empty())
        completion.logprobs.insert(completion.logprobs.begin(), random_logprob(random, token, 1));
    for (size_t k = 0; k < completion.logprobs.size(); ++k) completion.logprobs[k].token = completion.token_ids[k];
    TextSequence sequence;
    sequence.text = exchange.request.prompts[0];
    ASSERT_TRUE(sequence.begin_text(tokenizer).ok());
    for (const int32_t token : completion.token_ids) sequence.add({.token = token}, token == testing::kEndToken);
    sequence.end(completion.finish, Status());
    completion.text = sequence.completion.text;
    completion.reasoning = sequence.completion.reasoning;
    completion.reasoning_tokens = sequence.completion.reasoning_tokens;
  }
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
  if (is_chat && random() % 2 == 0) think_first(random, exchange);
  return exchange;
}

// The deltas of a completion: text never cut inside a character, tokens never after the text they make, both in pieces
// of any size.
std::string stream_of(Random& random, AnswerFormatter& format, const std::vector<Completion>& completions,
                      bool with_begin) {
  std::vector<size_t> text_at(completions.size()), token_at(completions.size()), thought_at(completions.size());
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
    const auto piece = [&](const std::string& text, size_t& at) {
      size_t end = std::min(token_at[i], text.size());
      while (end > at && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
      if (random() % 3 == 0 || end <= at) return std::string();
      return text.substr(std::exchange(at, end), end - at);
    };
    delta.reasoning = piece(c.reasoning, thought_at[i]);
    if (thought_at[i] == c.reasoning.size()) delta.text = piece(c.text, text_at[i]);
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
    if (const json::value* thoughts = delta.if_contains("reasoning")) {
      EXPECT_EQ(*thoughts, delta.at("reasoning_content"));
      EXPECT_EQ(whole.at("text"), "") << "thoughts come first";
      if (!whole.contains("reasoning")) whole["reasoning"] = "";
      whole["reasoning"].as_string() += thoughts->as_string();
    }
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
    if (is_chat) {
      ASSERT_EQ(one.contains("reasoning"), message.contains("reasoning"));
      if (message.contains("reasoning")) {
        EXPECT_EQ(one.at("reasoning"), message.at("reasoning"));
      }
    }
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
  int num_calls = 0, num_logprobs = 0, num_thoughts = 0;
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
      num_thoughts += choice.as_object().contains("reasoning");
      num_logprobs += !choice.at("logprobs").is_null();
    }
  }
  EXPECT_GT(num_calls, 100);
  EXPECT_GT(num_logprobs, 500);
  EXPECT_GT(num_thoughts, 100);
}

// What a client gets of a request, group by group, in the order of tokens; `known`: what it had from elsewhere.
struct Group {
  std::string events;
  AnswerCommit commit;
};
std::vector<Group> stream_of(const Exchange& exchange, const std::shared_ptr<const Tokenizer>& tokenizer,
                             const std::vector<AnswerLog::Choice>& known) {
  GenerateRequest request = exchange.request;
  request.resumed = ResumedAnswer{.id = "id-1", .created = 7};
  for (const AnswerLog::Choice& choice : known)
    request.resumed->choices.push_back({.tokens = choice.tokens,
                                        .done = choice.done,
                                        .prompt_tokens = choice.prompt ? choice.prompt->tokens : 0,
                                        .cached_tokens = choice.prompt ? choice.prompt->cached : 0});
  // What the server finds out of those that are complete.
  for (size_t i = 0; i < known.size(); ++i)
    if (known[i].done) request.resumed->choices[i].reasoning_tokens = exchange.completions[i].reasoning_tokens;
  AnswerFormatter formatter(request, "id-1", 7, "m", tokenizer.get(), exchange.format);
  std::vector<std::unique_ptr<TextSequence>> sequences;
  for (size_t i = 0; i < exchange.completions.size(); ++i) {
    auto sequence = std::make_unique<TextSequence>();
    sequence->text = exchange.request.prompts[i / static_cast<size_t>(exchange.request.n)];
    sequence->text.stop = {"E"};
    sequence->text.sampling.num_logprobs = exchange.request.logprobs ? 1 : -1;
    sequence->asked.prompt = exchange.completions[i].prompt_token_ids;
    sequence->completion.prompt_tokens = exchange.completions[i].prompt_tokens;
    if (i < known.size()) sequence->asked.output_so_far = known[i].tokens;
    const bool is_done = i < known.size() && known[i].done;
    if (!is_done) {
      EXPECT_TRUE(sequence->begin_text(tokenizer).ok());
    }
    if (i < known.size() && (is_done || !known[i].tokens.empty()))
      formatter.resume(static_cast<int>(i), is_done ? nullptr : sequence.get());
    sequences.push_back(is_done ? nullptr : std::move(sequence));
  }
  std::vector<Group> groups;
  CommitReader reader([&](std::string_view events, AnswerCommit commit) {
    groups.push_back({std::string(events), std::move(commit)});
  });
  const auto show = [&](const std::string& bytes) { EXPECT_TRUE(reader.push(bytes).ok()); };
  for (size_t i = 0; i < sequences.size(); ++i) {
    if (!sequences[i]) continue;
    TextSequence& sequence = *sequences[i];
    const Completion& whole = exchange.completions[i];
    const auto index = static_cast<int>(i);
    Completion prompt{.prompt_logprobs = whole.prompt_logprobs,
                      .prompt_token_ids = whole.prompt_token_ids,
                      .prompt_tokens = whole.prompt_tokens,
                      .cached_tokens = sequence.asked.resumed() ? 99 : whole.cached_tokens};
    show(formatter.begin(index, prompt));
    for (size_t t = sequence.asked.output_so_far.size(); t < whole.token_ids.size(); ++t) {
      const bool is_last = t + 1 == whole.token_ids.size();
      StreamDelta delta;
      delta.tokens.push_back(whole.logprobs.empty() ? TokenLogprob{.token = whole.token_ids[t]} : whole.logprobs[t]);
      sequence.add(delta.tokens[0], is_last && whole.token_ids[t] == testing::kEndToken);
      if (is_last) sequence.end(whole.finish, Status());
      delta.text = sequence.take_text();
      delta.reasoning = sequence.take_reasoning();
      delta.reasoning_tokens = sequence.completion.reasoning_tokens;
      if (!is_last) show(formatter.delta(index, delta));  // the last one comes with the end
    }
    if (sequence.completion.finish == FinishReason::kNone) sequence.end(whole.finish, Status());
    Completion rest = sequence.completion;
    rest.finish = whole.finish;
    rest.stop_string = whole.stop_string;
    rest.prompt_logprobs = prompt.prompt_logprobs;
    rest.prompt_token_ids = prompt.prompt_token_ids;
    rest.prompt_tokens = prompt.prompt_tokens;
    rest.cached_tokens = prompt.cached_tokens;
    show(formatter.done(index, rest));
  }
  show(formatter.end());
  EXPECT_EQ(reader.rest(), "");
  return groups;
}

// A stream that is cut behind any of its groups and goes on in a formatter elsewhere has the same bytes: text, tool
// calls, log-probabilities, echo, token ids, usage, of one choice or several.
TEST(OpenAiStream, WhereverAStreamIsCutItsBytesAreTheSame) {
  const std::shared_ptr<const Tokenizer> tokenizer = testing::byte_tokenizer();
  int num_calls = 0, num_logprobs = 0, num_cuts = 0, num_usages = 0, num_thoughts = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Exchange exchange = random_exchange(random);
    exchange.request.stream = true;
    const std::vector<Group> whole = stream_of(exchange, tokenizer, {});
    AnswerLog all;
    std::string bytes;
    for (const Group& group : whole) {
      ASSERT_EQ(all.take(group.commit), AnswerLog::Verdict::kNews);
      bytes += group.events;
    }
    ASSERT_TRUE(all.whole());
    for (size_t i = 0; i < exchange.completions.size(); ++i)
      EXPECT_EQ(all.choices()[i].tokens, exchange.completions[i].token_ids);
    num_calls += bytes.find("tool_calls") != std::string::npos;
    num_logprobs += bytes.find("\"logprob") != std::string::npos;
    num_usages += bytes.find("\"usage\"") != std::string::npos;
    num_thoughts += bytes.find("\"reasoning\"") != std::string::npos;
    for (size_t cut = 0; cut < whole.size(); ++cut) {
      AnswerLog log;
      std::string shown;
      for (size_t g = 0; g < cut; ++g) {
        log.take(whole[g].commit);
        shown += whole[g].events;
      }
      const std::vector<Group> rest = stream_of(exchange, tokenizer, log.choices());
      for (const Group& group : rest) {
        ASSERT_EQ(log.take(group.commit), AnswerLog::Verdict::kNews);
        shown += group.events;
      }
      ASSERT_EQ(shown, bytes) << "cut behind group " << cut << " of " << whole.size();
      ASSERT_EQ(rest.size(), whole.size() - cut);
      ASSERT_EQ(log.choices(), all.choices());
      ++num_cuts;
    }
  }
  EXPECT_GT(num_calls, 20);
  EXPECT_GT(num_logprobs, 20);
  EXPECT_GT(num_usages, 20);
  EXPECT_GT(num_thoughts, 20);
  EXPECT_GT(num_cuts, 2000);
}

}  // namespace
}  // namespace lk
