// SPDX-License-Identifier: Apache-2.0
// TextSide: everything that stands between text and tokens for one model: tokenizer, chat templates and how they have
// the model call tools, what ends an answer, what requests that say nothing get. The base has one; an adapter whose
// directory says something else has its own, over the base's vocabulary. A request takes all of it from one side.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lk/grammar/grammar.h"
#include "lk/infer/generation_config.h"
#include "lk/io/model_config.h"
#include "lk/text/chat_templates.h"
#include "lk/text/tokenizer.h"

namespace lk {

// Files of an adapter's directory that make a text side, beside those of its additional_chat_templates.
inline constexpr const char* kTextFiles[] = {kTokenizerFile,   kTokenizerConfigFile, kSpecialTokensFile,
                                             kAddedTokensFile, kChatTemplateFile,    kGenerationConfigFile};

// Immutable once made; any thread may use it at the same time.
struct TextSide {
  std::shared_ptr<const Tokenizer> tokenizer;      // null: token ids only (dummy weights, or no tokenizer.json)
  std::shared_ptr<const ChatTemplates> templates;  // null: prompts only
  bool own_templates = false;                      // an adapter's, not the base's
  GenerationDefaults generation;
  std::vector<int32_t> end_tokens;    // that end an answer
  std::vector<std::string> warnings;  // about the files, for whoever loads them
  std::string digest;                 // of the files that an adapter's was made of; "" for the base's

  // What structured output walks: made when it is first asked for, of the base's parts where they are the same. Null
  // without a tokenizer.
  std::shared_ptr<const TokenVocabulary> vocabulary() const;

  std::shared_ptr<const TextSide> base;  // of an adapter's; null: this is the base's
  int64_t vocab_size = 0;                // rows of the model's embedding, or of the adapter's own one

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const TokenVocabulary> vocabulary_;
};

// Makes the text sides of one base and its adapters. Thread safe.
class TextSides {
 public:
  // `directory` empty: no text.
  static Result<std::unique_ptr<TextSides>> open(const std::string& directory, const ModelConfig& config);

  const std::shared_ptr<const TextSide>& base() const { return base_; }
  // The base's when the adapter's directory brings nothing of its own. kInvalidArgument for what contradicts the base's
  // vocabulary, kDataLoss and kUnsupported for files that cannot be read, each with the file and the reason.
  // `own_vocab_size`: Adapter's.
  Result<std::shared_ptr<const TextSide>> of_adapter(const std::string& directory,
                                                     std::optional<int64_t> own_vocab_size = {}) const;

 private:
  TextSides() = default;
  Result<std::shared_ptr<const Tokenizer>> tokenizer_of(const std::string& directory, const TokenizerConfig& own,
                                                        const TokenizerConfig& both) const;

  std::string directory_, model_type_;
  int64_t vocab_size_ = 0;
  std::string file_digest_;  // of the base's tokenizer.json
  size_t file_bytes_ = 0;
  TokenizerConfig config_;
  std::shared_ptr<const TextSide> base_;
  mutable std::mutex mutex_;
  // Of adapters, by the digest of what they are made of: many adapters of one trainer bring the same one.
  mutable std::unordered_map<std::string, std::weak_ptr<const Tokenizer>> tokenizers_;
};

}  // namespace lk
