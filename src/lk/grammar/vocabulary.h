// SPDX-License-Identifier: Apache-2.0
// The token trie: all tokens' bytes as one tree in preorder, so that a walk visits a shared beginning once and skips a
// subtree by one jump.
#pragma once

#include <string>
#include <vector>

#include "lk/grammar/grammar.h"

namespace lk::grammar {

class TrieVocabulary final : public TokenVocabulary {
 public:
  // tokens[id] is empty for ids that are never allowed. Tokens longer than kMaxTokenBytes are not either.
  static constexpr size_t kMaxTokenBytes = 4096;
  TrieVocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens);

  int64_t size() const override { return static_cast<int64_t>(tokens_.size()); }
  const std::string& bytes(int32_t token) const { return tokens_[static_cast<size_t>(token)]; }
  bool is_end(int32_t token) const;
  const std::vector<int32_t>& end_tokens() const { return end_tokens_; }

  // Nodes in preorder; 0 is the root (the empty text), depth is the length in bytes.
  size_t num_nodes() const { return byte_.size(); }
  uint8_t byte(size_t node) const { return byte_[node]; }
  size_t depth(size_t node) const { return depth_[node]; }
  size_t subtree_end(size_t node) const { return subtree_end_[node]; }
  std::span<const uint32_t> tokens_at(size_t node) const {
    return {order_.data() + token_begin_[node], token_begin_[node + 1] - token_begin_[node]};
  }
  // The bytes on the way to a node: those of any token of its subtree.
  std::string_view path(size_t node) const {
    return std::string_view(tokens_[order_[token_begin_[node]]]).substr(0, depth_[node]);
  }
  size_t max_depth() const { return max_depth_; }

 private:
  std::vector<std::string> tokens_;
  std::vector<int32_t> end_tokens_;  // sorted
  std::vector<uint8_t> byte_;
  std::vector<uint16_t> depth_;
  std::vector<uint32_t> subtree_end_, token_begin_;
  std::vector<uint32_t> order_;  // token ids by their bytes
  size_t max_depth_ = 0;
};

}  // namespace lk::grammar
