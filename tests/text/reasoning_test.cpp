// SPDX-License-Identifier: Apache-2.0
// Thoughts and answers told apart, whatever the pieces.
#include "lk/text/reasoning.h"

#include <gtest/gtest.h>

#include "lk/base/file.h"

namespace lk {
namespace {

using enum ReasoningFormat;
using enum ThinkingStart;

std::string split(ReasoningFormat format, ThinkingStart start, bool exact, const std::vector<std::string>& pieces) {
  ThoughtSplitter splitter(format, start, exact);
  std::string thoughts, answer;
  for (const std::string& piece : pieces) splitter.push(piece, thoughts, answer);
  splitter.finish(thoughts, answer);
  return thoughts + "|" + answer;
}

struct Case {
  ReasoningFormat format;
  ThinkingStart start;
  std::string text, expected;
  bool exact = false;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {kQwen3, kMayThink, "<think>\nLet me see.\n\nYes.\n</think>\n\nRiga", "Let me see.\n\nYes.|Riga"},
      {kQwen3, kMayThink, "\n<think>a</think>b", "a|b"},
      {kQwen3, kMayThink, "Riga <think>a</think>", "|Riga <think>a</think>"},
      {kQwen3, kMayThink, "\n Riga", "|\n Riga"},
      {kQwen3, kMayThink, "<thin", "|<thin"},
      {kQwen3, kMayThink, "<thing>", "|<thing>"},
      {kQwen3, kMayThink, "", "|"},
      {kQwen3, kMayThink, "<think>\n\n</think>\n\nRiga", "|Riga"},
      {kQwen3, kMayThink, "<think>cut off", "cut off|"},
      {kQwen3, kMayThink, "<think>cut </thin", "cut </thin|"},
      {kQwen3, kMayThink, "<think>cut\n", "cut|"},
      {kQwen3, kMayThink, "<think>a < b <</think> c</think>d", "a < b <|c</think>d"},
      {kQwen3, kMayThink, "<think>é漢</think>🙂", "é漢|🙂"},
      {kQwen3, kThinking, "I see.\n</think>\n\nYes", "I see.|Yes"},
      {kQwen3, kThinking, "<think>\nI see.</think>Yes", "I see.|Yes"},  // once more than the prompt
      {kQwen3, kThinking, "<thought</think>Yes", "<thought|Yes"},
      {kQwen3, kThinking, "</think>Yes", "|Yes"},
      {kQwen3, kThinking, "no end", "no end|"},
      {kQwen3, kThinking, "<thi", "<thi|"},
      {kQwen3, kAnswering, "<think>a</think>b", "|<think>a</think>b"},
      {kDeepSeekR1, kThinking, "Hm.\n</think>\n\n4", "Hm.|4"},
      {kGranite, kMayThink, "Here is my thought process:\n2 + 2\n\nHere is my response: 4", "2 + 2|4"},
      {kGranite, kMayThink, "Here's my thought process: x Here is my res Here's my response:y", "x Here is my res|y"},
      {kGranite, kMayThink, "Here is my answer", "|Here is my answer"},
      {kGranite33, kMayThink, "<think>2 + 2</think><response>4</response>", "2 + 2|4"},
      {kGranite33, kMayThink, "<think>a</think>\n\n<response>\nb <c> </resp\n</response>\n", "a|b <c> </resp\n\n"},
      {kGranite33, kMayThink, "<response>b</response>", "|b"},
      {kGranite33, kMayThink, "plain </response>", "|plain </response>"},
      {kGranite33, kMayThink, "<think>a</think><response>cut off <", "a|cut off <"},
      {kGranite33, kMayThink, "<think>a</think><resp", "a|<resp"},
      {kGranite33, kThinking, "a</think><response>b</response>c", "a|bc"},
      {kGranite33, kAnswering, "<response>b</response>", "|b"},
      {kGranite33, kMayThink, "<think>a</think>{}", "a|{}", true},
      {kNone, kMayThink, "<think>a</think>", "|<think>a</think>"},
      // Bound by a grammar: white space is a part of the answer.
      {kQwen3, kMayThink, "<think>a\n</think>\n\n{}", "a|\n\n{}", true},
      {kQwen3, kMayThink, "\n<think>a</think>", "|\n<think>a</think>", true},
      {kQwen3, kThinking, "a</think>\n1", "a|\n1", true},
  };
  return list;
}

TEST(ThoughtSplitter, EachFormat) {
  for (const Case& c : cases()) EXPECT_EQ(split(c.format, c.start, c.exact, {c.text}), c.expected) << c.text;
}

TEST(ThoughtSplitter, PiecesDoNotMatter) {
  for (const Case& c : cases()) {
    std::vector<std::string> bytes;
    for (const char byte : c.text) bytes.emplace_back(1, byte);
    EXPECT_EQ(split(c.format, c.start, c.exact, bytes), c.expected) << c.text;
    for (size_t cut = 0; cut <= c.text.size(); ++cut)
      EXPECT_EQ(split(c.format, c.start, c.exact, {c.text.substr(0, cut), c.text.substr(cut)}), c.expected)
          << c.text << " cut at " << cut;
  }
}

TEST(ThoughtSplitter, ThoughtsArriveAsTheyAreMade) {
  ThoughtSplitter splitter(kQwen3, kMayThink, false);
  std::string thoughts, answer;
  splitter.push("<think>\nLet me", thoughts, answer);
  EXPECT_EQ(thoughts, "Let me");
  splitter.push(" see </thi", thoughts, answer);
  EXPECT_EQ(thoughts, "Let me see");
  splitter.push("nk>Yes", thoughts, answer);
  EXPECT_EQ(thoughts, "Let me see");
  EXPECT_EQ(answer, "Yes");
  EXPECT_EQ(splitter.phase(), ThoughtSplitter::Phase::kAnswer);
}

TEST(Reasoning, WhereAPromptLeavesTheModel) {
  EXPECT_EQ(thinking_start(kQwen3, "<|im_start|>assistant\n"), kMayThink);
  EXPECT_EQ(thinking_start(kQwen3, "<|im_start|>assistant\n<think>\n"), kThinking);
  EXPECT_EQ(thinking_start(kQwen3, "<|im_start|>assistant\n<think>\n\n</think>\n\n"), kAnswering);
  EXPECT_EQ(thinking_start(kDeepSeekR1, "<｜Assistant｜>"), kThinking) << "it may leave the first mark out";
  EXPECT_EQ(thinking_start(kDeepSeekR1, "<｜Assistant｜><think>\n"), kThinking);
  EXPECT_EQ(thinking_start(kDeepSeekR1, "<｜Assistant｜></think>"), kAnswering);
  EXPECT_EQ(thinking_start(kGranite, "<|start_of_role|>assistant<|end_of_role|>"), kMayThink);
  EXPECT_EQ(thinking_start(kQwen3, "What does <think> mean?<|im_end|>\n<|im_start|>assistant\n"), kMayThink);
  // An answer that is continued.
  EXPECT_EQ(thinking_start(kQwen3, "x", "<think>\nWell, x"), kThinking);
  EXPECT_EQ(thinking_start(kQwen3, "x", "<think>\nWell</think>x"), kAnswering);
  EXPECT_EQ(thinking_start(kDeepSeekR1, "The answer", "The answer"), kAnswering);
  EXPECT_EQ(thinking_start(kQwen3, "<think>\n", " "), kThinking);
}

TEST(Reasoning, FormatOfATemplate) {
  EXPECT_EQ(detect_reasoning_format("{{ '<｜Assistant｜><think>' }}"), kDeepSeekR1);
  EXPECT_EQ(detect_reasoning_format("{{ content.split('</think>')[-1] }}"), kQwen3);
  EXPECT_EQ(detect_reasoning_format("write the response after 'Here is my response:'"), kGranite);
  EXPECT_EQ(detect_reasoning_format("{{ messages }}"), kNone);
  const auto of_file = [](const std::string& name) {
    return detect_reasoning_format(read_file("tests/text/fixtures/templates/" + name + ".jinja").value());
  };
  EXPECT_EQ(of_file("qwen3"), kQwen3);
  for (const char* name : {"qwen25", "llama3", "llama31", "mistral3", "chatml", "zephyr"})
    EXPECT_EQ(of_file(name), kNone) << name;
  EXPECT_EQ(parse_reasoning_format("deepseek_r1"), kDeepSeekR1);
  EXPECT_EQ(parse_reasoning_format("off"), kNone);
  EXPECT_EQ(parse_reasoning_format("auto"), std::nullopt);
}

}  // namespace
}  // namespace lk
