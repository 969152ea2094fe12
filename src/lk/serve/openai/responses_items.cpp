// SPDX-License-Identifier: Apache-2.0
// Answers of OpenAI's Responses API. Events: platform.openai.com/docs/api-reference/responses-streaming.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "lk/serve/openai/answer_items.h"
#include "lk/serve/openai/json_writer.h"

namespace lk::openai {
namespace {

std::string quoted(std::string_view text) {
  std::string out;
  append_string(out, text);
  return out;
}

struct Item {
  enum class Kind { kThoughts, kText, kCall, kCustomCall } kind;
  std::string id, text;  // of a call: its arguments; of a custom one: its input
  std::string call_id, name;
  std::vector<TokenLogprob> tokens;
};

class ResponsesItems final : public AnswerItems {
 public:
  explicit ResponsesItems(const ItemsHead& head) : head_(head) {}

  void begin(std::string* out, const Completion&) override {
    if (out == nullptr) return;
    event(out, "response.created", "\"response\":" + response("in_progress"));
    event(out, "response.in_progress", "\"response\":" + response("in_progress"));
  }

  void thoughts(std::string* out, std::string_view text) override {
    Item& item = open(out, Item::Kind::kThoughts);
    item.text += text;
    if (out) event(out, "response.reasoning_text.delta", place(true) + ",\"delta\":" + quoted(text));
  }

  void text(std::string* out, std::string_view text, std::span<const TokenLogprob> tokens) override {
    Item& item = open(out, Item::Kind::kText);
    item.text += text;
    if (head_.logprobs) item.tokens.insert(item.tokens.end(), tokens.begin(), tokens.end());
    if (out)
      event(out, "response.output_text.delta",
            place(true) + ",\"delta\":" + quoted(text) + ",\"logprobs\":" + logprobs(tokens));
  }

  void last_tokens(std::span<const TokenLogprob> tokens) override {
    if (!head_.logprobs || items_.empty() || items_.back().kind != Item::Kind::kText) return;
    items_.back().tokens.insert(items_.back().tokens.end(), tokens.begin(), tokens.end());
  }

  void call(std::string* out, const std::string& id, std::string_view name, bool custom) override {
    close(out, "completed");
    items_.push_back({.kind = custom ? Item::Kind::kCustomCall : Item::Kind::kCall,
                      .id = item_id(custom ? "ctc" : "fc", items_.size()),
                      .text = "",
                      .call_id = id,
                      .name = std::string(name),
                      .tokens = {}});
    open_ = true;
    if (out) added(out);
  }

  void arguments(std::string* out, std::string_view piece) override {
    items_.back().text += piece;
    const bool custom = items_.back().kind == Item::Kind::kCustomCall;
    if (out)
      event(out, custom ? "response.custom_tool_call_input.delta" : "response.function_call_arguments.delta",
            place(false) + ",\"delta\":" + quoted(piece));
  }

  void finish(std::string* out, const Completion& completion, const AnswerUsage& usage) override {
    cut_ = completion.finish == FinishReason::kLength;
    if (items_.empty() && !cut_) open(out, Item::Kind::kText);
    close(out, cut_ ? "incomplete" : "completed");
    usage_ = usage;
    ended_ = true;
    if (out)
      event(out, cut_ ? "response.incomplete" : "response.completed",
            "\"response\":" + response(cut_ ? "incomplete" : "completed"));
  }

  std::string error(const ApiError& error) override {
    std::string out;
    event(&out, "response.failed", "\"response\":" + response("failed", error.message));
    return out;
  }

  std::string whole() const override { return response(cut_ ? "incomplete" : "completed"); }
  int64_t num_events() const override { return num_events_; }
  void count_from(int64_t events) override { num_events_ = events; }

 private:
  void event(std::string* out, std::string_view type, std::string_view members) {
    if (out == nullptr) return;
    fmt::format_to(std::back_inserter(*out), "event: {0}\ndata: {{\"type\":\"{0}\",\"sequence_number\":{1},{2}}}\n\n",
                   type, num_events_++, members);
  }

  std::string item_id(std::string_view prefix, size_t index) const {
    return fmt::format("{}_{}_{}", prefix, std::string_view(head_.id).substr(head_.id.find('_') + 1), index);
  }

  // Where what comes belongs.
  std::string place(bool in_content) const {
    return fmt::format("\"item_id\":\"{}\",\"output_index\":{}{}", items_.back().id, items_.size() - 1,
                       in_content ? ",\"content_index\":0" : "");
  }

  std::string logprobs(std::span<const TokenLogprob> tokens) const {
    if (!head_.logprobs) return "[]";
    std::string out;
    append_chat_logprobs(out, tokens, head_.names);
    return out;
  }

  std::string part(const Item& item) const {
    if (item.kind == Item::Kind::kThoughts) return "{\"type\":\"reasoning_text\",\"text\":" + quoted(item.text) + "}";
    return "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":" + logprobs(span_of(item.tokens)) +
           ",\"text\":" + quoted(item.text) + "}";
  }

  std::string object(const Item& item, std::string_view status) const {
    // What is still empty has no part yet.
    const std::string parts = status == "in_progress" ? "" : part(item);
    switch (item.kind) {
      case Item::Kind::kThoughts:
        return fmt::format(
            "{{\"id\":\"{}\",\"type\":\"reasoning\",\"summary\":[],\"content\":[{}],\"encrypted_content\":null,"
            "\"status\":\"{}\"}}",
            item.id, parts, status);
      case Item::Kind::kText:
        return fmt::format(
            "{{\"id\":\"{}\",\"type\":\"message\",\"status\":\"{}\",\"role\":\"assistant\",\"content\":[{}]}}", item.id,
            status, parts);
      case Item::Kind::kCall:
        return fmt::format(
            "{{\"id\":\"{}\",\"type\":\"function_call\",\"status\":\"{}\",\"call_id\":\"{}\",\"name\":{},"
            "\"arguments\":{}}}",
            item.id, status, item.call_id, quoted(item.name), quoted(item.text));
      case Item::Kind::kCustomCall:
        return fmt::format(
            "{{\"id\":\"{}\",\"type\":\"custom_tool_call\",\"status\":\"{}\",\"call_id\":\"{}\",\"name\":{},"
            "\"input\":{}}}",
            item.id, status, item.call_id, quoted(item.name), quoted(item.text));
    }
    return "";
  }

  void added(std::string* out) {
    event(out, "response.output_item.added",
          fmt::format("\"output_index\":{},\"item\":{}", items_.size() - 1, object(items_.back(), "in_progress")));
  }

  Item& open(std::string* out, Item::Kind kind) {
    if (open_ && items_.back().kind == kind) return items_.back();
    close(out, "completed");
    items_.push_back({.kind = kind,
                      .id = item_id(kind == Item::Kind::kText ? "msg" : "rs", items_.size()),
                      .text = "",
                      .call_id = "",
                      .name = "",
                      .tokens = {}});
    open_ = true;
    if (out) {
      added(out);
      event(out, "response.content_part.added", place(true) + ",\"part\":" + part(items_.back()));
    }
    return items_.back();
  }

  void close(std::string* out, std::string_view status) {
    if (!std::exchange(open_, false) || out == nullptr) return;
    const Item& item = items_.back();
    if (item.kind == Item::Kind::kCustomCall) {
      event(out, "response.custom_tool_call_input.done", place(false) + ",\"input\":" + quoted(item.text));
    } else if (item.kind == Item::Kind::kCall) {
      event(out, "response.function_call_arguments.done",
            place(false) + ",\"name\":" + quoted(item.name) + ",\"arguments\":" + quoted(item.text));
    } else {
      const bool is_text = item.kind == Item::Kind::kText;
      event(out, is_text ? "response.output_text.done" : "response.reasoning_text.done",
            place(true) + ",\"text\":" + quoted(item.text) +
                (is_text ? ",\"logprobs\":" + logprobs(span_of(item.tokens)) : ""));
      event(out, "response.content_part.done", place(true) + ",\"part\":" + part(item));
    }
    event(out, "response.output_item.done",
          fmt::format("\"output_index\":{},\"item\":{}", items_.size() - 1, object(item, status)));
  }

  std::string response(std::string_view status, std::string_view failure = {}) const {
    std::string out = fmt::format("{{\"id\":\"{}\",\"object\":\"response\",\"created_at\":{},\"status\":\"{}\",",
                                  head_.id, head_.created, status);
    out += failure.empty() ? "\"error\":null,"
                           : "\"error\":{\"code\":\"server_error\",\"message\":" + quoted(failure) + "},";
    out += status == "incomplete" ? "\"incomplete_details\":{\"reason\":\"max_output_tokens\"},"
                                  : "\"incomplete_details\":null,";
    out += "\"model\":" + quoted(head_.model) + ",\"output\":[";
    for (size_t i = 0; i < items_.size() && status != "in_progress"; ++i) {
      if (i > 0) out += ',';
      const bool last = i + 1 == items_.size();
      out += object(items_[i], last && status != "completed" ? "incomplete" : "completed");
    }
    out += "]," + head_.repeated + ",\"usage\":";
    if (!ended_) return out + "null}";
    fmt::format_to(std::back_inserter(out),
                   "{{\"input_tokens\":{},\"input_tokens_details\":{{\"cached_tokens\":{}}},\"output_tokens\":{},"
                   "\"output_tokens_details\":{{\"reasoning_tokens\":{}}},\"total_tokens\":{}}}}}",
                   usage_.prompt_tokens, usage_.cached_tokens, usage_.completion_tokens,
                   std::max<int64_t>(0, usage_.reasoning_tokens), usage_.prompt_tokens + usage_.completion_tokens);
    return out;
  }

  const ItemsHead head_;
  std::vector<Item> items_;
  AnswerUsage usage_;
  int64_t num_events_ = 0;
  bool open_ = false, cut_ = false, ended_ = false;
};

}  // namespace

std::unique_ptr<AnswerItems> responses_items(const ItemsHead& head) { return std::make_unique<ResponsesItems>(head); }

}  // namespace lk::openai
