// SPDX-License-Identifier: Apache-2.0
// Answers of Anthropic's Messages API. Events: docs.anthropic.com/en/docs/build-with-claude/streaming.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "lk/base/json_reader.h"
#include "lk/base/json_text.h"
#include "lk/serve/openai/answer_items.h"
#include "lk/serve/openai/json_writer.h"

namespace lk::openai {
namespace {

std::string quoted(std::string_view text) {
  std::string out;
  append_string(out, text);
  return out;
}

struct Block {
  enum class Kind { kThoughts, kText, kUse } kind;
  std::string text;  // of a tool's use: its input
  std::string id, name;
};

class MessagesItems final : public AnswerItems {
 public:
  explicit MessagesItems(const ItemsHead& head) : head_(head) {}

  void begin(std::string* out, const Completion& prompt) override {
    usage_.prompt_tokens = prompt.prompt_tokens;
    usage_.cached_tokens = prompt.cached_tokens;
    if (out == nullptr) return;
    event(out, "message_start", ",\"message\":" + message());
    event(out, "ping", "");
  }

  void thoughts(std::string* out, std::string_view text) override {
    open(out, Block::Kind::kThoughts).text += text;
    if (out) delta(out, "{\"type\":\"thinking_delta\",\"thinking\":" + quoted(text) + "}");
  }

  void text(std::string* out, std::string_view text, std::span<const TokenLogprob>) override {
    open(out, Block::Kind::kText).text += text;
    if (out) delta(out, "{\"type\":\"text_delta\",\"text\":" + quoted(text) + "}");
  }

  void call(std::string* out, const std::string& id, std::string_view name, bool) override {
    close(out);
    blocks_.push_back({.kind = Block::Kind::kUse, .text = "", .id = id, .name = std::string(name)});
    started(out);
  }

  void arguments(std::string* out, std::string_view piece) override {
    blocks_.back().text += piece;
    if (out) delta(out, "{\"type\":\"input_json_delta\",\"partial_json\":" + quoted(piece) + "}");
  }

  void finish(std::string* out, const Completion& completion, const AnswerUsage& usage) override {
    close(out);
    usage_ = usage;
    cut_ = completion.finish == FinishReason::kLength;
    stop_ = stop_of(completion);
    if (out == nullptr) return;
    event(out, "message_delta", ",\"delta\":{" + stop_ + "}," + usage_json());
    event(out, "message_stop", "");
  }

  std::string error(const ApiError& error) override {
    return error_events(Dialect::kAnthropic, error.status, words_of(error));
  }

  std::string whole() const override { return message(); }

 private:
  static void event(std::string* out, std::string_view type, std::string_view members) {
    if (out) fmt::format_to(std::back_inserter(*out), "event: {0}\ndata: {{\"type\":\"{0}\"{1}}}\n\n", type, members);
  }
  void delta(std::string* out, std::string_view what) const {
    event(out, "content_block_delta", fmt::format(",\"index\":{},\"delta\":{}", blocks_.size() - 1, what));
  }

  std::string stop_of(const Completion& completion) const {
    const auto because = [](std::string_view reason, const std::string& sequence) {
      return fmt::format("\"stop_reason\":\"{}\",\"stop_sequence\":{}", reason, sequence);
    };
    if (cut_)
      return because(usage_.completion_tokens < head_.max_tokens ? "model_context_window_exceeded" : "max_tokens",
                     "null");
    if (std::ranges::find(blocks_, Block::Kind::kUse, &Block::kind) != blocks_.end())
      return because("tool_use", "null");
    if (completion.stop_string) return because("stop_sequence", quoted(*completion.stop_string));
    return because("end_turn", "null");
  }

  // What came from the cache does not count as input.
  std::string usage_json() const {
    std::string out = fmt::format(
        "\"usage\":{{\"input_tokens\":{},\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":{},"
        "\"output_tokens\":{}",
        usage_.prompt_tokens - usage_.cached_tokens, usage_.cached_tokens, usage_.completion_tokens);
    if (usage_.reasoning_tokens >= 0)
      fmt::format_to(std::back_inserter(out), ",\"output_tokens_details\":{{\"thinking_tokens\":{}}}",
                     usage_.reasoning_tokens);
    return out + "}";
  }

  // What a call was given: an object. Of one that was cut off nothing is known for sure; what is no object otherwise
  // stays visible, under the name that Anthropic recommends for it.
  std::string input_of(const Block& block, bool is_last) const {
    const Result<boost::json::value> input = read_json(block.text);
    if (input.ok() && input->is_object()) return json_text(*input);
    if (block.text.find_first_not_of(" \t\r\n") == std::string::npos || (cut_ && is_last)) return "{}";
    return "{\"INVALID_JSON\":" + quoted(block.text) + "}";
  }

  std::string object(const Block& block, bool is_empty, bool is_last) const {
    switch (block.kind) {
      case Block::Kind::kThoughts:
        return fmt::format("{{\"type\":\"thinking\",\"thinking\":{},\"signature\":\"\"}}", quoted(block.text));
      case Block::Kind::kText:
        return fmt::format("{{\"type\":\"text\",\"text\":{}}}", quoted(block.text));
      case Block::Kind::kUse:
        return fmt::format("{{\"type\":\"tool_use\",\"id\":\"{}\",\"name\":{},\"input\":{}}}", block.id,
                           quoted(block.name), is_empty ? "{}" : input_of(block, is_last));
    }
    return "";
  }

  void started(std::string* out) {
    open_ = true;
    if (out)
      event(out, "content_block_start",
            fmt::format(",\"index\":{},\"content_block\":{}", blocks_.size() - 1, object(blocks_.back(), true, true)));
  }

  Block& open(std::string* out, Block::Kind kind) {
    if (open_ && blocks_.back().kind == kind) return blocks_.back();
    close(out);
    blocks_.push_back({.kind = kind, .text = "", .id = "", .name = ""});
    started(out);
    return blocks_.back();
  }

  void close(std::string* out) {
    if (std::exchange(open_, false) && out)
      event(out, "content_block_stop", fmt::format(",\"index\":{}", blocks_.size() - 1));
  }

  std::string message() const {
    std::string out = "{\"id\":" + quoted(head_.id) +
                      ",\"type\":\"message\",\"role\":\"assistant\",\"model\":" + quoted(head_.model) +
                      ",\"content\":[";
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (i > 0) out += ',';
      out += object(blocks_[i], false, i + 1 == blocks_.size());
    }
    return out + "]," + stop_ + "," + usage_json() + "}";
  }

  const ItemsHead head_;
  std::vector<Block> blocks_;
  AnswerUsage usage_;
  std::string stop_ = "\"stop_reason\":null,\"stop_sequence\":null";
  bool open_ = false, cut_ = false;
};

}  // namespace

std::unique_ptr<AnswerItems> messages_items(const ItemsHead& head) { return std::make_unique<MessagesItems>(head); }

}  // namespace lk::openai
