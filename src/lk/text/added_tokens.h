// SPDX-License-Identifier: Apache-2.0
// The "added_tokens" section: tokens found in the text before (normalized = false) or after
// normalisation, with the stripping and whole-word rules. Source: tokenizer/added_vocabulary.rs of
// the `tokenizers` package. Thread safety: immutable after parse.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lk/text/bpe_model.h"
#include "lk/text/normalizer.h"
#include "lk/text/tokenizer_config.h"

namespace lk {

// The longest of a set of strings at a position.
class TokenTrie {
 public:
  TokenTrie() : nodes_(1) {}
  bool insert(std::string_view text, int32_t value);  // false if already present
  bool empty() const { return nodes_.size() == 1; }
  struct Match {
    size_t begin, end;
    int32_t value;
  };
  // Leftmost, then longest, at or after `from`. Spends a step for each byte it looks at: tokens that nearly match
  // everywhere make it look at each many times.
  Result<std::optional<Match>> find(std::string_view text, size_t from, WorkBudget& budget) const;
  size_t num_nodes() const { return nodes_.size(); }

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int32_t>> children;  // sorted by byte
    int32_t value = -1;
  };
  int32_t child(int32_t node, unsigned char byte) const;
  std::vector<Node> nodes_;
  std::array<int32_t, 256> roots_ = {};  // child of the root, 0 for none
};

class AddedTokens {
 public:
  struct Token : AddedToken {
    std::string text;  // content, normalised if `normalized`: what is matched, and what decoding gives
    int32_t id = -1;
    bool operator==(const Token&) const = default;
  };

  // The section of tokenizer.json, then what `config` adds to it and changes of it. Ids are assigned as the packages
  // do; a file that declares others is refused.
  static Result<AddedTokens> parse(const JsonView& json, const BpeModel& model, const Normalizer* normalizer,
                                   const TokenizerConfig& config);

  // A part of a text: an added token, or (token < 0) what lies between.
  struct Part {
    size_t begin, end;
    int32_t token;
  };
  // Parts in order. With lstrip and rstrip neighbours may overlap, as in the package.
  Result<std::vector<Part>> split(std::string_view text, bool normalized, WorkBudget& budget) const;

  const Token* find(int32_t id) const;
  const Token* find(std::string_view content) const;
  bool is_special_text(std::string_view text) const { return special_.contains(text); }
  int32_t max_id() const { return max_id_; }
  bool operator==(const AddedTokens& other) const {
    return tokens_ == other.tokens_ && special_ == other.special_ && split_special_ == other.split_special_;
  }

 private:
  struct Place;  // what adding a token needs to know, and where it comes from
  Status add(AddedToken given, std::optional<int64_t> declared, const Place& place);
  Status apply(const TokenizerConfig& config, const Place& place);
  Status index(const std::string& where);
  std::vector<Token> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  StringMap<size_t> by_content_;
  StringMap<bool> special_;
  TokenTrie raw_, normalized_;  // values index tokens_
  int32_t max_id_ = -1;
  bool split_special_ = false;  // special tokens in a text are text
};

}  // namespace lk
