// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/constraint.h"

#include <algorithm>
#include <limits>

namespace lk {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

class TextConstraint final : public TokenConstraint {
 public:
  TextConstraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids, int64_t vocab_size)
      : min_tokens_(request.min_tokens),
        stop_token_ids_(stop_token_ids),
        words_(static_cast<size_t>((vocab_size + 63) / 64)) {
    if (request.grammar) grammar_.emplace(request.grammar);
    if (!request.allowed_token_ids.empty()) {
      allowed_.resize(words_.size());
      for (const int32_t token : request.allowed_token_ids) set(allowed_, token);
    }
  }

  void mask(std::span<float> logits) override {
    if (grammar_)
      grammar_->allowed(words_);
    else
      allow_all(logits.size());
    // A vocabulary may lack the bytes a grammar demands: the text ends there, since nothing that follows could match.
    if (none(words_))
      std::for_each(stop_token_ids_.begin(), stop_token_ids_.end(), [&](int32_t token) { set(words_, token); });
    if (none(words_)) allow_all(logits.size());
    // What the grammar demands comes first: a further limit that would leave nothing is passed over.
    if (!allowed_.empty())
      narrow([&](std::vector<uint64_t>& words) {
        for (size_t i = 0; i < words.size(); ++i) words[i] &= allowed_[i];
      });
    if (num_tokens_ < min_tokens_)
      narrow([&](std::vector<uint64_t>& words) {
        for (const int32_t token : stop_token_ids_)
          words[static_cast<size_t>(token / 64)] &= ~(uint64_t{1} << (token % 64));
      });
    for (size_t token = 0; token < logits.size(); ++token)
      if ((words_[token / 64] >> (token % 64) & 1) == 0) logits[token] = kNever;
  }
  void accept(int32_t token) override {
    ++num_tokens_;
    if (grammar_) grammar_->accept(token);
  }

 private:
  void allow_all(size_t vocab_size) {
    std::fill(words_.begin(), words_.end(), ~uint64_t{0});
    if (vocab_size % 64 != 0) words_.back() = (uint64_t{1} << (vocab_size % 64)) - 1;
  }
  static void set(std::vector<uint64_t>& words, int32_t token) {
    words[static_cast<size_t>(token / 64)] |= uint64_t{1} << (token % 64);
  }
  template <class F>
  void narrow(const F& f) {
    scratch_ = words_;
    f(scratch_);
    if (!none(scratch_)) words_.swap(scratch_);
  }
  static bool none(const std::vector<uint64_t>& words) {
    return std::ranges::all_of(words, [](uint64_t word) { return word == 0; });
  }

  const int64_t min_tokens_;
  const std::vector<int32_t> stop_token_ids_;
  int64_t num_tokens_ = 0;
  std::optional<GrammarState> grammar_;
  std::vector<uint64_t> allowed_, words_, scratch_;
};

}  // namespace

std::shared_ptr<TokenConstraint> make_constraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids,
                                                 int64_t vocab_size) {
  if (!request.grammar && request.allowed_token_ids.empty() && request.min_tokens <= 0) return nullptr;
  std::vector<int32_t> stops = stop_token_ids;
  std::erase_if(stops, [&](int32_t token) { return token < 0 || token >= vocab_size; });
  return std::make_shared<TextConstraint>(request, stops, vocab_size);
}

}  // namespace lk
