// SPDX-License-Identifier: Apache-2.0
// The OpenAI wire format, without sockets, threads or engine: JSON bodies to requests, completions to JSON and
// server-sent events. Shapes: OpenAI's API reference and vLLM's extensions (docs.vllm.ai, "OpenAI-Compatible Server").
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/value.hpp>

#include "lk/cluster/dialect.h"
#include "lk/grammar/grammar.h"
#include "lk/infer/text_model.h"
#include "lk/infer/text_sequence.h"
#include "lk/text/tokenizer.h"

namespace lk {

// {"error": {"message", "type", "param", "code"}}
struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;               // "" = null
  std::string code;                // "" = null
  double retry_after_seconds = 0;  // > 0: a Retry-After header
};
// The HTTP status, type and code of each StatusCode. kInternal and kIoError hide their message (log it): the answer
// names the request id instead, if there is one. A quota or full queue (kResourceExhausted) is 429, a server that is
// full or draining (kUnavailable) 503, both with a Retry-After; the codes of 404 ("model_not_found") and the wait of
// 429 are for the caller to set.
ApiError api_error(const Status& status, std::string_view request_id = {});
ErrorWords words_of(const ApiError& error);
std::string format_error(const ApiError& error, Dialect dialect = Dialect::kOpenAi);

// Either a value or an ApiError.
template <class T>
struct ApiResult {
  std::optional<T> value;
  ApiError error;
  ApiResult(T v) : value(std::move(v)) {}
  ApiResult(ApiError e) : error(std::move(e)) {}
  bool ok() const { return value.has_value(); }
};

// How an answer is asked for and written. Responses (OpenAI) and Messages (Anthropic) are told as chats (as_chat.h).
enum class Endpoint : uint8_t { kChat, kCompletion, kResponses, kMessages };
inline bool is_chat(Endpoint endpoint) { return endpoint != Endpoint::kCompletion; }

// Paths of fields in a chat request, and what they are called in the request that was told as one; parts of what is
// named there begin with its path.
using FieldNames = std::vector<std::pair<std::string, std::string>>;

// An answer that a router watches over: what another replica made of it goes on here. Each of its streams says which
// tokens it holds (cluster/answer_commits.h).
struct ResumedAnswer {
  struct Choice {
    std::vector<int32_t> tokens;
    bool done = false;
    int64_t prompt_tokens = 0, cached_tokens = 0;  // of its prompt, once it has tokens
    int64_t events = 0;                            // that it was shown in, where they have numbers
    int64_t reasoning_tokens = 0;                  // of one that is done; not from the request
    bool begun() const { return done || !tokens.empty(); }
  };
  std::string id;
  int64_t created = 0;
  std::string digest;           // of the adapter that made the first part; "" = none has been made, or the base model
  std::vector<Choice> choices;  // later ones have nothing yet
  std::string own_digest;       // of the adapter that makes the rest; not from the request
};

// A tool that is called with a text (custom_tools.h); models see it as a function.
struct CustomTool {
  std::string name;
  std::optional<GrammarSpec> grammar = {};  // of the text; absent: any
  std::string format_field = {};            // where that was given
};

struct GenerateRequest {
  Endpoint endpoint = Endpoint::kChat;
  std::string model;  // "" = the base model
  std::vector<TextRequest>
      prompts;              // one for chat; one per prompt for completions. adapter, grammar and salt are not set here
  int n = 1;                // choices per prompt; index = prompt * n + k, seeds differ by k
  bool says_length = true;  // false: max_tokens is a default, or until the context is full
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;      // completions: the prompt's text comes first
  bool logprobs = false;  // report logprobs (sampling.num_logprobs says how many alternatives)
  bool prompt_logprobs =
      false;  // report them (not streaming); echo with logprobs needs them, too, but reports them elsewhere
  bool return_token_ids = false;
  bool tokens_as_ids = false;                  // logprobs name tokens "token_id:123"
  std::optional<GrammarSpec> grammar;          // response_format, guided_*, structured_outputs, or a forced tool call
  std::string grammar_field;                   // which of them
  ToolFormat tool_format = ToolFormat::kNone;  // of the template that shows the tools
  bool tools_allowed = false;                  // parse tool calls out of the answer
  bool tool_forced = false;                    // the grammar makes it a tool call
  std::string forced_tool;                     // there is only one to call: the whole answer is its arguments,
  bool forced_input = false;                   // or, of a custom one, its input
  bool tool_named = false;                     // by tool_choice: finish_reason is "stop"
  std::vector<CustomTool> custom_tools;
  bool parallel_tool_calls = true;
  ReasoningFormat reasoning = ReasoningFormat::kNone;  // of the template that renders the prompt
  bool include_reasoning = true;                       // show what was thought
  bool merge_reasoning = false;                        // as a part of the content, marks and all
  std::optional<GrammarSpec> call_grammar;             // of calls that may stand for an answer bound by `grammar`
  std::optional<ResumedAnswer> resumed;
  FieldNames names;           // of a request that was told as a chat's
  std::string repeated;       // of Responses: what the answer repeats of the request, as members of a JSON object
  bool drops_oldest = false;  // a conversation that is too long loses its oldest messages
  std::string user;
  int64_t priority = 0;    // among the tenant's own that wait: lower ones first
  std::string cache_salt;  // requests share cached prompts only when these are equal (within a tenant)
  std::vector<std::string>
      ignored_fields;  // unknown, ignored as OpenAI and vLLM do; for the log: at most 16, names cut to 64 bytes
};

// What a request is read against: of the model that it names.
struct ApiDefaults {
  int64_t context = 0, vocab_size = 0;
  GenerationDefaults generation;               // used where a request is silent
  ToolFormat tool_format = ToolFormat::kNone;  // where `templates` does not say
  std::shared_ptr<const ChatTemplates> templates = nullptr;
  ReasoningFormat reasoning = ReasoningFormat::kNone;                  // where `reasoning_templates` is null
  std::shared_ptr<const ChatTemplates> reasoning_templates = nullptr;  // they say how their model thinks
  const Tokenizer* tokenizer = nullptr;                                // may be null
  int64_t max_choices = 128;  // answers that one request may ask for: n times its prompts, or inputs to embed
};
// Caps of ecosystem.md R9: JSON depth 64, n <= 16, stop <= 16 x 256 bytes, logit_bias <= 1024, tools <= 128, logprobs
// <= 20. Duplicate keys, NaN, numbers out of range and mistyped known fields are errors that name the field.
ApiResult<GenerateRequest> parse_chat_request(std::string_view body, const ApiDefaults& defaults);
ApiResult<GenerateRequest> parse_completion_request(std::string_view body, const ApiDefaults& defaults);
ApiResult<GenerateRequest> parse_responses_request(std::string_view body, const ApiDefaults& defaults);
ApiResult<GenerateRequest> parse_messages_request(std::string_view body, const ApiDefaults& defaults);
// Of a Messages request of which only the tokens of its prompt are asked for.
ApiResult<GenerateRequest> parse_count_tokens_request(std::string_view body, const ApiDefaults& defaults);
// What is wrong with a request, named as the request names it.
ApiError in_own_words(ApiError error, const FieldNames& names);

struct EmbeddingRequest {
  std::string model;
  std::vector<TextRequest> inputs;
  bool base64 = false;
  int64_t dimensions = 0;  // 0 = all; fewer = the first n, normalised again
  std::vector<std::string> ignored_fields;
};
ApiResult<EmbeddingRequest> parse_embedding_request(std::string_view body, const ApiDefaults& defaults);
std::string format_embeddings(const EmbeddingRequest& request, const std::string& model,
                              const std::vector<Completion>& results);

struct TokenizeRequest {  // vLLM's /tokenize: prompt or messages
  std::string model;
  TextRequest input;
  bool return_token_strs = false;
  std::vector<std::string> ignored_fields;
};
ApiResult<TokenizeRequest> parse_tokenize_request(std::string_view body, const ApiDefaults& defaults);
std::string format_tokenize(const TokenizeRequest& request, const std::vector<int32_t>& tokens, int64_t context,
                            const Tokenizer& tokenizer);
struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
  std::vector<std::string> ignored_fields;
};
ApiResult<DetokenizeRequest> parse_detokenize_request(std::string_view body, const ApiDefaults& defaults);
std::string format_detokenize(const std::string& text);

// Formats the answer to one request. Not thread safe.
//
// A choice is fed by begin (optional), delta (any number) and done; what the deltas did not show of the completion,
// done shows. Answers that start with facts of the prompt (its token ids, its logprobs with echo) wait for begin, or
// else for done.
class AnswerFormatter {
 public:
  // `model` is echoed; `tokenizer` may be null (dummy weights: token ids stand in for text).
  AnswerFormatter(const GenerateRequest& request, std::string id, int64_t created, std::string model,
                  const Tokenizer* tokenizer, ToolFormat tool_format);
  ~AnswerFormatter();
  // Of a request that is `resumed`, once for each of its choices that has begun (null: it was complete): this text of
  // it was shown, of the tokens that the request names. Only what follows is written.
  void resume(int choice, const TextSequence* sequence);

  // --- Streaming: bytes of zero or more whole events ("data: {...}\n\n"); with `resumed`, each time followed by a
  // comment that says of which tokens they are. Tokens whose events are still to come are in a later one.
  // The prompt was computed: prompt_tokens, cached_tokens, prompt_token_ids and prompt_logprobs are read.
  std::string begin(int choice, const Completion& prompt);
  std::string delta(int choice, const StreamDelta& delta);
  std::string done(int choice, const Completion& completion);  // the chunk with the finish reason
  std::string end();                                           // usage if asked for, and [DONE]
  std::string error(const ApiError& error);                    // mid-stream failure: an error event and [DONE]
  // The same, of a stream that has shown nothing yet.
  static std::string error_events(const ApiError& error, Dialect dialect);

  // --- Not streaming: completions by choice index. Requires: as many as prompts times n, none failed (kError). Nothing
  // when it would be longer than `max_bytes`.
  std::string response(const std::vector<Completion>& completions,
                       size_t max_bytes = std::numeric_limits<size_t>::max());

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lk
