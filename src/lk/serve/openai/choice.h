// SPDX-License-Identifier: Apache-2.0
// One choice of an answer while it is written: which text and tokens were shown, what the prompt was, the tool calls
// found so far.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lk/serve/openai/custom_tools.h"
#include "lk/serve/openai/logprobs.h"
#include "lk/serve/openai/openai.h"
#include "lk/serve/openai/tool_parser.h"

namespace lk::openai {

struct Choice {
  explicit Choice(const ToolSyntax& syntax) : parser(syntax) {}

  ToolCallParser parser;
  bool started = false;  // the first chunk is out
  bool finished = false;
  std::optional<Completion> prompt;  // only its prompt_* and cached_tokens
  size_t text_bytes = 0;             // of the completion's text, seen so far
  size_t reasoning_bytes = 0;        // of its thoughts
  int64_t reasoning_tokens = 0;
  int64_t num_tokens = 0;
  int64_t before = 0;                 // tokens that were made elsewhere
  std::vector<int32_t> uncommitted;   // tokens that no commit has named yet
  bool told_prompt = false;           // a commit has said what the prompt came to
  StreamDelta early;                  // came before the prompt's facts, which the first chunk needs
  std::vector<TokenLogprob> waiting;  // tokens that go with the next chunk
  int call = 0;                       // the latest
  bool call_is_custom = false;
  std::optional<CustomInput> input;  // of it, while it has one
  int64_t text_offset = 0;           // of the next token's text, in characters
};

// Facts of a request that formatting needs.
struct AnswerShape {
  Endpoint endpoint;
  TokenNames names;
  ToolFormat tool_format;
  bool logprobs, prompt_logprobs, token_ids, echo, parallel_tool_calls;
  bool tool_forced;  // every answer is a call
  bool reasoning, include_reasoning, merge_reasoning;
  bool tool_named;
  std::vector<CustomTool> custom_tools;
  bool forced_input;  // what is called is the input itself
  std::string id;     // of the request; call ids derive from it

  bool needs_prompt() const {  // in the first chunk
    return token_ids || (!chat() && echo && logprobs) || endpoint == Endpoint::kMessages;
  }
  bool chat() const { return is_chat(endpoint); }
  // "call_" (Messages: "toolu_") and 24 letters and digits; of Mistral's models, whose templates insist on it, 9
  // letters and digits. The same for the same request, choice and call.
  std::string call_id(int choice, int call) const;
  bool is_custom(std::string_view tool) const;
  // {"id":...,"type":...,"function":{"name":...,"arguments": for a call of this tool, up to its arguments or input.
  void append_call_head(std::string& out, int choice, int call, std::string_view tool) const;
  // The tokens of an echoed prompt; the first has no logprob.
  std::vector<TokenLogprob> prompt_tokens(const Completion& prompt) const;
  void append_finish(std::string& out, const Completion& completion,
                     int num_calls) const;  // "finish_reason":...,"stop_reason":...
};

// How the answer's tool calls are written, if it may have any.
ToolSyntax tool_syntax(const GenerateRequest& request, ToolFormat format);
// What echo puts before the answer.
std::string echoed(const GenerateRequest& request, const TextRequest& text, const Tokenizer* tokenizer);
Completion prompt_facts(const Completion& completion);
// The tokens from `first` on, with their logprobs if there are any.
std::vector<TokenLogprob> tokens_of(const Completion& completion, size_t first);

struct AnswerUsage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  int64_t reasoning_tokens = -1;  // of the completion's; -1 = thoughts are not told from the answer
};
void append_usage(std::string& out, const AnswerUsage& usage);
void append_token_ids(std::string& out, std::span<const TokenLogprob> tokens);
inline std::span<const TokenLogprob> span_of(const std::vector<TokenLogprob>& tokens) {
  return {tokens.data(), tokens.size()};
}

}  // namespace lk::openai
