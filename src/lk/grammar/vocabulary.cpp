// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/vocabulary.h"

#include <algorithm>

namespace lk {
namespace grammar {

TrieVocabulary::TrieVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens)
    : tokens_(std::move(tokens)), end_tokens_(std::move(end_tokens)) {
  std::sort(end_tokens_.begin(), end_tokens_.end());
  std::erase_if(end_tokens_, [&](int32_t id) { return id < 0 || id >= size(); });
  end_tokens_.erase(std::unique(end_tokens_.begin(), end_tokens_.end()), end_tokens_.end());
  for (const int32_t id : end_tokens_)
    tokens_[static_cast<size_t>(id)].clear();  // an end token ends, whatever its text is
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].size() > kMaxTokenBytes) tokens_[id].clear();
    if (!tokens_[id].empty()) order_.push_back(static_cast<uint32_t>(id));
  }
  std::sort(order_.begin(), order_.end(),
            [&](uint32_t a, uint32_t b) { return std::tie(tokens_[a], a) < std::tie(tokens_[b], b); });
  byte_.push_back(0);
  depth_.push_back(0);
  token_begin_.push_back(0);
  subtree_end_.push_back(0);
  std::vector<uint32_t> open{0};  // nodes on the way to the current one
  std::string_view previous;
  for (size_t k = 0; k < order_.size(); ++k) {
    const std::string_view text = tokens_[order_[k]];
    const auto differs = std::mismatch(previous.begin(), previous.end(), text.begin(), text.end());
    const auto common = static_cast<size_t>(differs.first - previous.begin());
    while (open.size() > common + 1) {
      subtree_end_[open.back()] = static_cast<uint32_t>(byte_.size());
      open.pop_back();
    }
    for (size_t at = common; at < text.size(); ++at) {
      open.push_back(static_cast<uint32_t>(byte_.size()));
      byte_.push_back(static_cast<uint8_t>(text[at]));
      depth_.push_back(static_cast<uint16_t>(at + 1));
      token_begin_.push_back(static_cast<uint32_t>(k));
      subtree_end_.push_back(0);
    }
    max_depth_ = std::max(max_depth_, text.size());
    previous = text;
  }
  for (const uint32_t node : open) subtree_end_[node] = static_cast<uint32_t>(byte_.size());
  token_begin_.push_back(static_cast<uint32_t>(order_.size()));
}

bool TrieVocabulary::is_end(int32_t token) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), token);
}

}  // namespace grammar

std::shared_ptr<const TokenVocabulary> TokenVocabulary::create(const Tokenizer& tokenizer, int64_t vocab_size,
                                                               std::span<const int32_t> end_tokens) {
  LK_CHECK(vocab_size >= 0 && vocab_size <= int64_t{1} << 24, "vocabulary of {} tokens", vocab_size);
  std::vector<std::string> tokens(static_cast<size_t>(vocab_size));
  for (int64_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id)
    tokens[static_cast<size_t>(id)] = tokenizer.token_bytes(static_cast<int32_t>(id));
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens),
                                                   std::vector<int32_t>(end_tokens.begin(), end_tokens.end()));
}

}  // namespace lk
