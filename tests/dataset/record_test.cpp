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
  EXPECT_THAT(detect("[").status().message(), HasSubstr("jq -c '.[]'"));
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
  EXPECT_EQ(json_text(record.messages),
            R"([{"role":"system","content":"s"},{"role":"user","content":"a\nb"},)"
            R"({"role":"assistant","content":"","tool_calls":[{"id":"x","type":"function","function":)"
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
      {F::kText, "\"a\"", "d.jsonl:7: a record must be a JSON object, found a string"},
      {F::kText, "{\"text\": \"\"}", "d.jsonl:7: \"text\" is empty"},
      {F::kText, "{\"text\": 5}", "d.jsonl:7: \"text\" must be a string, found a number"},
      {F::kCompletion, "{\"prompt\": \"a\"}", "d.jsonl:7: \"completion\" is missing"},
      {F::kMessages, "{}", "d.jsonl:7: \"messages\" must be a list"},
      {F::kMessages, R"({"messages": [5]})", "d.jsonl:7: messages[0] must be an object, found a number"},
      {F::kMessages, R"({"messages": [{"content": "x"}]})", "messages[0]: \"role\" is missing"},
      {F::kMessages, R"({"messages": [{"role": "user"}]})", "messages[0]: \"content\" is missing"},
      {F::kMessages, R"({"messages": [{"role": "bot", "content": "x"}]})",
       "d.jsonl:7: messages[0].role: \"bot\" is unknown; it must be system,"},
      {F::kMessages, R"({"messages": [{"role": "assistant", "content": "x", "weight": 2}]})",
       "messages[0]: \"weight\" is 2, it must be between 0 and 1"},
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
