// SPDX-License-Identifier: Apache-2.0
// Texts that an answer may not have in it, whatever tokens would make them.
#include "lk/infer/bad_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace lk {
namespace {

std::shared_ptr<const TokenVocabulary> vocabulary() {
  std::vector<std::string> tokens;
  for (const char c : std::string("abc ")) tokens.emplace_back(1, c);
  for (const char* more : {"ab", "bc", "cab", "abab", "", "c a", "bb"}) tokens.emplace_back(more);
  return std::make_shared<grammar::TrieVocabulary>(std::move(tokens), std::vector<int32_t>{8});
}

// A token is forbidden exactly when its bytes would complete one of the words.
TEST(BadWords, ForbidsWhatWouldCompleteOne) {
  const auto tokens = vocabulary();
  const auto& trie = static_cast<const grammar::TrieVocabulary&>(*tokens);
  std::mt19937_64 random(3);
  for (const std::vector<std::string>& bad :
       {std::vector<std::string>{"a"}, {"abc"}, {"abab", "bb"}, {"c a", "ca"}, {"aab", "b"}, {"abcabc"}})
    for (int round = 0; round < 200; ++round) {
      BadWords words(bad, tokens);
      std::string text;
      for (int step = 0; step < 12; ++step) {
        std::vector<uint64_t> mask{~uint64_t{0}};
        words.forbid(mask);
        std::vector<int32_t> allowed;
        for (int32_t token = 0; token < tokens->size(); ++token) {
          const std::string next = text + trie.bytes(token);
          const bool has_one =
              std::ranges::any_of(bad, [&](const std::string& word) { return next.find(word) != next.npos; });
          ASSERT_EQ((mask[0] >> token & 1) == 0, has_one) << '"' << text << "\" + \"" << trie.bytes(token) << '"';
          if (!has_one) allowed.push_back(token);
        }
        const int32_t token = allowed[random() % allowed.size()];
        text += trie.bytes(token);
        words.accept(token);
      }
    }
}

}  // namespace
}  // namespace lk
