// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "lk/base/sha256.h"
#include "lk/serve/openai/json_writer.h"

namespace lk::openai {

std::string AnswerShape::call_id(int choice, int call) const {
  static constexpr std::string_view kAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const std::string source = fmt::format("{}/{}/{}", id, choice, call);
  Sha256 hash;
  hash.update(source.data(), source.size());
  const std::array<uint8_t, 32> digest = hash.finish();
  const size_t length = tool_format == ToolFormat::kMistral ? 9 : 24;
  std::string text = tool_format == ToolFormat::kMistral ? "" : endpoint == Endpoint::kMessages ? "toolu_" : "call_";
  for (size_t i = 0; i < length; ++i) text += kAlphabet[digest[i] % kAlphabet.size()];
  return text;
}

bool AnswerShape::is_custom(std::string_view tool) const {
  return std::ranges::find(custom_tools, tool, &CustomTool::name) != custom_tools.end();
}

void AnswerShape::append_call_head(std::string& out, int choice, int call, std::string_view tool) const {
  const bool custom = is_custom(tool);
  const char* type = custom ? "custom" : "function";
  out += fmt::format("\"id\":\"{}\",\"type\":\"{}\",\"{}\":{{\"name\":", call_id(choice, call), type, type);
  append_string(out, tool);
  out += custom ? ",\"input\":" : ",\"arguments\":";
}

std::vector<TokenLogprob> AnswerShape::prompt_tokens(const Completion& prompt) const {
  std::vector<TokenLogprob> tokens;
  for (size_t i = 0; i < prompt.prompt_token_ids.size(); ++i) {
    const bool known = i > 0 && i - 1 < prompt.prompt_logprobs.size();
    tokens.push_back(known ? prompt.prompt_logprobs[i - 1] : TokenLogprob{});
    tokens.back().token = prompt.prompt_token_ids[i];
  }
  return tokens;
}

void AnswerShape::append_finish(std::string& out, const Completion& completion, int num_calls) const {
  std::string_view reason = "stop";
  if (completion.finish == FinishReason::kLength)
    reason = "length";
  else if (completion.finish == FinishReason::kCancelled)
    reason = "abort";
  else if (completion.finish == FinishReason::kError)
    reason = "error";
  else if (num_calls > 0 && !tool_named)
    reason = "tool_calls";
  fmt::format_to(std::back_inserter(out), "\"finish_reason\":\"{}\",\"stop_reason\":", reason);
  if (completion.stop_string)
    append_string(out, *completion.stop_string);
  else if (completion.stop_token)
    out += std::to_string(*completion.stop_token);
  else
    out += "null";
}

void append_usage(std::string& out, const AnswerUsage& usage) {
  const auto out_at = std::back_inserter(out);
  fmt::format_to(out_at, "\"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{},",
                 usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens);
  fmt::format_to(out_at, "\"prompt_tokens_details\":{{\"cached_tokens\":{}}}", usage.cached_tokens);
  if (usage.reasoning_tokens >= 0)
    fmt::format_to(out_at, ",\"completion_tokens_details\":{{\"reasoning_tokens\":{}}}", usage.reasoning_tokens);
  out += '}';
}

void append_token_ids(std::string& out, std::span<const TokenLogprob> tokens) {
  std::vector<int32_t> ids;
  for (const TokenLogprob& token : tokens) ids.push_back(token.token);
  append_ints(out, ids);
}

ToolSyntax tool_syntax(const GenerateRequest& request, ToolFormat format) {
  ToolSyntax syntax;
  for (const boost::json::value& tool : request.prompts.at(0).tools)
    syntax.names.emplace_back(tool.at("function").at("name").as_string());
  if (!request.forced_tool.empty())
    syntax.forced_name = request.forced_tool;
  else if (request.tool_forced)
    syntax.format = ToolFormat::kLlama3;  // the grammar is that of a bare object
  else if (request.tools_allowed)
    syntax.format = format;
  syntax.forced = request.tool_forced;
  syntax.may_be_empty = request.forced_input;
  if (syntax.format == ToolFormat::kQwen3Coder)
    syntax.kinds = std::make_shared<ParameterKinds>(request.prompts.at(0).tools);
  return syntax;
}

std::string echoed(const GenerateRequest& request, const TextRequest& text, const Tokenizer* tokenizer) {
  if (!request.echo) return {};
  if (!is_chat(request.endpoint))
    return text.token_ids.empty() || tokenizer == nullptr ? text.prompt
                                                          : tokenizer->decode(text.token_ids, text.skip_special_tokens);
  // Of a chat only an assistant's message that is being continued.
  if (text.messages.empty()) return {};
  const boost::json::value& last = text.messages.back();
  return last.at("role") == "assistant" ? std::string(last.at("content").as_string()) : "";
}

Completion prompt_facts(const Completion& completion) {
  Completion facts;
  facts.prompt_tokens = completion.prompt_tokens;
  facts.cached_tokens = completion.cached_tokens;
  facts.prompt_token_ids = completion.prompt_token_ids;
  facts.prompt_logprobs = completion.prompt_logprobs;
  return facts;
}

std::vector<TokenLogprob> tokens_of(const Completion& completion, size_t first) {
  std::vector<TokenLogprob> tokens;
  for (size_t i = first; i < completion.token_ids.size(); ++i)
    tokens.push_back(i < completion.logprobs.size() ? completion.logprobs[i]
                                                    : TokenLogprob{.token = completion.token_ids[i]});
  return tokens;
}

}  // namespace lk::openai
