// SPDX-License-Identifier: Apache-2.0
// BadWords: texts that an answer may not have in it, whatever tokens would make them. Of the answer alone: what ends
// the prompt is not looked at.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lk/grammar/vocabulary.h"

namespace lk {

class BadWords {
 public:
  // `vocabulary`: of the model's tokens. Looks through all of it, once.
  BadWords(std::vector<std::string> words, std::shared_ptr<const TokenVocabulary> vocabulary);
  // Clears the bits of tokens that would complete one.
  void forbid(std::span<uint64_t> words) const;
  void accept(int32_t token);

 private:
  const grammar::TrieVocabulary& vocabulary() const {
    return static_cast<const grammar::TrieVocabulary&>(*vocabulary_);
  }

  std::vector<std::string> words_;
  std::shared_ptr<const TokenVocabulary> vocabulary_;
  std::vector<int32_t> containing_;  // tokens that have one in them
  size_t longest_ = 0;
  std::string tail_;  // of the text: fewer bytes than the longest of them
};

}  // namespace lk
