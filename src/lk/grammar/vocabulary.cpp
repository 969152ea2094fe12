// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/vocabulary.h"

#include <algorithm>
#include <atomic>

namespace lk {
namespace grammar {

TrieVocabulary::TrieVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens,
                               const TrieVocabulary* like)
    : end_tokens_(std::move(end_tokens)) {
  std::sort(end_tokens_.begin(), end_tokens_.end());
  std::erase_if(end_tokens_, [&](int32_t id) { return id < 0 || id >= static_cast<int64_t>(tokens.size()); });
  end_tokens_.erase(std::unique(end_tokens_.begin(), end_tokens_.end()), end_tokens_.end());
  for (const int32_t id : end_tokens_)
    tokens[static_cast<size_t>(id)].clear();  // an end token ends, whatever its text is
  for (std::string& token : tokens)
    if (token.size() > kMaxTokenBytes) token.clear();
  trie_ = like != nullptr && like->trie_->tokens == tokens ? like->trie_ : std::make_shared<Trie>(std::move(tokens));
}

TrieVocabulary::Trie::Trie(std::vector<std::string> texts) : tokens(std::move(texts)) {
  for (size_t id = 0; id < tokens.size(); ++id)
    if (!tokens[id].empty()) order.push_back(static_cast<uint32_t>(id));
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return std::tie(tokens[a], a) < std::tie(tokens[b], b); });
  byte.push_back(0);
  depth.push_back(0);
  token_begin.push_back(0);
  subtree_end.push_back(0);
  std::vector<uint32_t> open{0};  // nodes on the way to the current one
  std::string_view previous;
  for (size_t k = 0; k < order.size(); ++k) {
    const std::string_view text = tokens[order[k]];
    const auto differs = std::mismatch(previous.begin(), previous.end(), text.begin(), text.end());
    const auto common = static_cast<size_t>(differs.first - previous.begin());
    while (open.size() > common + 1) {
      subtree_end[open.back()] = static_cast<uint32_t>(byte.size());
      open.pop_back();
    }
    for (size_t at = common; at < text.size(); ++at) {
      open.push_back(static_cast<uint32_t>(byte.size()));
      byte.push_back(static_cast<uint8_t>(text[at]));
      depth.push_back(static_cast<uint16_t>(at + 1));
      token_begin.push_back(static_cast<uint32_t>(k));
      subtree_end.push_back(0);
    }
    max_depth = std::max(max_depth, text.size());
    previous = text;
  }
  for (const uint32_t node : open) subtree_end[node] = static_cast<uint32_t>(byte.size());
  token_begin.push_back(static_cast<uint32_t>(order.size()));
}

bool TrieVocabulary::is_end(int32_t token) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), token);
}

}  // namespace grammar

TokenVocabulary::TokenVocabulary()
    : id_([] {
        static std::atomic<uint64_t> next{1};
        return next++;
      }()) {}

std::shared_ptr<const TokenVocabulary> TokenVocabulary::create(const Tokenizer& tokenizer, int64_t vocab_size,
                                                               std::span<const int32_t> end_tokens,
                                                               const std::shared_ptr<const TokenVocabulary>& like) {
  LK_CHECK(vocab_size >= 0 && vocab_size <= int64_t{1} << 24, "vocabulary of {} tokens", vocab_size);
  std::vector<std::string> tokens(static_cast<size_t>(vocab_size));
  for (int64_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id)
    tokens[static_cast<size_t>(id)] = tokenizer.token_bytes(static_cast<int32_t>(id));
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens),
                                                   std::vector<int32_t>(end_tokens.begin(), end_tokens.end()),
                                                   static_cast<const grammar::TrieVocabulary*>(like.get()));
}

}  // namespace lk
