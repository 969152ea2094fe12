// SPDX-License-Identifier: Apache-2.0
// One line of a training file -> Record. Five formats:
//   messages    {"messages": [{"role", "content", "weight"?}...], "tools"?}     OpenAI's
//   sharegpt    {"conversations": [{"from", "value", "weight"?}...], "system"?, "tools"?}
//   alpaca      {"instruction", "input"?, "output", "system"?, "history"?: [[user, assistant]...]}
//   completion  {"prompt", "completion"}     texts, or lists of messages
//   text        {"text"}
// The turns of the first two may have either form, and "chat_template_kwargs" beside them go to the template. A field
// that is null counts as absent; others of a record ("id", "source") are ignored.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/status.h"

namespace lk {

enum class RecordFormat { kMessages, kSharegpt, kAlpaca, kCompletion, kText };
const char* to_string(RecordFormat format);
std::optional<RecordFormat> parse_record_format(std::string_view name);

struct Record {
  enum class Kind { kMessages, kCompletion, kText };
  Kind kind = Kind::kMessages;
  // kMessages: as chat templates want them, without "weight". Roles: system, user, assistant, tool.
  boost::json::array messages, tools;
  boost::json::object variables;   // further ones of the template (chat_template_kwargs)
  std::vector<float> weights;      // one per message, in [0, 1]; only those of the assistant count
  size_t num_prompt_messages = 0;  // the first ones, which are given: they have a loss with train_on_prompt only
  // kCompletion, and alpaca records without history: what a model without a chat template gets.
  std::string prompt, completion;
  std::string text;  // kText
};

// The format of a file, by the fields of its first record. `where` ("data.jsonl:1") prefixes errors.
Result<RecordFormat> detect_record_format(std::string_view line, std::string_view where);

// kDataLoss for what is not JSON, kInvalidArgument for the rest; names `where` and the field.
Result<Record> parse_record(std::string_view line, RecordFormat format, const std::string& where);

}  // namespace lk
