// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/bad_words.h"

#include <algorithm>

#include "lk/infer/token_trie.h"

namespace lk {

BadWords::BadWords(std::vector<std::string> words, std::shared_ptr<const TokenVocabulary> vocabulary)
    : words_(std::move(words)), vocabulary_(std::move(vocabulary)) {
  for (const std::string& word : words_) longest_ = std::max(longest_, word.size());
  for (int64_t id = 0; id < vocabulary_->size(); ++id) {
    const std::string& bytes = this->vocabulary().bytes(static_cast<int32_t>(id));
    if (std::ranges::any_of(words_, [&](const std::string& word) { return bytes.find(word) != bytes.npos; }))
      containing_.push_back(static_cast<int32_t>(id));
  }
}

void BadWords::forbid(std::span<uint64_t> words) const {
  for (const int32_t token : containing_) clear_token(words, token);
  for (const std::string& word : words_)
    for (size_t begun = std::min(word.size() - 1, tail_.size()); begun > 0; --begun)
      if (tail_.ends_with(std::string_view(word).substr(0, begun)))
        for_tokens_beginning(vocabulary(), std::string_view(word).substr(begun),
                             [&](uint32_t token) { clear_token(words, token); });
}

void BadWords::accept(int32_t token) {
  if (token < 0 || token >= vocabulary_->size()) return;
  tail_ += vocabulary().bytes(token);
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - longest_ + 1);
}

}  // namespace lk
