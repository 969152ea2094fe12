// SPDX-License-Identifier: Apache-2.0
// GrammarGate: to which part of a text its grammar applies. A model that thinks first is bound once its thoughts are
// over; in a call that of calls holds. Also ends thoughts that take too long. Follows tokens, not the
// text that is shown: masks are needed before there is a text.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lk/infer/text_sequence.h"
#include "lk/infer/text_side.h"

namespace lk {

class GrammarGate {
 public:
  // `side` may be null for a request that neither thinks nor may call.
  GrammarGate(const TextRequest& request, const TextSide* side, std::span<const int32_t> stop_token_ids,
              int64_t vocab_size);

  // Sets the bits of the tokens that may come next, as TokenConstraint::allowed().
  void allowed(std::span<uint64_t> words) const;
  // False when the grammar refuses the token.
  bool accept(int32_t token);
  // Exactly one token may come, whatever else the request says: the end of thoughts that take too long.
  bool forces() const { return phase_ == Phase::kThinking && next_forced_ < forced_.size(); }
  // The text may end here.
  bool can_end() const;

 private:
  enum class Phase : uint8_t {
    kOpening,  // the text may begin with a mark (of thoughts, of a call) or with what the grammar says
    kThinking,
    kGrammar,
    kFree,  // there is no grammar, or none of calls
  };
  std::string bytes_of(int32_t token) const;
  void open(std::vector<std::string> thoughts);
  bool accept_opening(int32_t token, std::string_view bytes);
  void bind(GrammarState state);
  bool accept_thought(std::string_view bytes);
  void spend();
  void allow_all(std::span<uint64_t> words) const;
  void allow_marks(const std::vector<std::string>& marks, bool beyond, std::span<uint64_t> words) const;

  const int64_t vocab_size_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const TokenVocabulary> vocabulary_;  // with a grammar
  std::vector<int32_t> stop_token_ids_;
  const ReasoningMarks* marks_;
  Phase phase_ = Phase::kGrammar;
  std::optional<GrammarState> grammar_;          // from its start
  std::shared_ptr<const Grammar> call_grammar_;  // of a call behind its mark
  bool bare_calls_ = false;                      // or without one:
  std::optional<GrammarState> call_trial_;       // kOpening: while it still fits
  std::optional<GrammarState> trial_;            // kOpening: while it still fits
  std::vector<std::string> thoughts_, calls_;    // kOpening: the marks that may begin here
  std::string held_;                             // kOpening: all so far; kThinking: what may become the last mark
  int64_t budget_;                               // of thoughts, in tokens; < 0 = none
  int64_t spent_ = 0;
  std::vector<int32_t> forced_;
  size_t next_forced_ = 0;
};

}  // namespace lk
