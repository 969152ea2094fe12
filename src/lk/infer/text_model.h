// SPDX-License-Identifier: Apache-2.0
// TextModel: what turns a text request into a sequence for the engine: tokenizer, chat template, stop tokens, limits.
// Immutable after load; any thread may use it at the same time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lk/infer/generation_config.h"
#include "lk/infer/text_sequence.h"
#include "lk/io/model_config.h"
#include "lk/text/chat_template.h"

namespace lk {

class TextModel {
 public:
  // `directory` empty: dummy weights, no text. `context` 0 = the model's own. `pooling` absent: see load_pooling().
  static Result<std::shared_ptr<const TextModel>> load(const std::string& directory, const ModelConfig& config,
                                                       int64_t context, std::optional<Pooling> pooling = {});

  // Fills a new sequence, all but its id and adapter. kInvalidArgument with the field and the reason. `own_template`
  // replaces the model's chat template (an adapter's). `field` gets what a failure is about: "prompt" (whatever it was
  // given as), another field, or "".
  Status prepare(TextRequest request, TextSequence& sequence, const ChatTemplate* own_template = nullptr,
                 std::string_view* field = nullptr) const;
  // The tokens of its prompt. Once there are more than twice `enough` it may stop: what comes then is their beginning
  // (0 = never). So a text that is far too long costs no more than one that is too long.
  Result<std::vector<int32_t>> prompt_tokens(const TextRequest& request, const ChatTemplate* own_template = nullptr,
                                             int64_t enough = 0) const;

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }  // null with dummy weights
  const std::shared_ptr<const ChatTemplate>& chat_template() const { return chat_template_; }
  const GenerationDefaults& generation() const { return generation_; }
  const ModelConfig& config() const { return config_; }
  int64_t context() const { return context_; }
  const std::vector<int32_t>& end_tokens() const { return end_tokens_; }

 private:
  TextModel() = default;
  Status check(const TextRequest& request, std::string_view& field) const;
  Status check_output_so_far(const Request& request) const;
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens, int64_t enough) const;
  Result<std::string> render(const TextRequest& request, const ChatTemplate* own_template) const;

  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  GenerationDefaults generation_;
  std::vector<int32_t> end_tokens_;
  int64_t context_ = 0;
  Pooling pooling_ = Pooling::kMean;  // of embeddings
};

// Range checks of every sampling field; the message names the field, its value and the range.
Status validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace lk
