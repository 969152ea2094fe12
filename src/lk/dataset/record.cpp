// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/record.h"

#include <array>
#include <utility>

#include <boost/json.hpp>

#include "lk/io/json_fields.h"

namespace lk {
namespace {

namespace json = boost::json;

constexpr std::array<std::pair<RecordFormat, const char*>, 5> kFormats{{{RecordFormat::kMessages, "messages"},
                                                                        {RecordFormat::kSharegpt, "sharegpt"},
                                                                        {RecordFormat::kAlpaca, "alpaca"},
                                                                        {RecordFormat::kCompletion, "completion"},
                                                                        {RecordFormat::kText, "text"}}};

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

Result<json::object> parse_line(std::string_view line, std::string_view where) {
  json::error_code error;
  json::value value = json::parse({line.data(), line.size()}, error);
  if (error) {
    const bool array = line.starts_with('[');
    return data_loss("{}: not valid JSON: {}{}", where, error.message(),
                     array ? "; a JSON array must be rewritten as one object per line (jq -c '.[]')" : "");
  }
  if (!value.is_object())
    return data_loss("{}: a record must be a JSON object, found {}; write one object per line", where,
                     json_kind(value));
  return std::move(value.get_object());
}

// A string that must be there; `empty_ok` for those that may be "".
Status read_text(JsonFields& fields, std::string_view key, std::string& out, bool empty_ok = true) {
  if (fields.find(key) == nullptr) return invalid_argument("{}: \"{}\" is missing", fields.where(), key);
  fields.read_string(key, out);
  LK_RETURN_IF_ERROR(fields.status());
  if (out.empty() && !empty_ok) return invalid_argument("{}: \"{}\" is empty", fields.where(), key);
  return Status();
}

// A list of objects, or a string that holds one as JSON.
Status read_tools(JsonFields& fields, json::array& out) {
  const json::value* given = fields.find("tools");
  if (given == nullptr) return Status();
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
    return invalid_argument("{}: \"tools\" must be a list, found {}", fields.where(), json_kind(*given));
  for (const json::value& tool : given->get_array())
    if (!tool.is_object())
      return invalid_argument("{}: \"tools\" must be a list of objects, found {}", fields.where(), json_kind(tool));
  out = given->get_array();
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
  if (!calls.is_array()) return invalid_argument("{} must be a list, found {}", where, json_kind(calls));
  for (size_t k = 0; k < calls.get_array().size(); ++k) {
    json::object* call = calls.get_array()[k].if_object();
    json::value* function = call != nullptr ? call->if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object() || !function->get_object().contains("name"))
      return invalid_argument("{}[{}] must be an object with \"function\": {{\"name\", \"arguments\"}}", where, k);
    LK_RETURN_IF_ERROR(parse_arguments(function->get_object(), fmt::format("{}[{}].function", where, k)));
  }
  return Status();
}

// A list of text parts becomes their text, a line each.
Status join_parts(json::value& content, const std::string& where) {
  json::string text;
  for (size_t k = 0; k < content.get_array().size(); ++k) {
    const json::object* part = content.get_array()[k].if_object();
    const json::value* type = part != nullptr ? part->if_contains("type") : nullptr;
    const json::value* piece = part != nullptr ? part->if_contains("text") : nullptr;
    if (type == nullptr || *type != "text" || piece == nullptr || !piece->is_string())
      return invalid_argument("{}[{}] must be {{\"type\": \"text\", \"text\": ...}}: models take text only", where, k);
    if (k > 0) text += '\n';
    text += piece->get_string();
  }
  content = std::move(text);
  return Status();
}

Status read_message(json::value value, const std::string& where, Record& record) {
  if (!value.is_object()) return invalid_argument("{} must be an object, found {}", where, json_kind(value));
  json::object& message = value.get_object();
  JsonFields fields(message, where);
  std::string role;
  LK_RETURN_IF_ERROR(read_text(fields, "role", role));
  if (role == "developer") message["role"] = role = "system";  // what chat templates call it
  if (role != "system" && role != "user" && role != "assistant" && role != "tool")
    return invalid_argument("{}.role: \"{}\" is unknown; it must be system, developer, user, assistant or tool", where,
                            role);
  double weight = 1;
  fields.read_double("weight", weight, 0, 1);
  LK_RETURN_IF_ERROR(fields.status());
  message.erase("weight");
  json::value* calls = message.if_contains("tool_calls");
  if (calls != nullptr && calls->is_null()) message.erase("tool_calls"), calls = nullptr;
  if (calls != nullptr) {
    if (role != "assistant") return invalid_argument("{}.tool_calls: only the assistant calls tools", where);
    LK_RETURN_IF_ERROR(read_calls(*calls, where + ".tool_calls"));
  }
  json::value& content = message["content"];
  if (content.is_array()) LK_RETURN_IF_ERROR(join_parts(content, where + ".content"));
  if (content.is_null() && calls != nullptr) content = "";
  if (content.is_null()) return invalid_argument("{}: \"content\" is missing", where);
  if (!content.is_string()) return invalid_argument("{}.content must be a string, found {}", where, json_kind(content));
  record.messages.push_back(std::move(value));
  record.weights.push_back(static_cast<float>(weight));
  return Status();
}

Status read_messages(JsonFields& fields, Record& record) {
  const json::value* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array())
    return invalid_argument("{}: \"messages\" must be a list", fields.where());
  for (size_t k = 0; k < messages->get_array().size(); ++k)
    LK_RETURN_IF_ERROR(
        read_message(messages->get_array()[k], fmt::format("{}: messages[{}]", fields.where(), k), record));
  return read_tools(fields, record.tools);
}

void add_message(Record& record, std::string_view role, std::string_view content) {
  record.messages.push_back(json::object{{"role", role}, {"content", content}});
  record.weights.push_back(1);
}

Status add_call(Record& record, const std::string& call, const std::string& where) {
  json::error_code error;
  json::value function = json::parse(call, error);
  if (error || !function.is_object() || !function.get_object().contains("name"))
    return invalid_argument("{}.value: a function_call must be JSON with \"name\" and \"arguments\"", where);
  LK_RETURN_IF_ERROR(parse_arguments(function.get_object(), where + ".value"));
  json::object wrapped{{"type", "function"}, {"function", std::move(function)}};
  record.messages.push_back(
      json::object{{"role", "assistant"}, {"content", ""}, {"tool_calls", json::array{std::move(wrapped)}}});
  record.weights.push_back(1);
  return Status();
}

Status read_sharegpt(JsonFields& fields, Record& record) {
  std::string system;
  fields.read_string("system", system);
  LK_RETURN_IF_ERROR(fields.status());
  if (!system.empty()) add_message(record, "system", system);
  const json::value* turns = fields.find("conversations");
  if (turns == nullptr || !turns->is_array())
    return invalid_argument("{}: \"conversations\" must be a list", fields.where());
  for (size_t k = 0; k < turns->get_array().size(); ++k) {
    const std::string where = fmt::format("{}: conversations[{}]", fields.where(), k);
    const json::value& turn = turns->get_array()[k];
    if (!turn.is_object()) return invalid_argument("{} must be an object, found {}", where, json_kind(turn));
    JsonFields inner(turn.get_object(), where);
    std::string from, value;
    LK_RETURN_IF_ERROR(read_text(inner, "from", from));
    LK_RETURN_IF_ERROR(read_text(inner, "value", value));
    if (from == "human" || from == "user")
      add_message(record, "user", value);
    else if (from == "gpt" || from == "assistant")
      add_message(record, "assistant", value);
    else if (from == "system")
      add_message(record, "system", value);
    else if (from == "observation" || from == "tool")
      add_message(record, "tool", value);
    else if (from == "function_call")
      LK_RETURN_IF_ERROR(add_call(record, value, where));
    else
      return invalid_argument(
          "{}.from: \"{}\" is unknown; it must be human, user, gpt, assistant, system, function_call, observation or "
          "tool",
          where, from);
  }
  return read_tools(fields, record.tools);
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
  if (object.contains("messages")) return RecordFormat::kMessages;
  if (object.contains("conversations")) return RecordFormat::kSharegpt;
  if (object.contains("instruction")) return RecordFormat::kAlpaca;
  if (object.contains("prompt") && object.contains("completion")) return RecordFormat::kCompletion;
  if (object.contains("text")) return RecordFormat::kText;
  return invalid_argument(
      "{}: the format is not recognised: a record needs \"messages\", \"conversations\", \"instruction\", \"prompt\" "
      "and \"completion\", or \"text\"",
      where);
}

Result<Record> parse_record(std::string_view line, RecordFormat format, const std::string& where) {
  LK_ASSIGN_OR_RETURN(const json::object object, parse_line(line, where));
  JsonFields fields(object, where);
  Record record;
  switch (format) {
    case RecordFormat::kMessages:
      LK_RETURN_IF_ERROR(read_messages(fields, record));
      break;
    case RecordFormat::kSharegpt:
      LK_RETURN_IF_ERROR(read_sharegpt(fields, record));
      break;
    case RecordFormat::kAlpaca:
      LK_RETURN_IF_ERROR(read_alpaca(fields, record));
      break;
    case RecordFormat::kCompletion:
      record.kind = Record::Kind::kCompletion;
      LK_RETURN_IF_ERROR(read_text(fields, "prompt", record.prompt));
      LK_RETURN_IF_ERROR(read_text(fields, "completion", record.completion));
      return record;
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
