// SPDX-License-Identifier: Apache-2.0
// Record -> token ids with a loss weight each. Messages go through the chat template once and the tokenizer once; which
// tokens are the assistant's is found by {% generation %} marks of the template, or by rendering prefixes of the
// conversation. The assistant's tokens include the one that ends its turn.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lk/dataset/record.h"
#include "lk/text/chat_templates.h"
#include "lk/text/tokenizer.h"

namespace lk {

struct Sample {
  std::vector<int32_t> ids;
  std::vector<float> weights;  // of each token as the one to predict; 0 = no loss. The first is always 0
  bool truncated = false;
  int64_t record = -1;  // its number in the file
};

enum class LongSamples { kError, kTruncate, kDrop };

struct RenderOptions {
  int64_t max_length = 0;  // tokens; 0 = no limit
  LongSamples long_samples = LongSamples::kError;
  bool train_on_prompt = false;
  bool mask_history = false;  // only the last turn of the assistant has a loss
  // Seconds since 1970: what a template that asks for the date is told, the same for all records and after a
  // resumption. 0: 2024-07-26, the day Llama 3.1's template names when it cannot ask.
  int64_t now_unix = 0;
  std::vector<int32_t> answer_ends;  // tokens behind which a server stops; empty: not known

  auto operator<=>(const RenderOptions&) const = default;
};

// A record as a question to a model: what it would have been given, and the answer it should give.
struct Exercise {
  std::vector<int32_t> prompt;
  std::string answer;
  int64_t max_tokens = 0;  // that a wrong answer may take before it counts as one
  bool operator==(const Exercise&) const = default;
};

// Thread safety: immutable.
class Renderer {
 public:
  // `templates` may be null: then messages are refused, but for alpaca records without history, which get the
  // prompt of Stanford Alpaca. `end_token` closes completions and texts.
  Renderer(std::shared_ptr<const Tokenizer> tokenizer, std::shared_ptr<const ChatTemplates> templates,
           std::optional<int32_t> end_token, const RenderOptions& options)
      : tokenizer_(std::move(tokenizer)), templates_(std::move(templates)), end_token_(end_token), options_(options) {}

  // Nothing: too long and dropped, or truncated to where no token has a loss. A sample without any loss is an error.
  Result<std::optional<Sample>> render(const Record& record, const std::string& where) const;

  // The last turn of the assistant, or the completion. kUnsupported for texts and for turns that call tools.
  Result<Exercise> exercise(const Record& record, const std::string& where) const;

  // Whether what is learnt ends with a token that ends an answer. True of what was cut off, and when nobody knows.
  bool ends_answer(const Sample& sample) const;

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const RenderOptions& options() const { return options_; }

 private:
  struct Span {
    size_t begin, end;  // bytes of the text
    float weight;
    bool marked = false;  // by the template itself
  };
  struct Around {
    std::string head, tail;
  };
  // How much of the loss a message has.
  float weight_of(const Record& record, size_t turn) const;
  // As a server would render them: the same template of the model's, the same variables.
  Result<ChatTemplate::Marked> render_template(const Record& record, boost::json::array messages,
                                               bool generation_prompt) const;
  Result<Sample> render_messages(const Record& record) const;
  Result<Sample> render_plain(const std::string& text, size_t prompt_bytes) const;
  Result<std::string> render_prefix(const Record& record, size_t num_messages, bool generation_prompt) const;
  Result<Around> around_turn(const Record& record, size_t turn) const;
  Status check_calls(const Record& record, size_t turn, std::string_view printed) const;
  Result<Span> find_turn(const Record& record, size_t turn, const std::string& text) const;
  Sample weigh(const Tokenizer::Encoding& encoding, const std::string& text, const std::vector<Span>& spans) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplates> templates_;
  std::optional<int32_t> end_token_;
  RenderOptions options_;
};

}  // namespace lk
