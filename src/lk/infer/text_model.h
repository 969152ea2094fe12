// SPDX-License-Identifier: Apache-2.0
// TextModel: what turns a text request into a sequence for the engine: the text side of the base or of an adapter,
// stop tokens, limits. Immutable after load; any thread may use it at the same time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/infer/text_sequence.h"
#include "lk/infer/text_side.h"
#include "lk/io/model_config.h"

namespace lk {

class TextModel {
 public:
  // `directory` empty: dummy weights, no text. `context` 0 = the model's own. `pooling` absent: see load_pooling().
  static Result<std::shared_ptr<const TextModel>> load(const std::string& directory, const ModelConfig& config,
                                                       int64_t context, std::optional<Pooling> pooling = {});

  const TextSide& base() const { return *sides_->base(); }
  const std::shared_ptr<const TextSide>& shared_base() const { return sides_->base(); }
  // Of an adapter's directory: the base's where that brings nothing of its own. See TextSides::of_adapter.
  Result<std::shared_ptr<const TextSide>> load_side(const std::string& directory,
                                                    std::optional<int64_t> own_vocab_size = {}) const {
    return sides_->of_adapter(directory, own_vocab_size);
  }

  // Fills a new sequence, all but its id and adapter. kInvalidArgument with the field and the reason. `side`: of the
  // adapter that the request names, null for the base's. `field` gets what a failure is about: "prompt" (whatever it
  // was given as), another field, or "".
  Status prepare(TextRequest request, TextSequence& sequence, const TextSide* side = nullptr,
                 std::string_view* field = nullptr) const;
  // The tokens of its prompt. Once there are more than twice `enough` it may stop: what comes then is their beginning
  // (0 = never). So a text that is far too long costs no more than one that is too long.
  Result<std::vector<int32_t>> prompt_tokens(const TextRequest& request, const TextSide* side = nullptr,
                                             std::string_view* field = nullptr, int64_t enough = 0) const;

  // Of a request's answer that is complete, and was made elsewhere: how many of its tokens were thoughts.
  int64_t count_reasoning(TextRequest request, std::vector<int32_t> output, const TextSide& side) const;

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return base().tokenizer; }  // null with dummy weights
  const ModelConfig& config() const { return config_; }
  int64_t context() const { return context_; }

 private:
  TextModel() = default;
  Status check(const TextRequest& request, const TextSide& side, std::string_view& field) const;
  ThinkingStart thinking_start_of(const TextRequest& text, const std::vector<int32_t>& prompt,
                                  const TextSide& side) const;
  Status check_output_so_far(const Request& request, int64_t vocab_size) const;
  Result<std::vector<int32_t>> encode(const Tokenizer& tokenizer, std::string_view text, bool add_special_tokens,
                                      int64_t enough) const;

  ModelConfig config_;
  std::unique_ptr<const TextSides> sides_;
  int64_t context_ = 0;
  Pooling pooling_ = Pooling::kMean;  // of embeddings
};

// The text of a request's messages, as its template writes it. kInvalidArgument when the template would drop tools or
// the text that is to be continued.
Result<std::string> render_messages(const TextRequest& request, const TextSide& side,
                                    std::string_view* field = nullptr);

// Has the thoughts of a request's answer told from it. Their marks show in the text then, special tokens or not.
// `tokenizer` may be null.
void part_thoughts(TextRequest& text, ReasoningFormat format, const Tokenizer* tokenizer);

// Range checks of every sampling field; the message names the field, its value and the range.
Status validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace lk
