// SPDX-License-Identifier: Apache-2.0
// Tool calls in the forms of the model families; what is no call stays content.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>

#include "lk/serve/openai/tool_parser.h"

namespace lk {
namespace {

using openai::ToolCallParser;
using openai::ToolDelta;
using openai::ToolDeltas;
using openai::ToolSyntax;

// "content|name(arguments)name(arguments)"
std::string summary(const ToolDeltas& deltas) {
  std::string content, calls;
  int call = -1;
  for (const ToolDelta& delta : deltas) {
    if (delta.kind == ToolDelta::Kind::kContent) content += delta.text;
    if (delta.kind == ToolDelta::Kind::kBegin) calls += (call >= 0 ? ")" : "") + delta.text + "(", call = delta.call;
    if (delta.kind == ToolDelta::Kind::kArguments) calls += delta.text;
  }
  return content + "|" + calls + (call >= 0 ? ")" : "");
}

std::string parse(ToolFormat format, const std::vector<std::string>& pieces) {
  static const auto kinds = std::make_shared<openai::ParameterKinds>(
      boost::json::parse(
          R"([{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "s": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}, "any": {}, "null": {"type": ["string", "null"]}}}}}])")
          .as_array());
  ToolCallParser parser(
      ToolSyntax{.format = format, .forced_name = "", .names = {"f", "g"}, .forced = false, .kinds = kinds});
  ToolDeltas deltas;
  for (const std::string& piece : pieces) parser.push(piece, deltas);
  parser.finish(deltas);
  return summary(deltas);
}

struct Case {
  ToolFormat format;
  std::string text, expected;
};

const std::vector<Case>& cases() {
  using enum ToolFormat;
  static const std::vector<Case> list = {
      {kNone, "<tool_call>{}", "<tool_call>{}|"},
      // Hermes, Qwen
      {kHermes, "plain é text", "plain é text|"},
      {kHermes, "", "|"},
      {kHermes, " \n", " \n|"},
      {kHermes, R"(<tool_call>{"name": "f", "arguments": {"x": [1, "}"]}}</tool_call>)", R"(|f({"x": [1, "}"]}))"},
      {kHermes,
       "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", "
       "\"arguments\": {\"é\": \"ü\"}}\n</tool_call>\n",
       R"(|f({})g({"é": "ü"}))"},
      {kHermes, R"(Let me see. <tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>)",
       R"(Let me see. |f({"x": 1}))"},
      {kHermes, R"(<tool_call>{"name": "f", "arguments": "{\"x\": 1}"}</tool_call>)", R"(|f({"x": 1}))"},
      {kHermes, R"(<tool_call>{"name": "f"}</tool_call>)", "|f({})"},
      {kHermes, R"(<tool_call>{"name": "f", "arguments": null}</tool_call>)", "|f({})"},
      {kHermes, R"(<tool_call>{"name": "f", "id": 5, "parameters": {}}</tool_call>done)", "done|f({})"},
      {kHermes, R"(<tool_call>{"name": "unknown", "arguments": {}})", "|unknown({})"},  // no closing tag
      {kHermes, R"(<tool_call>{"name": "f", "arguments": {"x": 1)", R"(|f({"x": 1))"},  // cut off
      {kHermes, R"(<tool_call>{"name": "f", "arguments": {}}} more)", "} more|f({})"},
      {kHermes, R"(<tool_call>{"name": "f", "arguments": {"x": }}</tool_call>then)",
       R"(then|f({"x": }}))"},  // wrong in the arguments
      {kHermes, "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>|"},
      {kHermes, R"(<tool_call>{"name": 1, "arguments": {}}</tool_call>)",
       R"(<tool_call>{"name": 1, "arguments": {}}</tool_call>|)"},
      {kHermes, R"(<tool_call>{"name": "f", "arguments": 3}</tool_call>)",
       R"(<tool_call>{"name": "f", "arguments": 3}</tool_call>|)"},
      {kHermes, R"(<tool_call>{"arguments": {}}</tool_call>)", R"(<tool_call>{"arguments": {}}</tool_call>|)"},
      {kHermes, R"(<tool_call>{"na)", R"(<tool_call>{"na|)"},
      {kHermes, R"(<tool_call>oops <tool_call>{"name": "f", "arguments": {}}</tool_call>)", "<tool_call>oops |f({})"},
      {kHermes, R"(<tool_call>{"name": "<tool_call>{"name": "f", "arguments": {}}</tool_call>)",
       R"(<tool_call>{"name": "|f({}))"},
      {kHermes, "a < b <tool_cal", "a < b <tool_cal|"},
      {kHermes, R"({"name": "f", "arguments": {}})", R"({"name": "f", "arguments": {}}|)"},
      // Llama 3
      {kLlama3, R"({"name": "f", "parameters": {"x": "1"}})", R"(|f({"x": "1"}))"},
      {kLlama3, R"( {"type": "function", "name": "f", "parameters": {}})", "|f({})"},
      {kLlama3, R"(<|python_tag|>{"name": "h", "parameters": {}})", "|h({})"},
      {kLlama3, R"({"name": "f", "parameters": {}}; {"name": "g", "parameters": {"y": 2}})", R"(|f({})g({"y": 2}))"},
      {kLlama3, R"({"name": "h", "parameters": {}})",
       R"({"name": "h", "parameters": {}}|)"},  // no such function: an answer in JSON
      {kLlama3, R"({"city": "Rome", "name": "f"})", R"({"city": "Rome", "name": "f"}|)"},
      {kLlama3, R"(See {"name": "f", "parameters": {}})", R"(See {"name": "f", "parameters": {}}|)"},
      {kLlama3, "<|python_tag|>print(1)", "<|python_tag|>print(1)|"},
      {kLlama3, R"({"name": "f")", R"({"name": "f"|)"},
      {kLlama3, R"({"name": "f", "parameters": {}} Done.)", " Done.|f({})"},
      // Mistral
      {kMistral, R"([TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}])",
       R"(|f({"x": 1})g({}))"},
      {kMistral, R"([TOOL_CALLS] [ {"name": "f", "arguments": {}} ] after)", " after|f({})"},
      {kMistral, R"([TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{})", R"(|f({"x": 1})g({}))"},
      {kMistral, R"(Ok.[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"x": 1})", R"(Ok.|f({"x": 1}))"},
      {kMistral, R"([TOOL_CALLS]f{"x": 1})", R"(|f({"x": 1}))"},
      {kMistral, R"([TOOL_CALLS]{"name": "f", "arguments": {}})", "|f({})"},
      {kMistral, R"([TOOL_CALLS]f[ARGS]{"x": 1)", R"(|f({"x": 1))"},
      {kMistral, "[TOOL_CALLS]f[ARGS]no", "[TOOL_CALLS]f[ARGS]no|"},
      {kMistral, "[TOOL_CALLS]f and g", "[TOOL_CALLS]f and g|"},
      {kMistral, "[TOOL_CALLS][]", "[TOOL_CALLS][]|"},
      {kMistral, "[TOOL_CALLS]", "[TOOL_CALLS]|"},
      {kMistral, R"([TOOL_CALLS][{"name": "f", "arguments": {}}, {"x": 1}])", R"(, {"x": 1}]|f({}))"},
      {kMistral, "[TOOL_CALLS]f[CALL_ID]" + std::string(80, 'x'),
       "[TOOL_CALLS]f[CALL_ID]" + std::string(80, 'x') + "|"},
      // Qwen3-Coder
      {kQwen3Coder,
       "<tool_call>\n<function=f>\n<parameter=s>\nRiga "
       "\"x\"\n</parameter>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>",
       R"(|f({"s": "Riga \"x\"", "n": 5}))"},
      {kQwen3Coder, "<tool_call><function=g></function></tool_call>", "|g({})"},
      {kQwen3Coder, "I'll see.\n<tool_call>\n<function=f>\n<parameter=s>a</parameter></function></tool_call>\n",
       "I'll see.\n|f({\"s\": \"a\"})"},
      {kQwen3Coder, "<function=f>\n<parameter=s>\na\n\nb\\\n\n</parameter>\n</function>", R"(|f({"s": "a\n\nb\\\n"}))"},
      {kQwen3Coder,
       "<tool_call><function=f><parameter=o>\n{\"a\": [1]}\n</parameter><parameter=n>five</parameter></function>",
       R"(|f({"o": {"a": [1]}, "n": "five"}))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=null>null</parameter><parameter=any>7</parameter></function>",
       R"(|f({"null": null, "any": "7"}))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=null>7 </parameter></function>", R"(|f({"null": "7 "}))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=n>True</function></tool_call>x", R"(x|f({"n": true}))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=s>a < b </param </parameter></function></tool_call>",
       R"(|f({"s": "a < b </param "}))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=s>cut o", R"(|f({"s": "cut o))"},
      {kQwen3Coder, "<tool_call><function=f><parameter=s>a</parameter>stray</tool_call>x", R"(x|f({"s": "a"stray))"},
      {kQwen3Coder, "<tool_call><function=f></function></tool_call>\n<tool_call><function=g></function></tool_call>",
       "|f({})g({})"},
      {kQwen3Coder, R"(<tool_call>{"name": "f", "arguments": {"s": "x"}}</tool_call>)", R"(|f({"s": "x"}))"},
      {kQwen3Coder, "<tool_call>no call", "<tool_call>no call|"},
      {kQwen3Coder, "a <function f>", "a <function f>|"},
      {kQwen3Coder, "<function=f\n>", "<function=f\n>|"},
      {kQwen3Coder, "<tool_call><func", "<tool_call><func|"},
      // Llama 3.2 and 4
      {kPythonic, R"([f(s="a", n=5), g()])", R"(|f({"s": "a", "n": 5})g({}))"},
      {kPythonic, R"( [f(s='it\'s "x"', n=-1.5e3, o={'k': [True, None, (1, 2,)], 3: "é"}, p=[],)] )",
       R"(|f({"s": "it's \"x\"", "n": -1.5e3, "o": {"k": [true, null, [1, 2]], "3": "é"}, "p": []}))"},
      {kPythonic, R"(<|python_tag|>f(s="a\x41\u00e9\n\d"))", R"(|f({"s": "a\u0041\u00e9\n\\d"}))"},
      {kPythonic, "<|python_start|>[g(x = 1)]<|python_end|>", R"(|g({"x": 1}))"},
      {kPythonic, "[h(x=1)]", "[h(x=1)]|"},  // no such function: a list
      {kPythonic, "[1, 2]", "[1, 2]|"},
      {kPythonic, "See [f(x=1)]", "See [f(x=1)]|"},
      {kPythonic, "[f(x=abc)]", R"(|f({"x": "abc"}))"},
      {kPythonic, "[f(x=1", R"(|f({"x": ))"},
      {kPythonic, R"([f(x="cut)", R"(|f({"x": "cut))"},
      {kPythonic, "[f(1)]", "|f(1)])"},  // wrong in the arguments
      {kPythonic, "[f(x, 1)]", "|f(x, 1)])"},
      {kPythonic, "[f", "[f|"},
      {kPythonic, "[f(x=1)] and more", "and more|f({\"x\": 1})"},
      // Granite
      {kGranite, R"(<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}])",
       R"(|f({"x": 1})g({}))"},
      {kGranite, R"(<tool_call> {"name": "f", "arguments": {}})", "|f({})"},
      {kGranite, "<|tool_call|>none", "<|tool_call|>none|"},
      // Phi-4
      {kPhi4, R"(functools[{"name": "f", "arguments": {"x": 1}}])", R"(|f({"x": 1}))"},
      {kPhi4, R"(<|tool_call|>[{"name": "f", "parameters": {}}]<|/tool_call|>)", "|f({})"},
      {kPhi4, "functools are useful", "functools are useful|"},
  };
  return list;
}

TEST(ToolCalls, EachFormat) {
  for (const Case& c : cases()) EXPECT_EQ(parse(c.format, {c.text}), c.expected) << c.text;
}

TEST(ToolCalls, PiecesDoNotMatter) {
  std::mt19937_64 random(7);
  for (const Case& c : cases()) {
    std::vector<std::string> bytes;
    for (const char byte : c.text) bytes.emplace_back(1, byte);
    EXPECT_EQ(parse(c.format, bytes), c.expected) << c.text;
    for (int round = 0; round < 20; ++round) {
      std::vector<std::string> pieces;
      for (size_t pos = 0; pos < c.text.size();) {
        const size_t size = 1 + random() % 12;
        pieces.push_back(c.text.substr(pos, size));
        pos += size;
      }
      EXPECT_EQ(parse(c.format, pieces), c.expected) << c.text;
    }
  }
}

TEST(ToolCalls, ArgumentsArriveAsTheyAreWritten) {
  ToolCallParser parser(ToolSyntax{.format = ToolFormat::kHermes, .forced_name = "", .names = {}});
  ToolDeltas deltas;
  parser.push(R"(<tool_call>{"name": "f")", deltas);
  EXPECT_TRUE(deltas.empty());
  parser.push(R"(, "arguments": {"x)", deltas);
  EXPECT_EQ(summary(deltas), R"(|f({"x))");
  EXPECT_EQ(parser.num_calls(), 1);
  deltas.clear();
  parser.push("\": 1}", deltas);
  ASSERT_EQ(deltas.size(), 1u);
  EXPECT_EQ(deltas[0].text, "\": 1}");
  deltas.clear();
  parser.push("}</tool_", deltas);
  parser.push("call>", deltas);
  parser.finish(deltas);
  EXPECT_TRUE(deltas.empty());
}

// A grammar made it a call: what is cut off before its name is known shows nowhere.
TEST(ToolCalls, AForcedCallHasNoContent) {
  const std::string whole = R"({"name": "f", "arguments": {"x": 1}})";
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    ToolCallParser parser(ToolSyntax{.format = ToolFormat::kLlama3, .forced_name = "", .names = {"f"}, .forced = true});
    ToolDeltas deltas;
    parser.push(whole.substr(0, cut), deltas);
    parser.finish(deltas);
    const std::string shown = summary(deltas);
    EXPECT_TRUE(shown.starts_with("|")) << shown;
    EXPECT_EQ(shown == "|", cut < whole.find(R"({"x")") + 1) << shown;
  }
}

// Text that begins calls without end is looked at a bounded number of times, and all of it comes out.
TEST(ToolCalls, NestedBeginningsTakeLinearTime) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += R"(<tool_call>{"id":")";
  EXPECT_EQ(parse(ToolFormat::kHermes, {text}), text + "|");
  EXPECT_EQ(parse(ToolFormat::kHermes, {"<tool_call>{\"name\":" + std::string(100'000, '[')}),
            "<tool_call>{\"name\":" + std::string(100'000, '[') + "|");
}

// Whatever the text: nothing but markup is lost, and only if there are calls.
TEST(ToolCalls, RandomTextIsNeverLost) {
  const std::string parts[] = {"<tool_call>",
                               "</tool_call>",
                               "{",
                               "}",
                               "\"name\"",
                               ":",
                               "\"f\"",
                               ",",
                               "\"arguments\"",
                               "[TOOL_CALLS]",
                               "[ARGS]",
                               "<|python_tag|>",
                               "<|tool_call|>",
                               "functools",
                               "<function=f>",
                               "<parameter=s>",
                               "</parameter>",
                               "</function>",
                               "f(",
                               "s=",
                               ")",
                               "'",
                               "\n",
                               "x",
                               " ",
                               "[",
                               "]",
                               ";",
                               "é",
                               "\\",
                               "\"",
                               "1",
                               "f",
                               "{\"name\": \"f\", \"parameters\": {\"a\": 1}}"};
  std::mt19937_64 random(11);
  for (const ToolFormat format :
       {ToolFormat::kHermes, ToolFormat::kLlama3, ToolFormat::kMistral, ToolFormat::kQwen3Coder, ToolFormat::kPythonic,
        ToolFormat::kGranite, ToolFormat::kPhi4})
    for (int round = 0; round < 5000; ++round) {
      std::string text;
      std::vector<std::string> pieces;
      for (size_t count = random() % 20; count > 0; --count)
        pieces.push_back(parts[random() % std::size(parts)]), text += pieces.back();
      const std::string whole = parse(format, {text});
      ASSERT_EQ(parse(format, pieces), whole) << text;
      if (whole.ends_with("|")) {
        ASSERT_EQ(whole, text + "|");
      }
      const bool json = format == ToolFormat::kHermes || format == ToolFormat::kLlama3;
      for (const char c : {'x', ']'}) {
        if (c == ']' && !json) continue;  // lists of calls drop brackets
        ASSERT_EQ(std::count(whole.begin(), whole.end(), c), std::count(text.begin(), text.end(), c)) << text;
      }
    }
}

TEST(ToolCalls, FormatOfAModel) {
  EXPECT_EQ(detect_tool_format("qwen2", "{{ '<tool_call>' }}"), ToolFormat::kHermes);
  EXPECT_EQ(detect_tool_format("mistral", "{{ '[TOOL_CALLS]' }}"), ToolFormat::kMistral);
  EXPECT_EQ(detect_tool_format("llama", "{{ '<|python_tag|>' }}"), ToolFormat::kLlama3);
  EXPECT_EQ(detect_tool_format("llama", R"({{ '{"name": "f", "parameters": {}}' }})"), ToolFormat::kLlama3);
  EXPECT_EQ(detect_tool_format("llama", "{{ messages }}"), ToolFormat::kNone);
  EXPECT_EQ(detect_tool_format("qwen3", "<tool_call>\n<function=x>\n<parameter=y>"), ToolFormat::kQwen3Coder);
  EXPECT_EQ(detect_tool_format("llama", "as [func_name1(params_name1=params_value1)]"), ToolFormat::kPythonic);
  EXPECT_EQ(detect_tool_format("granite", "respond with <|tool_call|> followed by a JSON list"), ToolFormat::kGranite);
  EXPECT_EQ(detect_tool_format("granite", "<tool_call>\n{}\n</tool_call>"), ToolFormat::kHermes);
  EXPECT_EQ(detect_tool_format("phi3", "<|tool|>' + message['tools'] + '<|/tool|>"), ToolFormat::kPhi4);
}

}  // namespace
}  // namespace lk
