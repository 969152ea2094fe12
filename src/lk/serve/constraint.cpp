// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/constraint.h"

#include <algorithm>

namespace lk {
namespace {

class TextConstraint final : public TokenConstraint {
 public:
  TextConstraint(const TextRequest& request, const std::vector<int32_t>& stop_token_ids, int64_t vocab_size)
      : vocab_size_(vocab_size),
        min_tokens_(request.min_tokens),
        stop_token_ids_(stop_token_ids),
        scratch_(static_cast<size_t>((vocab_size + 63) / 64)) {
    if (request.grammar) grammar_.emplace(request.grammar);
    if (!request.allowed_token_ids.empty()) {
      allowed_.resize(scratch_.size());
      for (const int32_t token : request.allowed_token_ids) set(allowed_, token);
    }
  }

  Status allowed(std::span<uint64_t> words) override {
    LK_CHECK(words.size() == scratch_.size());
    if (grammar_)
      grammar_->allowed(words);
    else
      allow_all(words);
    if (none(words))
      return failed_precondition("no token of the vocabulary continues the text as its grammar demands after {} tokens",
                                 num_tokens_);
    // What the grammar demands comes first: a further limit that would leave nothing is passed over.
    if (!allowed_.empty())
      narrow(words, [&] {
        for (size_t i = 0; i < scratch_.size(); ++i) scratch_[i] &= allowed_[i];
      });
    if (num_tokens_ < min_tokens_)
      narrow(words, [&] {
        for (const int32_t token : stop_token_ids_)
          scratch_[static_cast<size_t>(token / 64)] &= ~(uint64_t{1} << (token % 64));
      });
    return Status();
  }
  Status accept(int32_t token) override {
    ++num_tokens_;
    if (!grammar_ || grammar_->accept(token)) return Status();
    return internal_error("the grammar refuses token {}, which it allowed, after {} tokens", token, num_tokens_ - 1);
  }

 private:
  void allow_all(std::span<uint64_t> words) const {
    std::fill(words.begin(), words.end(), ~uint64_t{0});
    if (vocab_size_ % 64 != 0) words.back() = (uint64_t{1} << (vocab_size_ % 64)) - 1;
  }
  static void set(std::vector<uint64_t>& words, int32_t token) {
    words[static_cast<size_t>(token / 64)] |= uint64_t{1} << (token % 64);
  }
  // Lets f change a copy in scratch_, and takes it over unless nothing is left.
  template <class F>
  void narrow(std::span<uint64_t> words, const F& f) {
    std::copy(words.begin(), words.end(), scratch_.begin());
    f();
    if (!none(scratch_)) std::copy(scratch_.begin(), scratch_.end(), words.begin());
  }
  static bool none(std::span<const uint64_t> words) {
    return std::ranges::all_of(words, [](uint64_t word) { return word == 0; });
  }

  const int64_t vocab_size_;
  const int64_t min_tokens_;
  const std::vector<int32_t> stop_token_ids_;
  int64_t num_tokens_ = 0;
  std::optional<GrammarState> grammar_;
  std::vector<uint64_t> allowed_, scratch_;
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
