// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/xml_call.h"

#include <algorithm>

#include <boost/json.hpp>

#include "lk/serve/openai/json_scanner.h"
#include "lk/serve/openai/json_writer.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

constexpr std::string_view kFunction = "<function=", kParameter = "<parameter=", kEndFunction = "</function>";
// What ends a value; the line end before it is not a part of it.
constexpr std::string_view kEnds[] = {"</parameter>", "\n</parameter>", "</function>", "\n</function>"};

// What may be anything is text: a model that writes {"a": 1} there may mean the text.
ParameterKind kind_of(const json::value& schema) {
  const json::object* object = schema.if_object();
  if (object == nullptr) return ParameterKind::kText;
  const json::value* type = object->if_contains("type");
  if (type != nullptr && type->is_string())
    return type->get_string() == "string" ? ParameterKind::kText : ParameterKind::kJson;
  if (type != nullptr && type->is_array()) {
    const json::array& types = type->get_array();
    return std::ranges::find(types, json::value("string")) != types.end() ? ParameterKind::kTextOrNull
                                                                          : ParameterKind::kJson;
  }
  for (const char* key : {"anyOf", "oneOf", "allOf", "$ref", "enum", "const"})
    if (object->contains(key)) return ParameterKind::kJson;
  return ParameterKind::kText;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_json_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

ParameterKinds::ParameterKinds(const json::array& tools) {
  for (const json::value& tool : tools) {
    const json::object& function = tool.at("function").as_object();
    const json::value* schema = function.if_contains("parameters");
    const json::object* object = schema ? schema->if_object() : nullptr;
    const json::value* properties = object ? object->if_contains("properties") : nullptr;
    if (properties == nullptr || !properties->is_object()) continue;
    auto& kinds = kinds_[std::string(function.at("name").as_string())];
    for (const auto& [key, property] : properties->get_object()) kinds[std::string(key)] = kind_of(property);
  }
}

ParameterKind ParameterKinds::find(const std::string& function, const std::string& parameter) const {
  const auto kinds = kinds_.find(function);
  if (kinds == kinds_.end()) return ParameterKind::kText;
  const auto kind = kinds->second.find(parameter);
  return kind == kinds->second.end() ? ParameterKind::kText : kind->second;
}

CallBody::Step XmlCall::feed(char c, std::string& arguments) {
  switch (state_) {
    case State::kHead:
    case State::kBody:
      return tag(c, arguments);
    case State::kName:
    case State::kKey: {
      std::string& word = state_ == State::kName ? name_ : key_;
      if (c == '\n' || c == '<' || word.size() > kMaxCallName) {
        if (begun_) arguments += word;
        return Step::kBad;
      }
      if (c != '>') return word += c, Step::kMore;
      if (word.empty()) return Step::kBad;
      if (state_ == State::kKey) {
        begin_value(arguments);
      } else {
        begun_ = true;
        state_ = State::kBody;
      }
      return Step::kMore;
    }
    case State::kValue:
      return value(c, arguments);
  }
  return Step::kBad;
}

CallBody::Step XmlCall::tag(char c, std::string& arguments) {
  if (held_.empty() && is_json_space(c)) return Step::kMore;
  held_ += c;
  const bool head = state_ == State::kHead;
  if (head ? !kFunction.starts_with(held_) : !kParameter.starts_with(held_) && !kEndFunction.starts_with(held_)) {
    held_.pop_back();
    if (begun_) arguments += held_;
    return Step::kBad;
  }
  if (held_ == kEndFunction) {
    end(arguments);
    return Step::kDone;
  }
  if (held_ != (head ? kFunction : kParameter)) return Step::kMore;
  held_.clear();
  key_.clear();
  state_ = head ? State::kName : State::kKey;
  return Step::kMore;
}

void XmlCall::begin_value(std::string& arguments) {
  arguments += any_ ? ", " : "{";
  any_ = true;
  append_string(arguments, key_);
  arguments += ": ";
  kind_ = kinds_ ? kinds_->find(name_, key_) : ParameterKind::kText;
  if (kind_ == ParameterKind::kText) arguments += '"';
  value_.clear();
  at_start_ = true;
  state_ = State::kValue;
}

CallBody::Step XmlCall::value(char c, std::string& arguments) {
  if (std::exchange(at_start_, false) && c == '\n') return Step::kMore;
  held_ += c;
  const auto may_end = [](std::string_view held) {
    return std::ranges::any_of(kEnds, [&](std::string_view end) { return end.starts_with(held); });
  };
  size_t passed = 0;
  while (!may_end(std::string_view(held_).substr(passed))) value_byte(held_[passed++], arguments);
  held_.erase(0, passed);
  if (std::ranges::find(kEnds, held_) == std::end(kEnds)) return Step::kMore;
  const bool all = held_.ends_with(kEndFunction);  // its own mark was left out
  held_.clear();
  end_value(arguments);
  if (!all) return Step::kMore;
  end(arguments);
  return Step::kDone;
}

void XmlCall::value_byte(char c, std::string& arguments) {
  if (kind_ == ParameterKind::kText)
    append_escaped(arguments, c);
  else
    value_ += c;
}

void XmlCall::end_value(std::string& arguments) {
  state_ = State::kBody;
  if (kind_ == ParameterKind::kText) return void(arguments += '"');
  const std::string_view text = trim(value_);
  if (kind_ == ParameterKind::kTextOrNull && text != "null" && text != "None") {
    arguments += '"';
    for (const char c : value_) append_escaped(arguments, c);
    arguments += '"';
    return;
  }
  json::error_code error;
  const json::value parsed = json::parse(text, error);
  if (!error && !text.empty())
    arguments += text;
  else
    append_word(arguments, text);
}

void XmlCall::end(std::string& arguments) {
  arguments += any_ ? "}" : "{}";
  arguments_done_ = true;
}

}  // namespace lk::openai
