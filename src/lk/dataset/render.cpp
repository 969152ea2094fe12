// SPDX-License-Identifier: Apache-2.0
#include "lk/dataset/render.h"

#include <algorithm>

#include <boost/json.hpp>

namespace lk {
namespace {

namespace json = boost::json;

constexpr std::string_view kMark = "lorikeet-turn-mark";  // stands for a message's content

bool is_space(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

constexpr int64_t kDefaultNow = 1721952000;  // 2024-07-26

}  // namespace

float Renderer::weight_of(const Record& record, size_t turn) const {
  return turn < record.num_prompt_messages && !options_.train_on_prompt ? 0 : record.weights[turn];
}

Result<ChatTemplate::Marked> Renderer::render_template(const Record& record, json::array messages,
                                                       bool generation_prompt) const {
  LK_ASSIGN_OR_RETURN(const ChatTemplates::Entry* entry, templates_->choose("", !record.tools.empty()));
  Conversation conversation{.messages = std::move(messages),
                            .tools = record.tools,
                            .variables = record.variables,
                            .add_generation_prompt = generation_prompt};
  conversation.variables["strftime_now_unix"] = options_.now_unix != 0 ? options_.now_unix : kDefaultNow;
  LK_ASSIGN_OR_RETURN(ChatTemplate::Marked marked, entry->render(std::move(conversation)));
  LK_RETURN_IF_ERROR(entry->check_tools(record.tools, marked.text));
  return marked;
}

Result<std::string> Renderer::render_prefix(const Record& record, size_t num_messages, bool generation_prompt) const {
  json::array messages(record.messages.begin(), record.messages.begin() + static_cast<ptrdiff_t>(num_messages));
  LK_ASSIGN_OR_RETURN(ChatTemplate::Marked rendered, render_template(record, std::move(messages), generation_prompt));
  return std::move(rendered.text);
}

// Where the content of message `turn` would stand, if it were all that the message says: the text around it.
Result<Renderer::Around> Renderer::around_turn(const Record& record, size_t turn) const {
  json::array messages = record.messages;
  json::object& message = messages[turn].get_object();
  message["content"] = kMark;
  message.erase("tool_calls");
  LK_ASSIGN_OR_RETURN(const ChatTemplate::Marked rendered, render_template(record, std::move(messages), false));
  const std::string& marked = rendered.text;
  const size_t begin = marked.find(kMark);
  if (begin == std::string::npos || marked.find(kMark, begin + 1) != std::string::npos)
    return not_found("the template does not print the content once");
  return Around{marked.substr(0, begin), marked.substr(begin + kMark.size())};
}

// The part of `text`, the whole conversation, that the template prints for the assistant's message `turn`.
Result<Renderer::Span> Renderer::find_turn(const Record& record, size_t turn, const std::string& text) const {
  std::optional<size_t> begin, end;
  // What a server would have given the model as prompt ends where the turn begins.
  const Result<std::string> before = render_prefix(record, turn, true);
  if (before.ok() && text.starts_with(*before)) {
    begin = before->size();
    const Result<std::string> through = render_prefix(record, turn + 1, false);
    if (through.ok() && text.starts_with(*through) && through->size() > *begin) end = through->size();
  }
  // A template that prints earlier turns in another way than the last: look for what stands around the turn.
  if (!end) {
    const Result<Around> around = around_turn(record, turn);
    if (around.ok() && !begin && text.starts_with(around->head)) begin = around->head.size();
    if (around.ok() && begin && text.ends_with(around->tail) && text.size() >= *begin + around->tail.size())
      end = text.size() - around->tail.size();
  }
  if (end) return Span{.begin = *begin, .end = *end, .weight = weight_of(record, turn)};
  return invalid_argument(
      "messages[{}]: what the chat template prints for this turn of the assistant cannot be told from the rest; mark "
      "it in the template with {{% generation %}}, or train on the last turn only (mask_history)",
      turn);
}

// A template that knows no tools prints a turn that calls one as an empty turn.
Status Renderer::check_calls(const Record& record, size_t turn, std::string_view printed) const {
  const json::value* calls = record.messages[turn].get_object().if_contains("tool_calls");
  if (calls == nullptr) return Status();
  for (const json::value& call : calls->get_array()) {
    const json::value& name = call.at("function").at("name");
    if (!name.is_string() || printed.find(std::string_view(name.get_string())) != printed.npos) continue;
    return invalid_argument(
        "messages[{}]: the chat template does not print the call of \"{}\", so the model would learn to say nothing; "
        "use a template that knows tools, or give the turn weight 0",
        turn, std::string_view(name.get_string()));
  }
  return Status();
}

Sample Renderer::weigh(const Tokenizer::Encoding& encoding, const std::string& text,
                       const std::vector<Span>& spans) const {
  const std::vector<int32_t>& ids = encoding.ids;
  const size_t num_tokens = ids.size();
  const auto end_of = [&](size_t token) { return token + 1 < num_tokens ? encoding.begins[token + 1] : text.size(); };
  Sample sample;
  sample.ids = ids;
  sample.weights.assign(num_tokens, options_.train_on_prompt ? 1.0f : 0.0f);
  size_t token = 0;
  for (const Span& span : spans) {
    // A token that begins before the span and reaches into it belongs to it, but for special ones, which may have
    // swallowed white space.
    while (token < num_tokens && encoding.begins[token] < span.begin &&
           (end_of(token) <= span.begin || tokenizer_->is_special(ids[token])))
      ++token;
    const size_t first = token;
    while (token < num_tokens && encoding.begins[token] < span.end) ++token;
    size_t last = token;  // behind the span's last
    // The turn ends with its last special token, not with the line break behind it unless the template marks it too; or
    // with the one that follows.
    size_t closed = last;
    while (closed > first && !tokenizer_->is_special(ids[closed - 1])) --closed;
    if (closed > first &&
        is_space(std::string_view(text).substr(end_of(closed - 1), span.end - std::min(span.end, end_of(closed - 1)))))
      last = span.marked ? last : closed;
    else if (last < num_tokens && encoding.begins[last] == span.end && tokenizer_->is_special(ids[last]))
      ++last;
    std::fill(sample.weights.begin() + static_cast<ptrdiff_t>(first),
              sample.weights.begin() + static_cast<ptrdiff_t>(last), span.weight);
    token = std::max(token, last);
  }
  return sample;
}

Result<Sample> Renderer::render_messages(const Record& record) const {
  if (templates_ == nullptr) {
    if (!record.prompt.empty()) return render_plain(record.prompt + record.completion, record.prompt.size());
    return failed_precondition(
        "the model has no chat template, so messages cannot be rendered; use records of prompt and completion");
  }
  LK_ASSIGN_OR_RETURN(const ChatTemplate::Marked marked, render_template(record, record.messages, false));
  std::vector<size_t> turns;
  for (size_t k = 0; k < record.messages.size(); ++k)
    if (record.messages[k].at("role") == "assistant") turns.push_back(k);
  std::vector<Span> spans;
  const auto view_of = [&](const Span& span) {
    return std::string_view(marked.text).substr(span.begin, span.end - span.begin);
  };
  const auto wanted = [&](size_t turn) { return !options_.mask_history || turn == turns.back(); };
  if (!marked.generations.empty()) {
    if (marked.generations.size() != turns.size())
      return invalid_argument(
          "the chat template marks {} generations for {} turns of the assistant; every turn must have one",
          marked.generations.size(), turns.size());
    for (size_t k = 0; k < turns.size(); ++k) {
      const auto [begin, end] = marked.generations[k];
      const float weight = wanted(turns[k]) ? weight_of(record, turns[k]) : 0;
      spans.push_back({.begin = begin, .end = end, .weight = weight, .marked = true});
      if (weight > 0) LK_RETURN_IF_ERROR(check_calls(record, turns[k], view_of(spans.back())));
    }
  } else {
    for (const size_t turn : turns) {
      // Without a loss it need not be found, unless the prompt around it has one.
      if (!wanted(turn) || (weight_of(record, turn) == 0 && !options_.train_on_prompt)) continue;
      LK_ASSIGN_OR_RETURN(const Span span, find_turn(record, turn, marked.text));
      spans.push_back(span);
      if (span.weight > 0) LK_RETURN_IF_ERROR(check_calls(record, turn, view_of(span)));
    }
  }
  LK_ASSIGN_OR_RETURN(const Tokenizer::Encoding encoding, tokenizer_->encode_with_offsets(marked.text, false));
  return weigh(encoding, marked.text, spans);
}

Result<Sample> Renderer::render_plain(const std::string& text, size_t prompt_bytes) const {
  LK_ASSIGN_OR_RETURN(const Tokenizer::Encoding encoding, tokenizer_->encode_with_offsets(text, true));
  Sample sample = weigh(encoding, text, {{.begin = prompt_bytes, .end = text.size(), .weight = 1}});
  if (end_token_ && (sample.ids.empty() || sample.ids.back() != *end_token_)) {
    sample.ids.push_back(*end_token_);
    sample.weights.push_back(1);
  }
  if (end_token_) sample.weights.back() = 1;  // also one of the post-processor's
  return sample;
}

Result<std::optional<Sample>> Renderer::render(const Record& record, const std::string& where) const {
  Result<Sample> rendered = record.kind == Record::Kind::kMessages ? render_messages(record)
                            : record.kind == Record::Kind::kCompletion
                                ? render_plain(record.prompt + record.completion, record.prompt.size())
                                : render_plain(record.text, 0);
  if (!rendered.ok()) return rendered.status().with_context(where);
  Sample& sample = *rendered;
  const auto length = static_cast<int64_t>(sample.ids.size());
  if (options_.max_length > 0 && length > options_.max_length) {
    if (options_.long_samples == LongSamples::kDrop) return std::optional<Sample>();
    if (options_.long_samples == LongSamples::kError)
      return invalid_argument(
          "{}: the sample has {} tokens, max_length is {} (at most block_tokens and the base's positions); give more, "
          "or "
          "set long_samples to truncate or drop",
          where, length, options_.max_length);
    sample.truncated = true;
    sample.ids.resize(static_cast<size_t>(options_.max_length));
    sample.weights.resize(sample.ids.size());
  }
  if (!sample.weights.empty()) sample.weights[0] = 0;  // nothing stands before it that could predict it
  if (std::all_of(sample.weights.begin(), sample.weights.end(), [](float w) { return w == 0; })) {
    if (sample.truncated) return std::optional<Sample>();
    return invalid_argument("{}: no token of the sample has a loss; remove it, or skip such records with skip_bad",
                            where);
  }
  return std::optional<Sample>(std::move(sample));
}

Result<Exercise> Renderer::exercise(const Record& record, const std::string& where) const {
  const bool plain = record.kind == Record::Kind::kCompletion || (templates_ == nullptr && !record.prompt.empty());
  std::string prompt = record.prompt, answer = record.completion;
  if (!plain) {
    size_t turn = record.messages.size();
    while (turn > 0 && record.messages[turn - 1].at("role") != "assistant") --turn;
    if (turn == 0) return unsupported("{}: the record has no answer to compare with", where);
    const json::object& message = record.messages[turn - 1].get_object();
    if (message.contains("tool_calls")) return unsupported("{}: the last turn calls a tool", where);
    if (templates_ == nullptr) return failed_precondition("{}: the model has no chat template", where);
    Result<std::string> rendered = render_prefix(record, turn - 1, true);
    if (!rendered.ok()) return rendered.status().with_context(where);
    prompt = std::move(*rendered);
    answer = content_text(message.at("content"));
  }
  Result<std::vector<int32_t>> ids = tokenizer_->encode(prompt, plain);
  if (!ids.ok()) return ids.status().with_context(where);
  const Result<std::vector<int32_t>> expected = tokenizer_->encode(answer, false);
  if (!expected.ok()) return expected.status().with_context(where);
  constexpr int64_t kRoom = 8;  // for another way to write it, and for the token that ends it
  const auto max_tokens = static_cast<int64_t>(expected->size()) + kRoom;
  return Exercise{.prompt = std::move(*ids), .answer = std::move(answer), .max_tokens = max_tokens};
}

bool Renderer::ends_answer(const Sample& sample) const {
  if (options_.answer_ends.empty() || sample.truncated) return true;
  for (size_t k = sample.ids.size(); k-- > 0;)
    if (sample.weights[k] > 0)
      return std::ranges::find(options_.answer_ends, sample.ids[k]) != options_.answer_ends.end();
  return true;
}

}  // namespace lk
