// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "lk/cluster/answer_commits.h"
#include "lk/serve/openai/answer_items.h"
#include "lk/serve/openai/choice.h"
#include "lk/serve/openai/json_writer.h"
#include "lk/serve/openai/openai.h"

namespace lk {

using namespace openai;

struct AnswerFormatter::Impl {
  AnswerShape shape;
  std::vector<Choice> choices;
  std::unique_ptr<AnswerItems> items;  // or null: chat and completions are written here
  std::vector<std::string> echo;       // per prompt
  size_t n;
  std::string model;
  int64_t created;
  bool include_usage, continuous_usage;
  AnswerUsage usage;  // of the choices that are done
  bool failed = false, ended = false;
  std::optional<ResumedAnswer> resumed;  // commits are written

  size_t index_of(const Choice& choice) const { return static_cast<size_t>(&choice - choices.data()); }

  // {"id":...,"object":...,"created":...,"model":...
  std::string head(std::string_view object) const {
    std::string out = "{\"id\":";
    append_string(out, shape.id);
    fmt::format_to(std::back_inserter(out), ",\"object\":\"{}\",\"created\":{},\"model\":", object, created);
    append_string(out, model);
    return out;
  }

  void append_logprobs(std::string& out, std::span<const TokenLogprob> tokens, bool first_is_prompt,
                       Choice& choice) const {
    out += "\"logprobs\":";
    if (!shape.logprobs || tokens.empty()) {
      out += "null";
    } else if (shape.chat()) {
      out += "{\"content\":";
      append_chat_logprobs(out, tokens, shape.names);
      out += '}';
    } else {
      append_completion_logprobs(out, tokens, first_is_prompt, choice.text_offset, shape.names);
    }
  }

  // One event. `body`: the delta (chat) or the text; `tokens` go with it; `finish`:
  // "finish_reason":...,"stop_reason":...
  void append_chunk(std::string& out, Choice& choice, std::string_view body, std::span<const TokenLogprob> tokens,
                    bool first_is_prompt, std::string_view finish) const {
    out += "data: ";
    out += stream_head;
    fmt::format_to(std::back_inserter(out), ",\"choices\":[{{\"index\":{},", index_of(choice));
    out += body;
    out += ',';
    append_logprobs(out, tokens, first_is_prompt, choice);
    out += ',';
    out += finish.empty() ? "\"finish_reason\":null" : finish;
    const bool first = !choice.started;
    if (shape.token_ids && !first) {
      out += ",\"token_ids\":";
      append_token_ids(out, tokens);
    }
    if (shape.token_ids && first && !shape.chat()) append_prompt_ids(out, *choice.prompt);
    out += "}]";
    if (shape.token_ids && first && shape.chat()) append_prompt_ids(out, *choice.prompt);
    if (continuous_usage && choice.prompt) {
      out += ',';
      append_usage(out, {.prompt_tokens = choice.prompt->prompt_tokens,
                         .completion_tokens = choice.before + choice.num_tokens,
                         .cached_tokens = choice.prompt->cached_tokens,
                         .reasoning_tokens = shape.reasoning ? choice.reasoning_tokens : -1});
    }
    out += "}\n\n";
  }

  static void append_prompt_ids(std::string& out, const Completion& prompt) {
    out += ",\"prompt_token_ids\":";
    append_ints(out, prompt.prompt_token_ids);
  }

  // A chunk with the tokens that wait.
  void append_chunk(std::string& out, Choice& choice, std::string_view body, std::string_view finish = {}) const {
    append_chunk(out, choice, body, span_of(choice.waiting), false, finish);
    choice.waiting.clear();
  }

  static std::string text_body(std::string_view text) {
    std::string body = "\"text\":";
    append_string(body, text);
    return body;
  }
  static std::string content_body(std::string_view text) {
    std::string body = "\"delta\":{\"content\":";
    append_string(body, text);
    body += '}';
    return body;
  }

  // Under both names that clients know.
  static std::string reasoning_body(std::string_view thoughts) {
    std::string text;
    append_string(text, thoughts);
    return "\"delta\":{\"reasoning\":" + text + ",\"reasoning_content\":" + text + "}";
  }

  void start(std::string& out, Choice& choice) const {
    if (items) {
      items->begin(&out, choice.prompt.value_or(Completion()));
      choice.started = true;
      return;
    }
    const std::string& echo_text = echo[index_of(choice) / n];
    if (shape.chat()) {
      append_chunk(out, choice, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", {}, false, {});
      choice.started = true;
      if (!echo_text.empty()) append_chunk(out, choice, content_body(echo_text), {}, false, {});
    } else if (shape.echo || shape.token_ids) {
      const std::vector<TokenLogprob> prompt =
          shape.echo && shape.logprobs ? shape.prompt_tokens(*choice.prompt) : std::vector<TokenLogprob>();
      append_chunk(out, choice, text_body(echo_text), span_of(prompt), true, {});
    }
    choice.started = true;
  }

  void append_deltas(std::string& out, int index, Choice& choice, const ToolDeltas& deltas) const {
    for (const ToolDelta& delta : deltas) {
      if (delta.kind == ToolDelta::Kind::kContent) {
        append_chunk(out, choice, content_body(delta.text));
        continue;
      }
      if (delta.call > 0 && !shape.parallel_tool_calls) continue;
      if (delta.kind == ToolDelta::Kind::kBegin) {
        end_input(&out, choice);
        std::string body = fmt::format("\"delta\":{{\"tool_calls\":[{{\"index\":{},", delta.call);
        shape.append_call_head(body, index, delta.call, delta.text);
        body += "\"\"}}]}";
        append_chunk(out, choice, body);
        begin_call(choice, delta);
      } else {
        append_arguments(out, choice, input_text(choice, delta.text));
      }
    }
  }

  void begin_call(Choice& choice, const ToolDelta& delta) const {
    choice.call = delta.call;
    choice.call_is_custom = shape.is_custom(delta.text);
    if (!shape.forced_input && choice.call_is_custom) choice.input.emplace();
  }

  // What the client sees of a piece of the call's arguments: of a custom tool's, the input that they hold.
  std::string input_text(Choice& choice, std::string_view arguments) const {
    if (!choice.input) return std::string(arguments);
    std::string text;
    choice.input->push(arguments, text);
    return text;
  }

  // Of the call at hand.
  void append_arguments(std::string& out, Choice& choice, std::string_view text) const {
    if (text.empty()) return;
    std::string body = fmt::format("\"delta\":{{\"tool_calls\":[{{\"index\":{},\"{}\":", choice.call,
                                   choice.call_is_custom ? "custom\":{\"input" : "function\":{\"arguments");
    append_string(body, text);
    body += "}}]}";
    append_chunk(out, choice, body);
  }

  // No more comes of a custom tool's arguments.
  void end_input(std::string* out, Choice& choice) const {
    if (!choice.input) return;
    std::string rest;
    choice.input->finish(rest);
    choice.input.reset();
    if (!items)
      append_arguments(*out, choice, rest);
    else if (!rest.empty())
      items->arguments(out, rest);
  }

  // A text and the tokens that wait for it; of those behind it only what it needs when `in_one_piece`.
  void item_text(std::string* out, Choice& choice, std::string_view text, bool in_one_piece) const {
    size_t count = choice.waiting.size();
    if (in_one_piece && choice.parser.num_calls() > 0) {
      size_t bytes = 0;
      for (count = 0; count < choice.waiting.size() && bytes < text.size(); ++count)
        bytes += shape.names.bytes(choice.waiting[count].token).size();
    }
    items->text(out, text, span_of(choice.waiting).first(count));
    choice.waiting.erase(choice.waiting.begin(), choice.waiting.begin() + static_cast<ptrdiff_t>(count));
  }

  void feed_items(std::string* out, int index, Choice& choice, const ToolDeltas& deltas, bool in_one_piece) const {
    for (const ToolDelta& delta : deltas) {
      if (delta.kind == ToolDelta::Kind::kContent) {
        item_text(out, choice, delta.text, in_one_piece);
        continue;
      }
      choice.waiting.clear();
      if (delta.call > 0 && !shape.parallel_tool_calls) continue;
      if (delta.kind == ToolDelta::Kind::kBegin) {
        end_input(out, choice);
        begin_call(choice, delta);
        items->call(out, shape.call_id(index, delta.call), delta.text, choice.call_is_custom);
      } else if (const std::string text = input_text(choice, delta.text); !text.empty()) {
        items->arguments(out, text);
      }
    }
  }

  // Thoughts and their marks have no log-probabilities to show.
  void drop_thoughts(Choice& choice) const {
    const int64_t first = choice.before + choice.num_tokens - std::ssize(choice.waiting);
    const int64_t thoughts = std::clamp<int64_t>(choice.reasoning_tokens - first, 0, std::ssize(choice.waiting));
    choice.waiting.erase(choice.waiting.begin(), choice.waiting.begin() + thoughts);
  }

  void feed(std::string& out, int index, Choice& choice, std::string_view thoughts, std::string_view text,
            std::span<const TokenLogprob> tokens) const {
    if (!choice.prompt && shape.needs_prompt()) {
      choice.early.text += text;
      choice.early.reasoning += thoughts;
      choice.early.tokens.insert(choice.early.tokens.end(), tokens.begin(), tokens.end());
      return;
    }
    if (!choice.started) start(out, choice);
    choice.text_bytes += text.size();
    choice.reasoning_bytes += thoughts.size();
    choice.num_tokens += static_cast<int64_t>(tokens.size());
    if (resumed)
      for (const TokenLogprob& token : tokens) choice.uncommitted.push_back(token.token);
    if (shape.logprobs || shape.token_ids) choice.waiting.insert(choice.waiting.end(), tokens.begin(), tokens.end());
    if (items) {
      drop_thoughts(choice);
      if (!thoughts.empty() && shape.include_reasoning) items->thoughts(&out, thoughts);
      ToolDeltas deltas;
      choice.parser.push(text, deltas);
      feed_items(&out, index, choice, deltas, false);
    } else if (shape.chat()) {
      if (!thoughts.empty() && shape.include_reasoning)
        append_chunk(out, choice, shape.merge_reasoning ? content_body(thoughts) : reasoning_body(thoughts));
      ToolDeltas deltas;
      choice.parser.push(text, deltas);
      append_deltas(out, index, choice, deltas);
    } else if (!text.empty()) {
      append_chunk(out, choice, text_body(text));
    }
  }

  void know_prompt(std::string& out, int index, Choice& choice, const Completion& completion) const {
    if (choice.prompt) return;
    choice.prompt = prompt_facts(completion);
    const StreamDelta early = std::move(choice.early);
    choice.early = {};
    if (!early.text.empty() || !early.reasoning.empty() || !early.tokens.empty())
      feed(out, index, choice, early.reasoning, early.text, span_of(early.tokens));
  }

  void count(int index, const Completion& completion) {
    const Choice& choice = choices[static_cast<size_t>(index)];
    usage.completion_tokens += choice.before + static_cast<int64_t>(completion.token_ids.size());
    if (shape.reasoning)
      usage.reasoning_tokens = std::max<int64_t>(usage.reasoning_tokens, 0) + completion.reasoning_tokens;
    if (static_cast<size_t>(index) % n != 0) return;  // the choices of a prompt share it
    const Completion& prompt = choice.before > 0 ? *choice.prompt : completion;
    usage.prompt_tokens += prompt.prompt_tokens;
    usage.cached_tokens += prompt.cached_tokens;
  }

  // Behind what was written of a choice. Nothing while tokens wait for the events that will show them: whoever goes on
  // with the answer makes these again.
  void commit(std::string& out, int index, Choice& choice, bool is_done) const {
    if (!resumed || (!is_done && (choice.uncommitted.empty() || !choice.waiting.empty()))) return;
    AnswerCommit commit{.choice = index,
                        .first = choice.before + choice.num_tokens - static_cast<int64_t>(choice.uncommitted.size()),
                        .tokens = std::exchange(choice.uncommitted, {}),
                        .done = is_done,
                        .events = items ? items->num_events() : 0};
    if (!std::exchange(choice.told_prompt, true) && choice.prompt) {
      commit.prompt = AnswerCommit::Prompt{choice.prompt->prompt_tokens, choice.prompt->cached_tokens};
      commit.digest = resumed->own_digest;
    }
    out += format_commit(commit);
  }

  // A call's arguments, or its input.
  std::string written(std::string_view tool, std::string arguments) const {
    if (shape.forced_input || !shape.is_custom(tool)) return arguments;
    std::string text;
    CustomInput input;
    input.push(arguments, text);
    input.finish(text);
    return text;
  }

  void append_message(std::string& out, int index, Choice& choice, const Completion& completion) const {
    ToolDeltas deltas;
    choice.parser.push(completion.text, deltas);
    choice.parser.finish(deltas);
    std::string content = echo[static_cast<size_t>(index) / n];
    if (shape.merge_reasoning && shape.include_reasoning) content += completion.reasoning;
    std::vector<std::pair<std::string, std::string>> calls;
    for (ToolDelta& delta : deltas) {
      if (delta.kind == ToolDelta::Kind::kContent)
        content += delta.text;
      else if (delta.call > 0 && !shape.parallel_tool_calls)
        continue;
      else if (delta.kind == ToolDelta::Kind::kBegin)
        calls.emplace_back(std::move(delta.text), "");
      else
        calls.back().second += delta.text;
    }
    out += "\"message\":{\"role\":\"assistant\",\"content\":";
    const bool thought = shape.include_reasoning && !shape.merge_reasoning && !completion.reasoning.empty();
    if (content.empty() && (!calls.empty() || !completion.reasoning.empty() || shape.tool_forced))
      out += "null";
    else
      append_string(out, content);
    out += ",\"refusal\":null";
    for (const char* key : {",\"reasoning\":", ",\"reasoning_content\":"}) {
      if (!thought) break;
      out += key;
      append_string(out, completion.reasoning);
    }
    for (size_t i = 0; i < calls.size(); ++i) {
      out += i == 0 ? ",\"tool_calls\":[" : ",";
      out += '{';
      shape.append_call_head(out, index, static_cast<int>(i), calls[i].first);
      append_string(out, written(calls[i].first, std::move(calls[i].second)));
      out += "}}";
    }
    out += calls.empty() ? "}," : "]},";
  }

  void append_choice(std::string& out, int index, const Completion& completion) {
    Choice& choice = choices[static_cast<size_t>(index)];
    fmt::format_to(std::back_inserter(out), "{}{{\"index\":{},", index > 0 ? "," : "", index);
    std::vector<TokenLogprob> tokens = tokens_of(completion, 0);
    const bool with_prompt = !shape.chat() && shape.echo;
    if (shape.chat())
      append_message(out, index, choice, completion);
    else
      out += text_body(echo[static_cast<size_t>(index) / n] + completion.text) + ",";
    std::vector<TokenLogprob> shown = with_prompt ? shape.prompt_tokens(completion) : std::vector<TokenLogprob>();
    const bool first_is_prompt = !shown.empty();
    shown.insert(shown.end(), tokens.begin(), tokens.end());
    append_logprobs(out, span_of(shown), first_is_prompt, choice);
    out += ',';
    shape.append_finish(out, completion, choice.parser.num_calls());
    if (shape.token_ids) {
      out += ",\"token_ids\":";
      append_ints(out, completion.token_ids);
    }
    if (!shape.chat()) append_prompt_extras(out, completion);
    out += '}';
  }

  // The whole answer, of an API of items.
  std::string items_object(const Completion& completion) {
    Choice& choice = choices[0];
    choice.prompt = prompt_facts(completion);
    choice.reasoning_tokens = completion.reasoning_tokens;
    choice.num_tokens = std::ssize(completion.token_ids);
    if (shape.logprobs) choice.waiting = tokens_of(completion, 0);
    drop_thoughts(choice);
    items->begin(nullptr, *choice.prompt);
    if (!completion.reasoning.empty() && shape.include_reasoning) items->thoughts(nullptr, completion.reasoning);
    ToolDeltas deltas;
    choice.parser.push(completion.text, deltas);
    choice.parser.finish(deltas);
    feed_items(nullptr, 0, choice, deltas, true);
    end_input(nullptr, choice);
    items->last_tokens(span_of(choice.waiting));
    count(0, completion);
    items->finish(nullptr, completion, usage);
    return items->whole();
  }

  void append_prompt_extras(std::string& out, const Completion& completion) const {
    if (shape.token_ids) append_prompt_ids(out, completion);
    if (!shape.prompt_logprobs) return;
    out += ",\"prompt_logprobs\":";
    append_prompt_logprobs(out, span_of(completion.prompt_logprobs), shape.names);
  }

  std::string stream_head;
};

AnswerFormatter::AnswerFormatter(const GenerateRequest& request, std::string id, int64_t created, std::string model,
                                 const Tokenizer* tokenizer, ToolFormat tool_format)
    : impl_(std::make_unique<Impl>()) {
  const TextRequest& first = request.prompts.at(0);
  impl_->shape = {.endpoint = request.endpoint,
                  .names = {.tokenizer = tokenizer,
                            .as_ids = request.tokens_as_ids,
                            .skip_special_tokens = first.skip_special_tokens},
                  .tool_format = tool_format,
                  .logprobs = request.logprobs,
                  .prompt_logprobs = request.prompt_logprobs,
                  .token_ids = request.return_token_ids,
                  .echo = request.echo,
                  .parallel_tool_calls = request.parallel_tool_calls,
                  .tool_forced = request.tool_forced,
                  .reasoning = request.reasoning != ReasoningFormat::kNone,
                  .include_reasoning = request.include_reasoning,
                  .merge_reasoning = request.merge_reasoning,
                  .tool_named = request.tool_named,
                  .custom_tools = request.custom_tools,
                  .forced_input = request.forced_input,
                  .id = std::move(id)};
  impl_->n = static_cast<size_t>(request.n);
  impl_->model = std::move(model);
  impl_->created = created;
  impl_->include_usage = request.include_usage;
  impl_->continuous_usage = request.continuous_usage;
  impl_->resumed = request.resumed;
  const ItemsHead head{.id = impl_->shape.id,
                       .created = created,
                       .model = impl_->model,
                       .repeated = request.repeated,
                       .names = impl_->shape.names,
                       .logprobs = request.logprobs,
                       .max_tokens = first.max_tokens};
  if (request.endpoint == Endpoint::kResponses) impl_->items = responses_items(head);
  if (request.endpoint == Endpoint::kMessages) impl_->items = messages_items(head);
  for (const TextRequest& text : request.prompts) impl_->echo.push_back(echoed(request, text, tokenizer));
  const ToolSyntax syntax = tool_syntax(request, tool_format);
  for (size_t i = 0; i < request.prompts.size() * impl_->n; ++i) impl_->choices.emplace_back(syntax);
  impl_->stream_head = impl_->head(impl_->shape.chat() ? "chat.completion.chunk" : "text_completion");
}

AnswerFormatter::~AnswerFormatter() = default;

void AnswerFormatter::resume(int index, const TextSequence* sequence) {
  Impl& self = *impl_;
  Choice& choice = self.choices.at(static_cast<size_t>(index));
  const ResumedAnswer::Choice& known = self.resumed->choices.at(static_cast<size_t>(index));
  choice.started = choice.told_prompt = true;
  choice.before = static_cast<int64_t>(known.tokens.size());
  choice.prompt.emplace();
  choice.prompt->prompt_tokens = known.prompt_tokens;
  choice.prompt->cached_tokens = known.cached_tokens;
  if (known.done) {
    choice.finished = true;
    choice.prompt->reasoning_tokens = known.reasoning_tokens;
    self.count(index, *choice.prompt);
    return;
  }
  choice.reasoning_tokens = sequence->completion.reasoning_tokens;
  ToolDeltas shown;
  choice.parser.push(sequence->text_so_far(), shown);
  if (self.items) {
    self.items->begin(nullptr, *choice.prompt);
    if (const std::string_view thoughts = sequence->reasoning_so_far();
        !thoughts.empty() && self.shape.include_reasoning)
      self.items->thoughts(nullptr, thoughts);
    self.feed_items(nullptr, index, choice, shown, false);
    self.items->count_from(known.events);
  } else {
    std::string nowhere;
    self.append_deltas(nowhere, index, choice, shown);  // where a custom tool's input stands
  }
  const auto pass = [&](const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) choice.text_offset += self.shape.names.num_characters(token);
  };
  if (self.shape.echo && !self.shape.chat()) pass(sequence->asked.prompt);
  pass(known.tokens);
}

std::string AnswerFormatter::begin(int index, const Completion& prompt) {
  std::string out;
  impl_->know_prompt(out, index, impl_->choices.at(static_cast<size_t>(index)), prompt);
  return out;
}

std::string AnswerFormatter::delta(int index, const StreamDelta& delta) {
  std::string out;
  Choice& choice = impl_->choices.at(static_cast<size_t>(index));
  if (choice.finished || impl_->failed) return out;
  choice.reasoning_tokens = std::max(choice.reasoning_tokens, delta.reasoning_tokens);
  impl_->feed(out, index, choice, delta.reasoning, delta.text, span_of(delta.tokens));
  impl_->commit(out, index, choice, false);
  return out;
}

std::string AnswerFormatter::done(int index, const Completion& completion) {
  Impl& self = *impl_;
  std::string out;
  Choice& choice = self.choices.at(static_cast<size_t>(index));
  if (choice.finished || self.failed) return out;
  choice.finished = true;
  if (completion.finish == FinishReason::kError) {
    self.failed = true;
    const ApiError error = api_error(completion.error);
    return self.items ? self.items->error(error) : "data: " + format_error(error) + "\n\n";
  }
  self.know_prompt(out, index, choice, completion);
  const auto unseen = [](const std::string& whole, size_t seen) {
    return std::string_view(whole).substr(std::min(seen, whole.size()));
  };
  const std::string_view text = unseen(completion.text, choice.text_bytes);
  const std::string_view thoughts = unseen(completion.reasoning, choice.reasoning_bytes);
  choice.reasoning_tokens = completion.reasoning_tokens;
  const std::vector<TokenLogprob> tokens = tokens_of(completion, static_cast<size_t>(choice.num_tokens));
  self.feed(out, index, choice, thoughts, text, span_of(tokens));
  if (self.shape.chat()) {
    ToolDeltas deltas;
    choice.parser.finish(deltas);
    if (self.items)
      self.feed_items(&out, index, choice, deltas, false);
    else
      self.append_deltas(out, index, choice, deltas);
    self.end_input(&out, choice);
  }
  self.count(index, completion);
  if (self.items) {
    self.items->last_tokens(span_of(choice.waiting));
    self.items->finish(&out, completion, self.usage);
  } else {
    std::string finish;
    self.shape.append_finish(finish, completion, choice.parser.num_calls());
    self.append_chunk(out, choice, self.shape.chat() ? "\"delta\":{}" : "\"text\":\"\"", finish);
  }
  self.commit(out, index, choice, true);
  return out;
}

std::string AnswerFormatter::end() {
  Impl& self = *impl_;
  if (std::exchange(self.ended, true)) return {};
  std::string out;
  if (self.include_usage && !self.failed && !self.items) {
    out = "data: " + self.stream_head + ",\"choices\":[],";
    append_usage(out, self.usage);
    out += "}\n\n";
  }
  if (!self.items) out += "data: [DONE]\n\n";
  if (self.resumed && !self.failed) out += format_commit({.end = true});
  return out;
}

std::string AnswerFormatter::error_events(const ApiError& error, Dialect dialect) {
  return lk::error_events(dialect, error.status, words_of(error));
}

std::string AnswerFormatter::error(const ApiError& error) {
  Impl& self = *impl_;
  if (self.ended) return {};
  self.failed = true;
  return (self.items ? self.items->error(error) : "data: " + format_error(error) + "\n\n") + end();
}

std::string AnswerFormatter::response(const std::vector<Completion>& completions, size_t max_bytes) {
  Impl& self = *impl_;
  self.shape.names.max_bytes = max_bytes;
  LK_CHECK(completions.size() == self.choices.size(), "{} completions for {} choices", completions.size(),
           self.choices.size());
  if (self.items) {
    std::string whole = self.items_object(completions[0]);
    return whole.size() > max_bytes ? std::string() : whole;
  }
  std::string out = self.head(self.shape.chat() ? "chat.completion" : "text_completion") +
                    ",\"system_fingerprint\":null,\"choices\":[";
  for (size_t i = 0; i < completions.size(); ++i) {
    self.append_choice(out, static_cast<int>(i), completions[i]);
    if (out.size() > max_bytes) return {};
    self.count(static_cast<int>(i), completions[i]);
  }
  out += "],";
  append_usage(out, self.usage);
  if (self.shape.chat()) self.append_prompt_extras(out, completions[0]);
  if (out.size() > max_bytes) return {};
  return out + "}";
}

}  // namespace lk
