// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_side.h"

#include <algorithm>

#include "lk/base/file.h"
#include "lk/base/plain_text.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {

constexpr size_t kMaxTokenizerBytes = size_t{256} << 20;
constexpr size_t kAdapterTokenizerBytes = size_t{32} << 20;  // or twice the base's
constexpr std::string_view kMark = "|lorikeet marks the answer|";

std::string digest_of(std::string_view bytes) {
  Sha256 sha;
  sha.update(bytes.data(), bytes.size());
  return to_hex(sha.finish());
}

Result<std::string> digest_of_files(const std::string& directory) {
  std::vector<std::string> paths;
  for (const char* name : kTextFiles)
    if (const std::string path = join_path(directory, name); file_exists(path)) paths.push_back(path);
  for (std::string& path : list_chat_templates(directory)) paths.push_back(std::move(path));
  Sha256 sha;
  for (const std::string& path : paths) {
    LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(path, kMaxTokenizerBytes));
    const std::string head = fmt::format("{}:{};", path.substr(directory.size()), bytes.size());
    sha.update(head.data(), head.size());
    sha.update(bytes.data(), bytes.size());
  }
  return to_hex(sha.finish());
}

// Tokens that a vocabulary keeps free for those who tune the model, who then give them names.
bool is_spare(std::string_view token) {
  const auto has = [&](std::string_view word) { return token.find(word) != token.npos; };
  return has("reserved") || has("unused") || has("placeholder") || has("dummy");
}

// An adapter's token ids must mean what they mean to the base, and new ones need a row.
Status check_vocabulary(const Tokenizer& own, const Tokenizer& base, int64_t rows, const TokenizerConfig& config,
                        std::vector<std::string>& warnings) {
  const TokenizerConfig::Named* pad = config.find("pad_token");
  for (int64_t k = 0; k < own.vocab_size(); ++k) {
    const auto id = static_cast<int32_t>(k);
    const std::optional<std::string> here = own.id_to_token(id), there = base.id_to_token(id);
    if (!here || here == there) continue;
    if (there && !is_spare(*there))
      return invalid_argument(
          "the adapter's tokenizer has \"{}\" as token {}, which is \"{}\" to the base model: it was "
          "made for another vocabulary",
          printable(*here, 64), id, printable(*there, 64));
    const std::optional<int32_t> elsewhere = base.token_to_id(*here);
    if (elsewhere && own.id_to_token(*elsewhere) != here)
      return invalid_argument("the adapter's tokenizer has \"{}\" as token {}, which is {} to the base model",
                              printable(*here, 64), id, *elsewhere);
    if (k < rows) continue;
    // Padding stands in no prompt.
    if (pad == nullptr || pad->content != *here)
      return invalid_argument(
          "the adapter's tokenizer adds \"{}\" as token {}, and the base model has {} rows: it needs "
          "a larger base, or a tokenizer that uses the base's spare tokens",
          printable(*here, 64), id, rows);
    warnings.push_back(
        fmt::format("the padding token \"{}\" = {} has no row in the base model, so no prompt may name it",
                    printable(*here, 64), id));
  }
  return {};
}

// The special token that a template writes behind an answer: a model that was tuned with it ends so.
std::optional<int32_t> turn_end(const ChatTemplate& chat, const Tokenizer& tokenizer) {
  const boost::json::array messages{{{"role", "user"}, {"content", "question"}},
                                    {{"role", "assistant"}, {"content", boost::json::string_view(kMark)}}};
  const Result<std::string> text = chat.render({{"messages", messages}});
  const size_t at = text.ok() ? text->rfind(kMark) : std::string::npos;
  if (at == std::string::npos) return std::nullopt;
  std::string_view tail = std::string_view(*text).substr(at + kMark.size());
  tail.remove_prefix(std::min(tail.find_first_not_of(" \t\r\n"), tail.size()));
  const Result<std::vector<int32_t>> ids = tokenizer.encode(tail, false);
  if (!ids.ok() || ids->empty() || !tokenizer.is_special(ids->front())) return std::nullopt;
  return ids->front();
}

void add_end(std::vector<int32_t>& ends, std::optional<int32_t> token) {
  if (token && std::ranges::count(ends, *token) == 0) ends.push_back(*token);
}

}  // namespace

std::shared_ptr<const TokenVocabulary> TextSide::vocabulary() const {
  if (!tokenizer) return nullptr;
  const std::shared_ptr<const TokenVocabulary> shared = base ? base->vocabulary() : nullptr;
  if (shared && tokenizer == base->tokenizer && end_tokens == base->end_tokens && vocab_size == base->vocab_size)
    return shared;
  std::lock_guard lock(mutex_);
  if (!vocabulary_) vocabulary_ = TokenVocabulary::create(*tokenizer, vocab_size, end_tokens, shared);
  return vocabulary_;
}

Result<std::unique_ptr<TextSides>> TextSides::open(const std::string& directory, const ModelConfig& config) {
  std::unique_ptr<TextSides> self(new TextSides());
  auto base = std::make_shared<TextSide>();
  self->directory_ = directory;
  self->model_type_ = config.model_type;
  self->vocab_size_ = base->vocab_size = config.vocab_size;
  if (!directory.empty()) {
    LK_ASSIGN_OR_RETURN(base->generation, load_generation_defaults(directory));
    base->warnings = base->generation.warnings;
    const std::string path = join_path(directory, kTokenizerFile);
    if (file_exists(path)) {
      LK_ASSIGN_OR_RETURN(self->config_, TokenizerConfig::load(directory));
      LK_ASSIGN_OR_RETURN(const std::string file, read_file(path, kMaxTokenizerBytes));
      self->file_digest_ = digest_of(file);
      self->file_bytes_ = file.size();
      LK_ASSIGN_OR_RETURN(base->tokenizer, Tokenizer::parse(file, path, self->config_));
      LK_ASSIGN_OR_RETURN(base->templates, ChatTemplates::parse(self->config_, config.model_type));
      self->config_.templates.clear();
    }
  }
  const std::vector<int64_t>& ends =
      base->generation.eos_token_ids.empty() ? config.eos_token_ids : base->generation.eos_token_ids;
  base->end_tokens.assign(ends.begin(), ends.end());
  self->base_ = std::move(base);
  return self;
}

Result<std::shared_ptr<const Tokenizer>> TextSides::tokenizer_of(const std::string& directory,
                                                                 const TokenizerConfig& own,
                                                                 const TokenizerConfig& both) const {
  std::string path = join_path(directory, kTokenizerFile);
  const bool own_file = file_exists(path);
  if (!own_file && (!own.names_tokens() || both.token_key() == config_.token_key())) return base_->tokenizer;
  if (!own_file) path = join_path(directory_, kTokenizerFile);
  LK_ASSIGN_OR_RETURN(const std::string file, read_file(path, std::max(kAdapterTokenizerBytes, 2 * file_bytes_)));
  const std::string digest = digest_of(file);
  if (digest == file_digest_ && both.token_key() == config_.token_key()) return base_->tokenizer;
  const std::string key = digest + both.token_key();
  {
    std::lock_guard lock(mutex_);
    const auto known = tokenizers_.find(key);
    if (known != tokenizers_.end())
      if (std::shared_ptr<const Tokenizer> tokenizer = known->second.lock()) return tokenizer;
  }
  LK_ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer,
                      Tokenizer::parse(file, path, both, base_->tokenizer.get()));
  if (tokenizer->same_as(*base_->tokenizer)) return base_->tokenizer;
  std::lock_guard lock(mutex_);
  std::erase_if(tokenizers_, [](const auto& entry) { return entry.second.expired(); });
  tokenizers_[key] = tokenizer;
  return tokenizer;
}

Result<std::shared_ptr<const TextSide>> TextSides::of_adapter(const std::string& directory,
                                                              std::optional<int64_t> own_vocab_size) const {
  const int64_t rows = own_vocab_size.value_or(vocab_size_);
  if (!base_->tokenizer && rows == vocab_size_) return base_;
  LK_ASSIGN_OR_RETURN(const TokenizerConfig own, TokenizerConfig::load(directory));
  const TokenizerConfig both = own.over(config_);
  auto side = std::make_shared<TextSide>();
  side->base = base_;
  side->vocab_size = rows;
  if (!base_->tokenizer) {  // token ids only
    side->generation = base_->generation;
    side->end_tokens = base_->end_tokens;
    std::erase_if(side->end_tokens, [&](int32_t token) { return token >= rows; });
    return std::shared_ptr<const TextSide>(std::move(side));
  }
  LK_ASSIGN_OR_RETURN(side->tokenizer, tokenizer_of(directory, own, both));
  if (side->tokenizer != base_->tokenizer)
    LK_RETURN_IF_ERROR(check_vocabulary(*side->tokenizer, *base_->tokenizer, rows, both, side->warnings));
  if (!own.templates.empty()) {
    side->own_templates = true;
    LK_ASSIGN_OR_RETURN(side->templates, ChatTemplates::parse(both, model_type_));
  } else if (base_->templates && both.variables() != config_.variables()) {
    side->templates = base_->templates->with_variables(both.variables());
  } else {
    side->templates = base_->templates;
  }
  LK_ASSIGN_OR_RETURN(const GenerationDefaults generation, load_generation_defaults(directory));
  side->generation = generation.over(base_->generation);
  side->warnings.insert(side->warnings.end(), generation.warnings.begin(), generation.warnings.end());

  // What ends an answer: as its generation_config.json says, and the tokens that its tokenizer and its templates end a
  // turn with, where they are other than the base's.
  if (!generation.eos_token_ids.empty())
    side->end_tokens.assign(generation.eos_token_ids.begin(), generation.eos_token_ids.end());
  else
    side->end_tokens = base_->end_tokens;
  for (const int32_t token : side->end_tokens)
    if (token >= rows && !generation.eos_token_ids.empty())
      return invalid_argument("{}: eos_token_id {} is outside the {} vocabulary of {}",
                              join_path(directory, kGenerationConfigFile), token,
                              own_vocab_size ? "adapter's" : "base's", rows);
  const TokenizerConfig::Named *eos = both.find("eos_token"), *base_eos = config_.find("eos_token");
  if (eos != nullptr && (base_eos == nullptr || eos->content != base_eos->content))
    add_end(side->end_tokens, side->tokenizer->token_to_id(eos->content));
  if (side->own_templates)
    for (const ChatTemplates::Entry& entry : side->templates->entries())
      add_end(side->end_tokens, turn_end(*entry.body, *side->tokenizer));
  std::erase_if(side->end_tokens, [&](int32_t token) { return token >= rows; });

  if (rows == vocab_size_ && side->tokenizer == base_->tokenizer && side->templates == base_->templates &&
      side->warnings.empty() && side->generation == base_->generation && side->end_tokens == base_->end_tokens)
    return base_;
  LK_ASSIGN_OR_RETURN(side->digest, digest_of_files(directory));
  return std::shared_ptr<const TextSide>(std::move(side));
}

}  // namespace lk
