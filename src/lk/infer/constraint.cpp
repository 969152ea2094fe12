// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/constraint.h"

#include <algorithm>

#include "lk/infer/bad_words.h"
#include "lk/infer/grammar_gate.h"

namespace lk {
namespace {

class TextConstraint final : public TokenConstraint {
 public:
  TextConstraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids, int64_t vocab_size,
                 const TextSide* side)
      : vocab_size_(vocab_size), min_tokens_(request.min_tokens), stop_token_ids_(stop_token_ids) {
    ends_.reserve(stop_token_ids_.size());
    if (request.grammar || request.thinking_budget >= 0) gate_.emplace(request, side, stop_token_ids, vocab_size);
    if (!request.bad_words.empty() && side != nullptr && side->tokenizer)
      bad_words_.emplace(request.bad_words, side->vocabulary());
    if (!request.allowed_token_ids.empty()) {
      allowed_.resize(static_cast<size_t>((vocab_size + 63) / 64));
      for (const int32_t token : request.allowed_token_ids) set(allowed_, token);
    }
  }

  Status allowed(std::span<uint64_t> words) override {
    LK_CHECK(static_cast<int64_t>(words.size()) == (vocab_size_ + 63) / 64);
    if (gate_)
      gate_->allowed(words);
    else
      allow_all(words);
    if (gate_ && gate_->forces()) return Status();
    if (none(words))
      return failed_precondition("no token of the vocabulary continues the text as its grammar demands after {} tokens",
                                 num_tokens_);
    if (!allowed_.empty()) {
      find_ends(words);
      for (size_t i = 0; i < words.size(); ++i) words[i] &= allowed_[i];
      if (none(words)) {
        if (gate_ && !gate_->can_end())
          return failed_precondition("allowed_token_ids has no token that the grammar allows after {} tokens",
                                     num_tokens_);
        for (const int32_t token : ends_) set(words, token);  // the text is whole, and nothing listed goes on with it
      }
    }
    if (bad_words_) {
      bad_words_->forbid(words);
      if (none(words))
        return failed_precondition("bad_words leave no token that may come next, after {} tokens", num_tokens_);
    }
    if (num_tokens_ < min_tokens_) {
      find_ends(words);
      for (const int32_t token : ends_) words[static_cast<size_t>(token / 64)] &= ~(uint64_t{1} << (token % 64));
      if (none(words))
        for (const int32_t token : ends_) set(words, token);  // nothing else is left: the end is not put off
    }
    return Status();
  }
  Status accept(int32_t token) override {
    ++num_tokens_;
    if (bad_words_) bad_words_->accept(token);
    const bool forced = gate_ && gate_->forces();
    if (!allowed_.empty() && !forced && !has(allowed_, token) && std::ranges::count(stop_token_ids_, token) == 0)
      return internal_error("token {} is none of allowed_token_ids, after {} tokens", token, num_tokens_ - 1);
    if (!gate_ || gate_->accept(token)) return Status();
    return internal_error("the grammar refuses token {}, which it allowed, after {} tokens", token, num_tokens_ - 1);
  }

 private:
  void allow_all(std::span<uint64_t> words) const {
    std::fill(words.begin(), words.end(), ~uint64_t{0});
    if (vocab_size_ % 64 != 0) words.back() = (uint64_t{1} << (vocab_size_ % 64)) - 1;
  }
  static void set(std::span<uint64_t> words, int32_t token) {
    words[static_cast<size_t>(token / 64)] |= uint64_t{1} << (token % 64);
  }
  static bool has(std::span<const uint64_t> words, int32_t token) {
    return (words[static_cast<size_t>(token / 64)] >> (token % 64) & 1) != 0;
  }
  void find_ends(std::span<const uint64_t> words) {
    ends_.clear();
    for (const int32_t token : stop_token_ids_)
      if (has(words, token)) ends_.push_back(token);
  }
  static bool none(std::span<const uint64_t> words) {
    return std::ranges::all_of(words, [](uint64_t word) { return word == 0; });
  }

  const int64_t vocab_size_;
  const int64_t min_tokens_;
  const std::vector<int32_t> stop_token_ids_;
  int64_t num_tokens_ = 0;
  std::optional<GrammarGate> gate_;
  std::optional<BadWords> bad_words_;
  std::vector<uint64_t> allowed_;
  std::vector<int32_t> ends_;  // stop tokens that may come next
};

}  // namespace

std::shared_ptr<TokenConstraint> make_constraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids,
                                                 int64_t vocab_size, const TextSide* side) {
  if (!request.grammar && request.allowed_token_ids.empty() && request.min_tokens <= 0 && request.thinking_budget < 0 &&
      request.bad_words.empty())
    return nullptr;
  std::vector<int32_t> stops = stop_token_ids;
  std::erase_if(stops, [&](int32_t token) { return token < 0 || token >= vocab_size; });
  return std::make_shared<TextConstraint>(request, stops, vocab_size, side);
}

}  // namespace lk
