// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/custom_tools.h"

#include <charconv>
#include <utility>

#include "lk/base/utf8.h"

namespace lk::openai {
namespace {

namespace json = boost::json;

constexpr std::string_view kKey = "\"input\"";
constexpr uint32_t kReplacement = 0xFFFD;

// How far `held` is {"input":" with any white space between its parts: 0 = it is not, 1 = so far, 2 = whole.
int match_head(std::string_view held) {
  static constexpr std::string_view kParts[] = {"{", kKey, ":", "\""};
  size_t at = 0;
  for (const std::string_view part : kParts) {
    while (at < held.size() && is_json_space(held[at])) ++at;
    const std::string_view rest = held.substr(at);
    if (rest.size() < part.size()) return part.starts_with(rest) ? 1 : 0;
    if (!rest.starts_with(part)) return 0;
    at += part.size();
  }
  return 2;
}

}  // namespace

json::object custom_as_function(const CustomTool& tool, std::string_view description) {
  json::object input{{"type", "string"}};
  std::string told(description);
  if (tool.grammar) {
    const bool regex = tool.grammar->kind == GrammarSpec::Kind::kRegex;
    if (!told.empty()) told += "\n";
    told += fmt::format("The input is a text of this {}:\n{}", regex ? "regular expression" : "Lark grammar",
                        tool.grammar->text);
    if (regex) input["pattern"] = fmt::format("^(?:{})$", tool.grammar->text);
  }
  json::object function{{"name", tool.name}};
  if (!told.empty()) function["description"] = told;
  function["parameters"] = {{"type", "object"},
                            {"properties", {{"input", std::move(input)}}},
                            {"required", json::array{"input"}},
                            {"additionalProperties", false}};
  return {{"type", "function"}, {"function", std::move(function)}};
}

json::object custom_arguments(std::string_view input) { return {{"input", input}}; }

void CustomInput::push(std::string_view arguments, std::string& input) {
  for (const char c : arguments) take(c, input);
}

void CustomInput::take(char c, std::string& input) {
  switch (state_) {
    case State::kHead: {
      held_ += c;
      const int matched = match_head(held_);
      if (matched == 1) return;
      if (matched == 0) input += held_;
      state_ = matched == 0 ? State::kRaw : State::kText;
      held_.clear();
      return;
    }
    case State::kText:
      if (c == '\\') {
        state_ = State::kEscape;
      } else {
        end_pair(input);
        if (c == '"')
          state_ = State::kDone;
        else
          input += c;
      }
      return;
    case State::kEscape:
      return escaped(c, input);
    case State::kHex: {
      held_ += c;
      if (held_.size() < 4) return;
      uint32_t unit = 0;
      const auto [end, error] = std::from_chars(held_.data(), held_.data() + held_.size(), unit, 16);
      code_unit(error == std::errc() && end == held_.data() + held_.size() ? unit : kReplacement, input);
      held_.clear();
      state_ = State::kText;
      return;
    }
    case State::kRaw:
      input += c;
      return;
    case State::kDone:
      return;
  }
}

void CustomInput::escaped(char c, std::string& input) {
  if (c == 'u') {
    state_ = State::kHex;
    return;
  }
  state_ = State::kText;
  end_pair(input);
  static constexpr std::string_view kNames = "nrtbf", kCodes = "\n\r\t\b\f";
  const size_t known = kNames.find(c);
  input += known == kNames.npos ? c : kCodes[known];
}

void CustomInput::code_unit(uint32_t unit, std::string& input) {
  const bool low = unit >= 0xDC00 && unit < 0xE000;
  if (high_ != 0 && low) {
    utf8::append(input, 0x10000 + ((std::exchange(high_, 0) - 0xD800) << 10) + (unit - 0xDC00));
    return;
  }
  end_pair(input);
  if (unit >= 0xD800 && unit < 0xDC00)
    high_ = unit;
  else
    utf8::append(input, low ? kReplacement : unit);
}

void CustomInput::end_pair(std::string& input) {
  if (std::exchange(high_, 0) != 0) utf8::append(input, kReplacement);
}

void CustomInput::finish(std::string& input) {
  if (state_ == State::kHead && match_head(held_) == 0) input += held_;
  end_pair(input);
  held_.clear();
}

}  // namespace lk::openai
