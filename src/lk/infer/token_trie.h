// SPDX-License-Identifier: Apache-2.0
// Walks of a vocabulary's trie along a text, and single bits of token masks.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "lk/grammar/vocabulary.h"

namespace lk {

inline void set_token(std::span<uint64_t> words, int64_t token) {
  words[static_cast<size_t>(token / 64)] |= uint64_t{1} << (token % 64);
}
inline void clear_token(std::span<uint64_t> words, int64_t token) {
  words[static_cast<size_t>(token / 64)] &= ~(uint64_t{1} << (token % 64));
}

// The child that the tokens of a node reach with this byte; 0 = none.
inline size_t child_of(const grammar::TrieVocabulary& vocabulary, size_t node, char c) {
  for (size_t child = node + 1; child < vocabulary.subtree_end(node); child = vocabulary.subtree_end(child))
    if (vocabulary.byte(child) == static_cast<uint8_t>(c)) return child;
  return 0;
}

// Calls back with each token that is a beginning of the text, all of it included.
template <class Each>
void for_tokens_along(const grammar::TrieVocabulary& vocabulary, std::string_view text, const Each& each) {
  size_t node = 0;
  for (const char c : text) {
    node = child_of(vocabulary, node, c);
    if (node == 0) return;
    for (const uint32_t token : vocabulary.tokens_at(node)) each(token);
  }
}

// With each token that begins with the text; `beyond`: only those that are longer.
template <class Each>
void for_tokens_beginning(const grammar::TrieVocabulary& vocabulary, std::string_view text, const Each& each,
                          bool beyond = false) {
  size_t node = 0;
  for (const char c : text) {
    node = child_of(vocabulary, node, c);
    if (node == 0) return;
  }
  for (size_t deeper = beyond ? node + 1 : node; deeper < vocabulary.subtree_end(node); ++deeper)
    for (const uint32_t token : vocabulary.tokens_at(deeper)) each(token);
}

}  // namespace lk
