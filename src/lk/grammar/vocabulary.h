// SPDX-License-Identifier: Apache-2.0
// The token trie: all tokens' bytes as one tree in preorder, so that a walk visits a shared beginning once and skips a
// subtree by one jump.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lk/grammar/grammar.h"

namespace lk::grammar {

class TrieVocabulary final : public TokenVocabulary {
 public:
  // tokens[id] is empty for ids that are never allowed. Tokens longer than kMaxTokenBytes are not either.
  static constexpr size_t kMaxTokenBytes = 4096;
  TrieVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens,
                 const TrieVocabulary* like = nullptr);

  int64_t size() const override { return static_cast<int64_t>(trie_->tokens.size()); }
  const std::string& bytes(int32_t token) const { return trie_->tokens[static_cast<size_t>(token)]; }
  bool is_end(int32_t token) const;
  const std::vector<int32_t>& end_tokens() const { return end_tokens_; }

  // Nodes in preorder; 0 is the root (the empty text), depth is the length in bytes.
  size_t num_nodes() const { return trie_->byte.size(); }
  uint8_t byte(size_t node) const { return trie_->byte[node]; }
  size_t depth(size_t node) const { return trie_->depth[node]; }
  size_t subtree_end(size_t node) const { return trie_->subtree_end[node]; }
  std::span<const uint32_t> tokens_at(size_t node) const {
    const std::vector<uint32_t>& begin = trie_->token_begin;
    return {trie_->order.data() + begin[node], begin[node + 1] - begin[node]};
  }
  // The bytes on the way to a node: those of any token of its subtree.
  std::string_view path(size_t node) const {
    return std::string_view(trie_->tokens[trie_->order[trie_->token_begin[node]]]).substr(0, trie_->depth[node]);
  }
  size_t max_depth() const { return trie_->max_depth; }

 private:
  struct Trie {
    std::vector<std::string> tokens;
    std::vector<uint8_t> byte;
    std::vector<uint16_t> depth;
    std::vector<uint32_t> subtree_end, token_begin;
    std::vector<uint32_t> order;  // token ids by their bytes
    size_t max_depth = 0;
    explicit Trie(std::vector<std::string> texts);
  };
  std::vector<int32_t> end_tokens_;  // sorted
  std::shared_ptr<const Trie> trie_;
};

}  // namespace lk::grammar
