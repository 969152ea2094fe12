// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "lk/base/json_text.h"

namespace lk {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using F = RecordFormat;

Record parse(const std::string& line, F format) {
  auto record = parse_record(line, format, "d.jsonl:7");
  LK_CHECK(record.ok(), "{}", record.status().message());
  return *record;
}
std::string error(const std::string& line, F format) {
  const auto record = parse_record(line, format, "d.jsonl:7");
  return record.ok() ? "parsed" : record.status().message();
}

TEST(Record, FormatIsThatOfTheFields) {
  const auto detect = [](const char* line) { return detect_record_format(line, "d.jsonl:1"); };
  EXPECT_EQ(*detect(R"({"id": 1, "messages": []})"), F::kMessages);
  EXPECT_EQ(*detect(R"({"conversations": []})"), F::kSharegpt);
  EXPECT_EQ(*detect(R"({"instruction": "", "text": "alpaca has this too"})"), F::kAlpaca);
  EXPECT_EQ(*detect(R"({"prompt": "", "completion": ""})"), F::kCompletion);
  EXPECT_EQ(*detect(R"({"text": ""})"), F::kText);
  EXPECT_THAT(detect(R"({"prompt": "", "chosen": ""})").status().message(), HasSubstr("d.jsonl:1: the format is not"));
  EXPECT_THAT(detect(R"({"prompt": "", "response": ""})").status().message(),
              HasSubstr(R"(this one has "prompt", "response")"));
  EXPECT_THAT(detect(R"({"prompt": "", "chosen": "", "rejected": ""})").status().message(), HasSubstr("preferences"));
  // Tables have a column for every field that any record has.
  EXPECT_EQ(*detect(R"({"messages": null, "instruction": null, "text": "x"})"), F::kText);
  EXPECT_EQ(*detect(R"({"messages": null, "instruction": "x", "output": "y"})"), F::kAlpaca);
  for (const F format : {F::kMessages, F::kSharegpt, F::kAlpaca, F::kCompletion, F::kText})
    EXPECT_EQ(parse_record_format(to_string(format)), format);
  EXPECT_EQ(parse_record_format("csv"), std::nullopt);
}

TEST(Record, MessagesAreGivenToTemplatesAsTheyWantThem) {
  const Record record = parse(
      R"({"messages": [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "weight": 1},
        {"role": "assistant", "content": null, "weight": 0, "tool_calls": [
          {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{\"y\": 1}"}}]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
        {"role": "assistant", "content": "done", "weight": 0.5}], "tools": [{"type": "function"}], "id": 5})",
      F::kMessages);
  EXPECT_THAT(record.weights, ElementsAre(1, 1, 0, 1, 0.5));
  EXPECT_EQ(
      json_text(record.messages),
      R"([{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},)"
      R"({"role":"assistant","tool_calls":[{"id":"x","type":"function","function":)"
      R"({"name":"f","arguments":{"y":1}}}]},{"role":"tool","content":"2","tool_call_id":"x"},)"
      R"({"role":"assistant","content":"done"}])");
  EXPECT_EQ(record.tools.size(), 1u);
}

TEST(Record, SharegptTurnsBecomeMessages) {
  const Record record = parse(
      R"({"system": "s", "tools": "[{\"name\": \"f\"}]", "conversations": [{"from": "human", "value": "q"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": \"{}\"}"},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}]})",
      F::kSharegpt);
  EXPECT_EQ(json_text(record.messages),
            R"([{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"",)"
            R"("tool_calls":[{"type":"function","function":{"name":"f","arguments":{}}}]},)"
            R"({"role":"tool","content":"2"},{"role":"assistant","content":"a"}])");
  EXPECT_EQ(json_text(record.tools), R"([{"name":"f"}])");
}

TEST(Record, TurnsMayHaveEitherForm) {
  const char* const expected =
      R"([{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}])";
  EXPECT_EQ(json_text(parse(R"({"conversations": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                                 {"role": "assistant", "content": "a"}]})",
                            F::kSharegpt)
                          .messages),
            expected);
  EXPECT_EQ(json_text(parse(R"({"system": "s", "messages": [{"from": "human", "value": "q"},
                                 {"from": "gpt", "value": "a"}]})",
                            F::kMessages)
                          .messages),
            expected);
  EXPECT_THAT(error(R"({"system": "s", "messages": [{"role": "system", "content": "s"}]})", F::kMessages),
              HasSubstr("\"system\" and messages[0] are both"));
}

TEST(Record, TurnsWithoutLossAreMarkedInEveryForm) {
  const Record sharegpt = parse(
      R"({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad", "weight": 0},
        {"from": "gpt", "value": "good", "weight": null}]})",
      F::kSharegpt);
  EXPECT_THAT(sharegpt.weights, ElementsAre(1, 0, 1));
  const Record axolotl = parse(
      R"({"messages": [{"role": "assistant", "content": "bad", "train": false},
        {"role": "assistant", "content": "bad", "training": false}, {"role": "assistant", "content": "", "train": true}]})",
      F::kMessages);
  EXPECT_THAT(axolotl.weights, ElementsAre(0, 0, 1));
  EXPECT_EQ(json_text(axolotl.messages[0]), R"({"role":"assistant","content":"bad"})");
  EXPECT_THAT(error(R"({"messages": [{"role": "assistant", "content": "x", "train_detail": []}]})", F::kMessages),
              HasSubstr("messages[0].train_detail: parts of a message cannot be left out"));
}

TEST(Record, FieldsThatAreNullAreNotThere) {
  const Record record = parse(
      R"({"messages": [{"role": "user", "content": "q", "name": null, "tool_calls": [], "weight": null},
        {"role": "assistant", "content": null, "tool_calls": [{"id": null, "function": {"name": "f",
          "arguments": {"x": 1, "y": null}}}]}], "tools": [{"type": "function", "strict": null}], "system": null})",
      F::kMessages);
  EXPECT_EQ(json_text(record.messages), R"([{"role":"user","content":"q"},{"role":"assistant",)"
                                        R"("tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]}])");
  EXPECT_EQ(json_text(record.tools), R"([{"type":"function"}])");
  // What stands in a string was written as it is.
  EXPECT_EQ(json_text(parse(R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f",
                                 "arguments": "{\"y\": null}"}}]}]})",
                            F::kMessages)
                          .messages[0]
                          .at("tool_calls")),
            R"([{"function":{"name":"f","arguments":{"y":null}}}])");
}

TEST(Record, OlderCallsAreTakenAsToday) {
  const Record record = parse(
      R"({"messages": [{"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"a\": 1}"}},
        {"role": "function", "name": "f", "content": "3"}], "functions": [{"name": "f"}]})",
      F::kMessages);
  EXPECT_EQ(json_text(record.messages),
            R"([{"role":"assistant","tool_calls":[{"type":"function","function":)"
            R"({"name":"f","arguments":{"a":1}}}]},{"role":"tool","name":"f","content":"3"}])");
  EXPECT_EQ(json_text(record.tools), R"([{"type":"function","function":{"name":"f"}}])");
}

TEST(Record, APromptOfMessagesIsGiven) {
  const Record record = parse(
      R"({"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        "completion": [{"role": "assistant", "content": "a"}], "chat_template_kwargs": {"enable_thinking": false}})",
      F::kCompletion);
  EXPECT_EQ(record.kind, Record::Kind::kMessages);
  EXPECT_THAT(record.weights, ElementsAre(1, 1, 1));
  EXPECT_EQ(record.num_prompt_messages, 2u);
  EXPECT_EQ(json_text(record.variables), R"({"enable_thinking":false})");
  EXPECT_THAT(error(R"({"prompt": [], "completion": "x"})", F::kCompletion), HasSubstr("\"prompt\" must be a string"));
}

TEST(Record, WhatIsNotJsonLinesIsNamed) {
  EXPECT_THAT(error("[", F::kText), HasSubstr("jq -c '.[]'"));
  EXPECT_THAT(error("[{}, {}]", F::kText), HasSubstr("jq -c '.[]'"));
  EXPECT_THAT(error("PAR1\x15", F::kText), HasSubstr("Parquet"));
  EXPECT_THAT(error("\x1F\x8B\x08", F::kText), HasSubstr("compressed"));
  EXPECT_THAT(error("\xFF\xFE{", F::kText), HasSubstr("UTF-16"));
  EXPECT_THAT(error("prompt,completion", F::kText), HasSubstr("one JSON object per line"));
  EXPECT_THAT(error("{", F::kText), HasSubstr("write each record on one line"));
  EXPECT_THAT(error(R"({"text": "x", "score": NaN})", F::kText), HasSubstr("write null"));
}

TEST(Record, AlpacaBecomesMessagesAndAPromptForModelsWithoutTemplate) {
  Record record = parse(R"({"instruction": "do", "input": "this", "output": "ok"})", F::kAlpaca);
  EXPECT_EQ(json_text(record.messages),
            R"([{"role":"user","content":"do\nthis"},{"role":"assistant","content":"ok"}])");
  EXPECT_THAT(record.prompt, HasSubstr("### Instruction:\ndo\n\n### Input:\nthis\n\n### Response:"));
  EXPECT_EQ(record.completion, "ok");
  record = parse(R"({"instruction": "do", "output": "ok", "system": "s", "history": [["q", "a"]]})", F::kAlpaca);
  EXPECT_EQ(json_text(record.messages),
            R"([{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"},)"
            R"({"role":"user","content":"do"},{"role":"assistant","content":"ok"}])");
  EXPECT_EQ(record.prompt, "");
}

TEST(Record, ErrorsNameThePlaceAndTheField) {
  const struct {
    F format;
    const char *line, *message;
  } cases[] = {
      {F::kText, "{\"text\": \"a\"", "d.jsonl:7: not valid JSON: "},
      {F::kText, "{\"text\": NaN}", "d.jsonl:7: not valid JSON: "},
      {F::kText, "{\"text\": \"\xff\"}", "d.jsonl:7: not valid JSON: "},
      {F::kText, "\"a\"", "d.jsonl:7: a record must be a JSON object, is a string"},
      {F::kText, "{\"text\": \"\"}", "d.jsonl:7: \"text\" is empty"},
      {F::kText, "{\"text\": 5}", "d.jsonl:7: \"text\" must be a string, is a number"},
      {F::kCompletion, "{\"prompt\": \"a\"}", "d.jsonl:7: \"completion\" is missing"},
      {F::kMessages, "{}", "d.jsonl:7: \"messages\" must be a list"},
      {F::kMessages, R"({"messages": [5]})", "d.jsonl:7: messages[0] must be an object, is a number"},
      {F::kMessages, R"({"messages": [{"content": "x"}]})", "messages[0]: \"role\" is missing"},
      {F::kMessages, R"({"messages": [{"role": "user"}]})", "messages[0]: \"content\" is missing"},
      {F::kMessages, R"({"messages": [{"role": "bot", "content": "x"}]})",
       "d.jsonl:7: messages[0].role: \"bot\" is unknown; it must be system,"},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": "x", "weight": 2}]})",
       "messages[0]: \"weight\" must be at least 0 and at most 1, is 2"},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": "x", "weight": 1e999}]})", "d.jsonl:7: "},
      {F::kMessages, R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0] must be {\"type\": \"text\""},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"function": {}}]}]})",
       "messages[0].tool_calls[0] must be an object with"},
      {F::kMessages, R"({"messages": [{"role": "user", "content": "x"}]})", "d.jsonl:7: no turn of the assistant"},
      {F::kSharegpt, R"({"conversations": [{"from": "alien", "value": "x"}]})",
       "conversations[0].from: \"alien\" is unknown"},
      {F::kSharegpt, R"({"conversations": [{"from": "function_call", "value": "x"}]})", "must be JSON with \"name\""},
      {F::kAlpaca, R"({"instruction": "x"})", "d.jsonl:7: \"output\" is missing"},
      {F::kAlpaca, R"({"instruction": "x", "output": "y", "history": [["z"]]})", "pairs"},
  };
  for (const auto& [format, line, message] : cases) EXPECT_THAT(error(line, format), HasSubstr(message)) << line;
}

}  // namespace
}  // namespace lk
