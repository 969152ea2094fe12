// SPDX-License-Identifier: Apache-2.0
// To which part of a text its grammar applies: behind thoughts, and not in calls.
#include "lk/infer/grammar_gate.h"

#include <gtest/gtest.h>

#include "lk/infer/constraint.h"
#include "serve/openai_testing.h"

namespace lk {
namespace {

using testing::kEndToken;
using testing::kToolToken;

constexpr int64_t kVocab = 270;

std::shared_ptr<const TextSide> side() {
  static const auto made = [] {
    auto side = std::make_shared<TextSide>();
    side->tokenizer = testing::byte_tokenizer();
    side->end_tokens = {kEndToken};
    side->vocab_size = kVocab;
    return side;
  }();
  return made;
}

std::shared_ptr<const Grammar> grammar(const std::string& regex) {
  return compile_grammar({.kind = GrammarSpec::Kind::kRegex, .text = regex, .choices = {}}, side()->vocabulary())
      .value();
}

// The constraint of a request, fed with text.
class Gate {
 public:
  explicit Gate(const TextRequest& request)
      : constraint_(make_constraint(request, {kEndToken}, kVocab, side().get())) {}
  Gate& feed(std::string_view text) {
    for (const char c : text) token(static_cast<unsigned char>(c));
    return *this;
  }
  Gate& token(int32_t id) {
    EXPECT_TRUE(allowed().contains(id)) << id;
    const Status taken = constraint_->accept(id);
    EXPECT_TRUE(taken.ok()) << taken.message();
    return *this;
  }
  std::set<int32_t> allowed() {
    std::vector<uint64_t> words(static_cast<size_t>((kVocab + 63) / 64));
    EXPECT_TRUE(constraint_->allowed(words).ok());
    std::set<int32_t> tokens;
    for (int32_t id = 0; id < kVocab; ++id)
      if (words[static_cast<size_t>(id / 64)] >> (id % 64) & 1) tokens.insert(id);
    return tokens;
  }
  // The allowed tokens as text; "*" for nearly all.
  std::string shown() {
    const std::set<int32_t> tokens = allowed();
    if (tokens.size() > 200) return tokens.contains(kEndToken) ? "*$" : "*";
    std::string text;
    for (const int32_t id : tokens) {
      if (id < 256) text += static_cast<char>(id);
      if (id == kEndToken) text += '$';
      if (id == kToolToken) text += '#';
    }
    return text;
  }

 private:
  std::shared_ptr<TokenConstraint> constraint_;
};

TextRequest thinking(ThinkingStart start, const std::string& regex = "ab", int64_t budget = -1) {
  TextRequest request;
  if (!regex.empty()) request.grammar = grammar(regex);
  request.reasoning = ReasoningFormat::kQwen3;
  request.thinking_start = start;
  request.thinking_budget = budget;
  return request;
}

TEST(GrammarGate, BindsBehindTheThoughts) {
  Gate gate(thinking(ThinkingStart::kThinking));
  EXPECT_EQ(gate.shown(), "*") << "thoughts are free, but do not end the text";
  gate.feed("so </thinking>, a < b</think");
  EXPECT_EQ(gate.shown(), "*");
  gate.feed(">");
  EXPECT_EQ(gate.shown(), "a");
  gate.feed("ab");
  EXPECT_EQ(gate.shown(), "$");
}

TEST(GrammarGate, AModelThatMayThinkChooses) {
  Gate thinks(thinking(ThinkingStart::kMayThink));
  EXPECT_EQ(thinks.shown(), "<a");
  thinks.feed("<thin");
  EXPECT_EQ(thinks.shown(), "k");
  thinks.feed("k>");
  EXPECT_EQ(thinks.shown(), "*");
  thinks.feed("x</think>");
  EXPECT_EQ(thinks.shown(), "a");
  Gate answers(thinking(ThinkingStart::kMayThink));
  EXPECT_EQ(answers.feed("a").shown(), "b");
  // A text of the grammar that begins as thoughts do.
  Gate both(thinking(ThinkingStart::kMayThink, "<t[x-z]"));
  EXPECT_EQ(both.feed("<t").shown(), "hxyz");
  EXPECT_EQ(both.feed("x").shown(), "$");
  Gate over(thinking(ThinkingStart::kAnswering));
  EXPECT_EQ(over.shown(), "a");
}

TEST(GrammarGate, ABudgetEndsTheThoughts) {
  Gate gate(thinking(ThinkingStart::kThinking, "ab", 3));
  gate.feed("xyz");
  for (const char c : std::string("</think>")) {
    EXPECT_EQ(gate.shown(), std::string(1, c));
    gate.feed({&c, 1});
  }
  EXPECT_EQ(gate.shown(), "a");
  Gate none(thinking(ThinkingStart::kThinking, "", 0));
  none.feed("</think>");
  EXPECT_EQ(none.shown(), "*$") << "without a grammar the answer is free";
  Gate soon(thinking(ThinkingStart::kMayThink, "", 1));
  EXPECT_EQ(soon.shown(), "*$");
  soon.feed("\n<think>x");
  EXPECT_EQ(soon.shown(), "<");
  Gate earlier(thinking(ThinkingStart::kThinking, "", 20));
  EXPECT_EQ(earlier.feed("x</think>").shown(), "*$");
  EXPECT_EQ(earlier.feed(std::string(30, 'y')).shown(), "*$");
  Gate answers(thinking(ThinkingStart::kMayThink, "", 1));
  EXPECT_EQ(answers.feed("no thoughts at all").shown(), "*$");
  // Whatever else is allowed.
  TextRequest request = thinking(ThinkingStart::kThinking, "", 1);
  request.allowed_token_ids = {'x'};
  request.min_tokens = 20;
  Gate narrow(request);
  EXPECT_EQ(narrow.feed("x").shown(), "<");
  EXPECT_EQ(narrow.feed("</think>").shown(), "x");
}

TEST(GrammarGate, CallsAreFree) {
  TextRequest request;
  request.grammar = grammar("[{]a}");
  request.call_openings = {"<tool_call>", R"({"name": "f")"};
  EXPECT_EQ(Gate(request).shown(), "<{#");
  EXPECT_EQ(Gate(request).feed("{a}").shown(), "$");
  EXPECT_EQ(Gate(request).feed("{").shown(), "\"a");
  EXPECT_EQ(Gate(request).feed(R"({"name": "f)").shown(), "\"");
  EXPECT_EQ(Gate(request).feed(R"({"name": "f")").shown(), "*$");
  EXPECT_EQ(Gate(request).token(kToolToken).shown(), "*$");
  EXPECT_EQ(Gate(request).feed("<tool_call>").shown(), "*$");
  // With a grammar of calls that holds behind the mark; or without one.
  request.call_grammar = grammar("[{]call[}]");
  EXPECT_EQ(Gate(request).feed("<tool_call>").shown(), "{");
  EXPECT_EQ(Gate(request).token(kToolToken).feed("{call}").shown(), "$");
  EXPECT_EQ(Gate(request).feed("{a}").shown(), "$");
  request.call_openings = {};
  request.bare_calls = true;
  EXPECT_EQ(Gate(request).shown(), "{");
  EXPECT_EQ(Gate(request).feed("{").shown(), "ac");
  EXPECT_EQ(Gate(request).feed("{c").shown(), "a");
  EXPECT_EQ(Gate(request).feed("{call}").shown(), "$");
  EXPECT_EQ(Gate(request).feed("{a}").shown(), "$");
  TextRequest both = thinking(ThinkingStart::kThinking, "ab");
  both.call_openings = {"<tool_call>"};
  EXPECT_EQ(Gate(both).feed("x</think>").shown(), "<a#");
  EXPECT_EQ(Gate(both).feed("x</think>").token(kToolToken).shown(), "*$");
  EXPECT_EQ(Gate(both).feed("x</think>ab").shown(), "$");
}

}  // namespace
}  // namespace lk
