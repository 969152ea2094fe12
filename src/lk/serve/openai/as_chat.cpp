// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/as_chat.h"

#include <algorithm>

namespace lk {
namespace {

// "messages[3]" is no part of "messages[30]", and none of "messages".
bool is_part_of(std::string_view path, std::string_view whole) {
  return path.starts_with(whole) &&
         (path.size() == whole.size() || path[whole.size()] == '.' || path[whole.size()] == '[');
}

std::string own_path(const FieldNames& names, const std::string& path) {
  const std::pair<std::string, std::string>* best = nullptr;
  for (const auto& name : names)
    if (is_part_of(path, name.first) && (best == nullptr || name.first.size() >= best->first.size())) best = &name;
  return best == nullptr ? path : best->second + path.substr(best->first.size());
}

}  // namespace

ApiError in_own_words(ApiError error, const FieldNames& names) {
  if (error.param.empty()) return error;
  const std::string own = own_path(names, error.param);
  const std::string quoted = "\"" + error.param + "\"";
  if (error.message.starts_with(quoted)) error.message = "\"" + own + "\"" + error.message.substr(quoted.size());
  error.param = own;
  return error;
}

namespace openai {
namespace {

namespace json = boost::json;

}  // namespace

void ChatDraft::take_shared(RequestFields& fields, uint64_t form) {
  for (const Field& field : kRequestFields) {
    if (!(field.forms & form) || !(field.forms & kChatForm)) continue;
    if (field.kind == FieldKind::kIgnored || field.kind == FieldKind::kRefused) continue;
    if (const json::value* value = static_cast<JsonFields&>(fields).find(field.name)) body_[field.name] = *value;
  }
}

void ChatDraft::put(std::string_view name, json::value value, std::string own) {
  body_[name] = std::move(value);
  rename(std::string(name), std::move(own));
}

void ChatDraft::set_thinking(bool on) {
  json::value& variables = body_["chat_template_kwargs"];
  if (variables.is_null()) variables.emplace_object();
  if (json::object* object = variables.if_object(); object != nullptr && !object->contains("enable_thinking"))
    (*object)["enable_thinking"] = on;
}

std::string ChatDraft::add_message(json::object message, std::string own) {
  messages_.emplace_back(std::move(message));
  rename(last_path(), std::move(own));
  return last_path();
}

ApiResult<GenerateRequest> ChatDraft::read(Endpoint endpoint, const ApiDefaults& defaults, RequestFields& own,
                                           std::vector<std::string> ignored) {
  own.refuse_others();
  if (own.failed()) return field_error(own.errors());
  add_ignored(own, ignored);
  body_["messages"] = std::move(messages_);
  JsonErrors errors;
  RequestFields fields(body_, kChatForm, "", errors);
  GenerateRequest request{.endpoint = endpoint};
  read_chat(fields, defaults, request);
  if (errors.failed()) return in_own_words(field_error(errors), renamed_);
  for (const std::string& name : request.ignored_fields) ignored.push_back(own_path(renamed_, name));
  request.ignored_fields = std::move(ignored);
  request.names = std::move(renamed_);
  return request;
}

json::value content_as_chat(const json::value& content, const std::string& path, uint64_t part_form,
                            std::span<const std::string_view> known, JsonErrors& errors,
                            std::vector<std::string>& ignored) {
  const json::array* parts = content.if_array();
  if (parts == nullptr) return json::value(content, content.storage());
  json::array told(content.storage());
  for (size_t i = 0; i < parts->size(); ++i) {
    const json::object* object = (*parts)[i].if_object();
    const json::value* type = object != nullptr ? object->if_contains("type") : nullptr;
    const bool is_known =
        type != nullptr && type->is_string() && std::ranges::find(known, type->get_string()) != known.end();
    if (!is_known) {  // a refusal, or what chat refuses
      told.push_back((*parts)[i]);
      continue;
    }
    RequestFields fields(*object, part_form, fmt::format("{}[{}]", path, i), errors);
    (void)fields.find("type");
    json::object part({{"type", "text"}}, content.storage());
    if (const json::value* text = fields.find("text")) part["text"] = *text;
    fields.refuse_others();
    add_ignored(fields, ignored);
    told.emplace_back(std::move(part));
  }
  return told;
}

}  // namespace openai
}  // namespace lk
