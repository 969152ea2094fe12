// SPDX-License-Identifier: Apache-2.0
// TextSequence: a request from the door to its last token. TextModel::prepare() makes it of a TextRequest; the
// scheduler's part (its bases) and the text's part live in the one object, which is handed from thread to thread and
// never copied.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <boost/json/value.hpp>

#include "lk/grammar/grammar.h"
#include "lk/sched/sequence.h"
#include "lk/text/reasoning.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct TextRequest {
  std::string adapter;  // name; empty = the base model
  std::string prompt;   // one of prompt, token_ids, messages
  std::vector<int32_t> token_ids;
  boost::json::array messages;             // rendered with the chat template
  boost::json::array tools;                // likewise; empty = none
  boost::json::object template_variables;  // further variables for the template (chat_template_kwargs)
  std::string template_name;               // which of the model's templates; "" = as transformers chooses
  bool add_generation_prompt = true;       // for messages
  bool continue_final_message = false;     // the last message is left open; excludes add_generation_prompt
  bool add_special_tokens = true;          // for prompt; a chat template brings its own:
  bool special_tokens_around_template = false;
  int64_t max_tokens = 128;            // more than fits means "until the context is full"
  std::vector<int32_t> output_so_far;  // Request::output_so_far
  int64_t min_tokens = 0;              // no stop token or end of text before
  int64_t truncate_prompt_tokens = 0;  // keep the last n tokens of the prompt; 0 = all, -1 = what there is room for
  bool truncate_right = false;         // keep the first ones
  SamplingParams sampling;
  std::vector<std::string> stop;  // at most 16, none empty
  std::vector<int32_t> stop_token_ids;
  bool include_stop_string = false;         // the text ends with the stop string that was reached
  std::vector<int32_t> allowed_token_ids;   // empty = all
  std::vector<std::string> bad_words = {};  // that the text may not have in it
  std::shared_ptr<const Grammar> grammar;   // what the text must match, or null; overrides ignore_eos
  // How the model's thoughts are told from its answer; kNone: all of the text is the answer. prepare() finds out where
  // the prompt leaves the model, unless that is known.
  ReasoningFormat reasoning = ReasoningFormat::kNone;
  std::optional<ThinkingStart> thinking_start = std::nullopt;
  int64_t thinking_budget =
      -1;  // the thoughts end after so many tokens, if there are any; -1 = when the model ends them
  bool merge_reasoning = false;  // thoughts are shown as the model wrote them, with their marks and white space
  // What tool calls may begin with, instead of what the grammar says; empty = no calls beside a grammar.
  std::vector<std::string> call_openings = {};
  std::shared_ptr<const Grammar> call_grammar = nullptr;  // of what comes behind them; null = anything
  bool bare_calls = false;                                // a call needs no opening
  bool embed = false;                                     // no output tokens: Completion::embedding instead
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  uint64_t cache_salt = 0;
};

struct Completion {
  std::string text;            // the answer
  std::string reasoning = {};  // what was thought before it
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;         // per token, when asked for
  std::vector<TokenLogprob> prompt_logprobs;  // entry i is prompt token i + 1
  FinishReason finish = FinishReason::kNone;
  Status error;  // with kError
  std::vector<int32_t> prompt_token_ids;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  // What stopped it: the stop string, or the stop token when it is not an end-of-sequence token.
  std::optional<std::string> stop_string;
  std::optional<int32_t> stop_token;
  int64_t reasoning_tokens = 0;  // of all tokens so far, also those made elsewhere: thoughts and their marks
  std::vector<float> embedding;  // [hidden_dim] mean of the last hidden states, L2-normalised
};

// New text and tokens of one request, at most one such a step. A token's text may come later than the token (held back
// while it could be part of a stop string or half a character).
struct StreamDelta {
  std::string text;
  std::vector<TokenLogprob> tokens;
  std::string reasoning = {};    // comes before the text
  int64_t reasoning_tokens = 0;  // so far
};

class TextSequence : public Sequence {
 public:
  TextRequest text;  // what was asked for
  // What was made so far; whole once the sequence has ended. Of a resumed request, what was made here.
  Completion completion;
  int64_t reserved_tokens = 0;  // what it may come to, prompt and output: its place in queues and budgets

  // Before the first token: takes the text of the output so far, which has been shown. kInvalidArgument when that has
  // reached a stop string. A null tokenizer (dummy weights) writes tokens as numbers, so that everything downstream has
  // a text to carry.
  Status begin_text(const std::shared_ptr<const Tokenizer>& tokenizer);
  // The part of it (without thoughts) that has been shown. Requires: not ended.
  std::string_view text_so_far() const { return std::string_view(completion.text).substr(0, seam_); }
  std::string_view reasoning_so_far() const {
    return std::string_view(completion.reasoning).substr(0, reasoning_seam_);
  }
  // Tokens of the prompt that are counted here; a resumed request's were counted where it began.
  int64_t counted_prompt_tokens() const { return asked.resumed() ? 0 : completion.prompt_tokens; }
  // Takes one more token; true when its text reached a stop string. The text of one that `stops` is not shown.
  bool add(TokenLogprob token, bool stops);
  // What can be shown now and was not yet: never half a character, never what may turn out to be a stop string.
  std::string take_text();
  std::string take_reasoning();  // likewise of the thoughts; a stop string is none in them
  // Of the completion, what the prompt gave: its tokens, log-probabilities and how much of it was cached.
  Completion prompt_facts() const;
  // Completes the completion; take_text() then gives what was still held back.
  void end(FinishReason reason, Status error);

 private:
  std::string text_of(int32_t token);
  bool append(const std::string& piece, bool is_last = false);
  std::string answer_in(const std::string& piece, bool is_last);
  void push_merged(std::string_view piece, std::string& answer);

  std::optional<IncrementalDecoder> decoder_;
  int64_t num_tokens_ = 0;
  size_t shown_ = 0;  // bytes of completion.text
  size_t seam_ = 0;   // of these, shown before it was resumed
  std::optional<ThoughtSplitter> thoughts_;
  std::string undecided_text_;  // with merge_reasoning
  int64_t undecided_ = 0;       // tokens while it is not known whether they begin thoughts
  size_t reasoning_shown_ = 0, reasoning_seam_ = 0;
  bool reached_stop_string_ = false;
};

}  // namespace lk
