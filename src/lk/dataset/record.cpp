// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/record.h"

#include <algorithm>
#include <array>
#include <utility>

#include <boost/json.hpp>

#include "lk/base/json_fields.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr std::array<std::pair<RecordFormat, const char*>, 5> kFormats{{{RecordFormat::kMessages, "messages"},
                                                                        {RecordFormat::kSharegpt, "sharegpt"},
                                                                        {RecordFormat::kAlpaca, "alpaca"},
                                                                        {RecordFormat::kCompletion, "completion"},
                                                                        {RecordFormat::kText, "text"}}};

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

// What people have instead of JSON lines, and what to do about it; nothing for a line that is merely wrong.
const char* advice_for(std::string_view line) {
  const auto begins = [&](std::string_view with) { return line.starts_with(with); };
  if (begins("[")) return "; a JSON array must be rewritten as one object per line (jq -c '.[]')";
  if (begins("PAR1")) return "; this is a Parquet file: write it as JSON lines (datasets: Dataset.to_json)";
  if (begins("\x1F\x8B") || begins("\x28\xB5\x2F\xFD") || begins("PK\x03\x04"))
    return "; the file is compressed: unpack it first";
  if (begins("\xFF\xFE") || begins("\xFE\xFF")) return "; the file is UTF-16: convert it to UTF-8";
  if (!begins("{")) return "; the file must be JSON lines: one JSON object per line";
  if (line.find("NaN") != line.npos || line.find("Infinity") != line.npos)
    return "; JSON has no NaN and no Infinity: write null";
  return "";
}

Result<json::object> parse_line(std::string_view line, std::string_view where) {
  json::error_code error;
  json::value value = json::parse({line.data(), line.size()}, error);
  if (error == json::error::incomplete && line.starts_with('{'))
    return data_loss("{}: not valid JSON: the line ends inside the record; write each record on one line", where);
  if (error) return data_loss("{}: not valid JSON: {}{}", where, error.message(), advice_for(line));
  if (!value.is_object())
    return data_loss("{}: a record must be a JSON object, is {}{}", where, json_kind(value), advice_for(line));
  return std::move(value.get_object());
}

// Fields that are null are not there: exported tables have a column for every field that any record has.
void drop_nulls(json::value& value) {
  if (json::object* object = value.if_object()) {
    for (auto field = object->begin(); field != object->end();) {
      drop_nulls(field->value());
      field = field->value().is_null() ? object->stable_erase(field) : field + 1;
    }
  } else if (json::array* list = value.if_array()) {
    for (json::value& item : *list) drop_nulls(item);
  }
}

// A string that must be there; `empty_ok` for those that may be "".
Status read_text(JsonFields& fields, std::string_view key, std::string& out, bool empty_ok = true) {
  if (fields.find(key) == nullptr) return invalid_argument("{}: \"{}\" is missing", fields.where(), key);
  fields.read_string(key, out);
  LK_RETURN_IF_ERROR(fields.status());
  if (out.empty() && !empty_ok) return invalid_argument("{}: \"{}\" is empty", fields.where(), key);
  return Status();
}

// OpenAI's older form: {"name", "parameters"}, without the object around it.
Status read_functions(JsonFields& fields, json::array& out) {
  const json::value* given = fields.find("functions");
  if (given == nullptr) return Status();
  if (!given->is_array())
    return invalid_argument("{}: \"functions\" must be a list, is {}", fields.where(), json_kind(*given));
  for (const json::value& function : given->get_array()) {
    if (!function.is_object())
      return invalid_argument("{}: \"functions\" must be a list of objects, is {}", fields.where(),
                              json_kind(function));
    json::value tool = json::object{{"type", "function"}, {"function", function}};
    drop_nulls(tool);
    out.push_back(std::move(tool));
  }
  return Status();
}

// A list of objects, or a string that holds one as JSON.
Status read_tools(JsonFields& fields, json::array& out) {
  const json::value* given = fields.find("tools");
  if (given == nullptr) return read_functions(fields, out);
  json::value parsed;
  if (given->is_string()) {
    if (given->get_string().empty()) return Status();
    json::error_code error;
    parsed = json::parse(view(given->get_string()), error);
    if (error)
      return invalid_argument("{}: \"tools\" is a string that is not valid JSON: {}", fields.where(), error.message());
    given = &parsed;
  }
  if (!given->is_array())
    return invalid_argument("{}: \"tools\" must be a list, is {}", fields.where(), json_kind(*given));
  for (const json::value& tool : given->get_array())
    if (!tool.is_object())
      return invalid_argument("{}: \"tools\" must be a list of objects, is {}", fields.where(), json_kind(tool));
  parsed = *given;
  drop_nulls(parsed);
  out = std::move(parsed.get_array());
  return Status();
}

// What a record sets for the template, such as enable_thinking.
Status read_variables(JsonFields& fields, json::object& out) {
  const json::value* given = fields.find("chat_template_kwargs");
  if (given == nullptr) return Status();
  if (!given->is_object())
    return invalid_argument("{}: \"chat_template_kwargs\" must be an object, is {}", fields.where(), json_kind(*given));
  for (const char* reserved : {"messages", "tools", "add_generation_prompt", "chat_template"})
    if (given->get_object().contains(reserved))
      return invalid_argument("{}: \"chat_template_kwargs\" may not set \"{}\"", fields.where(), reserved);
  out = given->get_object();
  return Status();
}

// Templates print arguments as JSON, so they are given as an object.
Status parse_arguments(json::object& function, const std::string& where) {
  json::value* arguments = function.if_contains("arguments");
  if (arguments == nullptr || !arguments->is_string()) return Status();
  if (arguments->get_string().empty()) return *arguments = json::object(), Status();
  json::error_code error;
  json::value parsed = json::parse(view(arguments->get_string()), error);
  if (error) return invalid_argument("{}.arguments: not valid JSON: {}", where, error.message());
  *arguments = std::move(parsed);
  return Status();
}

Status read_calls(json::value& calls, const std::string& where) {
  if (!calls.is_array()) return invalid_argument("{} must be a list, is {}", where, json_kind(calls));
  for (size_t k = 0; k < calls.get_array().size(); ++k) {
    json::object* call = calls.get_array()[k].if_object();
    json::value* function = call != nullptr ? call->if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object() || !function->get_object().contains("name"))
      return invalid_argument("{}[{}] must be an object with \"function\": {{\"name\", \"arguments\"}}", where, k);
    LK_RETURN_IF_ERROR(parse_arguments(function->get_object(), fmt::format("{}[{}].function", where, k)));
  }
  return Status();
}

// A list may only hold text.
Status check_parts(const json::array& parts, const std::string& where) {
  for (size_t k = 0; k < parts.size(); ++k) {
    const json::object* part = parts[k].if_object();
    const json::value* type = part != nullptr ? part->if_contains("type") : nullptr;
    const json::value* piece = part != nullptr ? part->if_contains("text") : nullptr;
    if (type == nullptr || *type != "text" || piece == nullptr || !piece->is_string())
      return invalid_argument("{}[{}] must be {{\"type\": \"text\", \"text\": ...}}: models take text only", where, k);
  }
  return Status();
}

// OpenAI's older form of a call, and of its result.
void modernise(json::object& message) {
  if (json::value* role = message.if_contains("role"); role && *role == "function") *role = "tool";
  json::value* call = message.if_contains("function_call");
  if (call == nullptr) return;
  message["tool_calls"] = json::array{json::object{{"type", "function"}, {"function", *call}}};
  message.erase("function_call");
}

// How much of the loss the message has: OpenAI's "weight", or axolotl's "train".
Status read_weight(json::object& message, const std::string& where, float& out) {
  JsonFields fields(message, where);
  double weight = 1;
  fields.read_double("weight", weight, 0, 1);
  bool train = true;
  fields.read_bool("train", train);
  fields.read_bool("training", train);
  LK_RETURN_IF_ERROR(fields.status());
  if (fields.find("train_detail") != nullptr)
    return invalid_argument(
        "{}.train_detail: parts of a message cannot be left out; split it into messages with a "
        "weight each",
        where);
  out = train ? static_cast<float>(weight) : 0.0F;
  for (const char* key : {"weight", "train", "training"}) message.erase(key);
  return Status();
}

Status read_message(json::value value, const std::string& where, Record& record) {
  if (!value.is_object()) return invalid_argument("{} must be an object, is {}", where, json_kind(value));
  json::object& message = value.get_object();
  json::value& given = message["content"];
  const bool empty = given.is_null();
  if (empty) given = "";
  drop_nulls(value);
  modernise(message);
  JsonFields fields(message, where);
  std::string role;
  LK_RETURN_IF_ERROR(read_text(fields, "role", role));
  if (role == "developer") message["role"] = role = "system";  // what chat templates call it
  if (role != "system" && role != "user" && role != "assistant" && role != "tool")
    return invalid_argument("{}.role: \"{}\" is unknown; it must be system, developer, user, assistant or tool", where,
                            role);
  float weight = 1;
  LK_RETURN_IF_ERROR(read_weight(message, where, weight));
  json::value* calls = message.if_contains("tool_calls");
  if (calls != nullptr && calls->is_array() && calls->get_array().empty()) message.erase("tool_calls"), calls = nullptr;
  if (calls != nullptr) {
    if (role != "assistant") return invalid_argument("{}.tool_calls: only the assistant calls tools", where);
    LK_RETURN_IF_ERROR(read_calls(*calls, where + ".tool_calls"));
  }
  json::value& content = message["content"];
  if (content.is_array()) LK_RETURN_IF_ERROR(check_parts(content.get_array(), where + ".content"));
  if (empty && calls == nullptr) return invalid_argument("{}: \"content\" is missing", where);
  if (!content.is_string() && !content.is_array())
    return invalid_argument("{}.content must be a string, is {}", where, json_kind(content));
  if (empty) message.erase("content");  // as a server passes it on
  record.messages.push_back(std::move(value));
  record.weights.push_back(weight);
  return Status();
}

void add_message(Record& record, std::string_view role, std::string_view content) {
  record.messages.push_back(json::object{{"role", role}, {"content", content}});
  record.weights.push_back(1);
}

// {"from", "value"} as {"role", "content"}; all else of the turn stays.
Status rename_turn(json::object& turn, const std::string& where) {
  JsonFields fields(turn, where);
  std::string from, value;
  LK_RETURN_IF_ERROR(read_text(fields, "from", from));
  LK_RETURN_IF_ERROR(read_text(fields, "value", value));
  turn.erase("from");
  turn.erase("value");
  if (from == "function_call" || from == "tool_call") {
    json::error_code error;
    json::value function = json::parse(value, error);
    if (error || !function.is_object() || !function.get_object().contains("name"))
      return invalid_argument("{}.value: a {} must be JSON with \"name\" and \"arguments\"", where, from);
    LK_RETURN_IF_ERROR(parse_arguments(function.get_object(), where + ".value"));
    turn["role"] = "assistant";
    turn["content"] = "";
    turn["tool_calls"] = json::array{json::object{{"type", "function"}, {"function", std::move(function)}}};
    return Status();
  }
  if (from == "human" || from == "user")
    turn["role"] = "user";
  else if (from == "gpt" || from == "assistant")
    turn["role"] = "assistant";
  else if (from == "system")
    turn["role"] = "system";
  else if (from == "observation" || from == "tool" || from == "tool_response")
    turn["role"] = "tool";
  else
    return invalid_argument(
        "{}.from: \"{}\" is unknown; it must be human, user, gpt, assistant, system, function_call, tool_call, "
        "observation, tool or tool_response",
        where, from);
  turn["content"] = value;
  return Status();
}

// Turns of {"role", "content"} or of {"from", "value"}, whatever the list is called.
Status read_turns(JsonFields& fields, const char* key, Record& record) {
  const json::value* turns = fields.find(key);
  if (turns == nullptr || !turns->is_array()) return invalid_argument("{}: \"{}\" must be a list", fields.where(), key);
  for (size_t k = 0; k < turns->get_array().size(); ++k) {
    const std::string where = fmt::format("{}: {}[{}]", fields.where(), key, k);
    json::value turn = turns->get_array()[k];
    if (json::object* object = turn.if_object(); object && object->contains("from") && !object->contains("role"))
      LK_RETURN_IF_ERROR(rename_turn(*object, where));
    LK_RETURN_IF_ERROR(read_message(std::move(turn), where, record));
  }
  return Status();
}

Status read_chat(JsonFields& fields, const char* key, Record& record) {
  std::string system;
  fields.read_string("system", system);
  LK_RETURN_IF_ERROR(fields.status());
  if (!system.empty()) add_message(record, "system", system);
  LK_RETURN_IF_ERROR(read_turns(fields, key, record));
  if (!system.empty() && record.messages.size() > 1 && record.messages[1].at("role") == "system")
    return invalid_argument("{}: \"system\" and {}[0] are both the system's message; give one", fields.where(), key);
  LK_RETURN_IF_ERROR(read_variables(fields, record.variables));
  return read_tools(fields, record.tools);
}

// Texts, or messages of which those of the completion have a loss.
Status read_completion(JsonFields& fields, Record& record) {
  const json::value *prompt = fields.find("prompt"), *completion = fields.find("completion");
  if (prompt != nullptr && prompt->is_array() && completion != nullptr && completion->is_array()) {
    LK_RETURN_IF_ERROR(read_turns(fields, "prompt", record));
    record.num_prompt_messages = record.messages.size();
    LK_RETURN_IF_ERROR(read_turns(fields, "completion", record));
    LK_RETURN_IF_ERROR(read_variables(fields, record.variables));
    return read_tools(fields, record.tools);
  }
  record.kind = Record::Kind::kCompletion;
  LK_RETURN_IF_ERROR(read_text(fields, "prompt", record.prompt));
  return read_text(fields, "completion", record.completion);
}

Status read_history(JsonFields& fields, Record& record) {
  const json::value* history = fields.find("history");
  if (history == nullptr) return Status();
  const auto fail = [&] {
    return invalid_argument("{}: \"history\" must be a list of [user, assistant] pairs", fields.where());
  };
  if (!history->is_array()) return fail();
  for (const json::value& pair : history->get_array()) {
    const json::array* turns = pair.if_array();
    if (turns == nullptr || turns->size() != 2 || !(*turns)[0].is_string() || !(*turns)[1].is_string()) return fail();
    add_message(record, "user", view((*turns)[0].get_string()));
    add_message(record, "assistant", view((*turns)[1].get_string()));
  }
  return Status();
}

Status read_alpaca(JsonFields& fields, Record& record) {
  std::string instruction, input, output, system;
  LK_RETURN_IF_ERROR(read_text(fields, "instruction", instruction));
  LK_RETURN_IF_ERROR(read_text(fields, "output", output));
  fields.read_string("input", input);
  fields.read_string("system", system);
  LK_RETURN_IF_ERROR(fields.status());
  if (!system.empty()) add_message(record, "system", system);
  LK_RETURN_IF_ERROR(read_history(fields, record));
  // Source: the prompts of Stanford Alpaca's train.py.
  if (system.empty() && record.messages.empty()) {
    record.prompt = input.empty()
                        ? fmt::format(
                              "Below is an instruction that describes a task. Write a response that appropriately "
                              "completes the request.\n\n### Instruction:\n{}\n\n### Response:",
                              instruction)
                        : fmt::format(
                              "Below is an instruction that describes a task, paired with an input that provides "
                              "further context. Write a response that appropriately completes the request.\n\n"
                              "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:",
                              instruction, input);
    record.completion = output;
  }
  add_message(record, "user", input.empty() ? instruction : instruction + "\n" + input);
  add_message(record, "assistant", output);
  return Status();
}

}  // namespace

const char* to_string(RecordFormat format) {
  for (const auto& [value, name] : kFormats)
    if (value == format) return name;
  return "?";
}

std::optional<RecordFormat> parse_record_format(std::string_view name) {
  for (const auto& [value, known] : kFormats)
    if (name == known) return value;
  return std::nullopt;
}

Result<RecordFormat> detect_record_format(std::string_view line, std::string_view where) {
  LK_ASSIGN_OR_RETURN(const json::object object, parse_line(line, where));
  const auto has = [&](std::string_view key) {
    const json::value* value = object.if_contains(key);
    return value != nullptr && !value->is_null();
  };
  if (has("messages")) return RecordFormat::kMessages;
  if (has("conversations")) return RecordFormat::kSharegpt;
  if (has("instruction")) return RecordFormat::kAlpaca;
  if (has("prompt") && has("completion")) return RecordFormat::kCompletion;
  if (has("text")) return RecordFormat::kText;
  if (has("chosen") && has("rejected"))
    return invalid_argument("{}: the record is a pair of preferences; only examples of the right answer are trained on",
                            where);
  std::vector<std::string> found;
  for (const auto& field : object)
    if (!field.value().is_null() && found.size() < 8) found.push_back(fmt::format("\"{}\"", view(field.key())));
  return invalid_argument(
      "{}: the format is not recognised: a record needs \"messages\", \"conversations\", \"instruction\" and "
      "\"output\", \"prompt\" and \"completion\", or \"text\"; this one has {}",
      where, found.empty() ? "nothing" : fmt::format("{}", fmt::join(found, ", ")));
}

Result<Record> parse_record(std::string_view line, RecordFormat format, const std::string& where) {
  LK_ASSIGN_OR_RETURN(const json::object object, parse_line(line, where));
  JsonFields fields(object, where);
  Record record;
  switch (format) {
    case RecordFormat::kMessages:
      LK_RETURN_IF_ERROR(read_chat(fields, "messages", record));
      break;
    case RecordFormat::kSharegpt:
      LK_RETURN_IF_ERROR(read_chat(fields, "conversations", record));
      break;
    case RecordFormat::kAlpaca:
      LK_RETURN_IF_ERROR(read_alpaca(fields, record));
      break;
    case RecordFormat::kCompletion:
      LK_RETURN_IF_ERROR(read_completion(fields, record));
      if (record.kind == Record::Kind::kCompletion) return record;
      break;
    case RecordFormat::kText:
      record.kind = Record::Kind::kText;
      LK_RETURN_IF_ERROR(read_text(fields, "text", record.text, /*empty_ok=*/false));
      return record;
  }
  for (const json::value& message : record.messages)
    if (message.at("role") == "assistant") return record;
  return invalid_argument("{}: no turn of the assistant, so nothing to learn; add one or remove the record", where);
}

}  // namespace lk
