// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/grammar_gate.h"

#include <algorithm>

#include "lk/infer/token_trie.h"

namespace lk {
namespace {

using grammar::TrieVocabulary;

bool any_starts_with(const std::vector<std::string>& marks, std::string_view text) {
  return std::ranges::any_of(marks, [&](const std::string& mark) { return mark.starts_with(text); });
}
bool starts_with_any(const std::vector<std::string>& marks, std::string_view text) {
  return std::ranges::any_of(marks, [&](const std::string& mark) { return text.starts_with(mark); });
}

}  // namespace

GrammarGate::GrammarGate(const TextRequest& request, const TextSide* side, std::span<const int32_t> stop_token_ids,
                         int64_t vocab_size)
    : vocab_size_(vocab_size),
      stop_token_ids_(stop_token_ids.begin(), stop_token_ids.end()),
      marks_(&reasoning_marks(request.reasoning)),
      budget_(request.thinking_budget) {
  if (request.grammar) grammar_.emplace(request.grammar);
  const ThinkingStart start = request.reasoning == ReasoningFormat::kNone
                                  ? ThinkingStart::kAnswering
                                  : request.thinking_start.value_or(ThinkingStart::kMayThink);
  const bool thinks = start != ThinkingStart::kAnswering;
  if (grammar_) {
    calls_ = request.call_openings;
    call_grammar_ = request.call_grammar;
    bare_calls_ = request.bare_calls && call_grammar_;
  }
  if (thinks || !calls_.empty() || bare_calls_) {
    LK_CHECK(side != nullptr && side->tokenizer, "thoughts and calls need a tokenizer");
    tokenizer_ = side->tokenizer;
    if (grammar_) vocabulary_ = side->vocabulary();
  }
  if (thinks && budget_ >= 0) {
    const Result<std::vector<int32_t>> ids = tokenizer_->encode(marks_->ends.front(), false);
    if (ids.ok()) forced_ = *ids;
    next_forced_ = forced_.size();
  }
  if (start == ThinkingStart::kThinking) {
    phase_ = Phase::kThinking;
    spend();
  } else {
    open(thinks ? marks_->begins : std::vector<std::string>());
  }
}

// What the text, or the answer behind the thoughts, may begin with.
void GrammarGate::open(std::vector<std::string> thoughts) {
  thoughts_ = std::move(thoughts);
  held_.clear();
  if (thoughts_.empty() && calls_.empty() && !bare_calls_) {
    phase_ = grammar_ ? Phase::kGrammar : Phase::kFree;
    return;
  }
  phase_ = Phase::kOpening;
  if (grammar_) trial_.emplace(*grammar_);
  if (bare_calls_) call_trial_.emplace(call_grammar_);
}

// Once the budget is spent the last mark is forced, token by token.
void GrammarGate::spend() {
  if (budget_ >= 0 && next_forced_ == forced_.size() && spent_ >= budget_) next_forced_ = 0;
}

std::string GrammarGate::bytes_of(int32_t token) const {
  if (!tokenizer_) return {};
  if (tokenizer_->is_special(token)) return tokenizer_->id_to_token(token).value_or("");
  return tokenizer_->token_bytes(token);
}

void GrammarGate::allow_all(std::span<uint64_t> words) const {
  std::ranges::fill(words, ~uint64_t{0});
  if (vocab_size_ % 64 != 0) words.back() = (uint64_t{1} << (vocab_size_ % 64)) - 1;
}

// The tokens that go on with one of these marks; `beyond`: also those that go past its end.
void GrammarGate::allow_marks(const std::vector<std::string>& marks, bool beyond, std::span<uint64_t> words) const {
  const auto& vocabulary = static_cast<const TrieVocabulary&>(*vocabulary_);
  for (const std::string& mark : marks) {
    if (!mark.starts_with(held_)) continue;
    const std::string_view rest = std::string_view(mark).substr(held_.size());
    const auto allow = [&](uint32_t token) { set_token(words, token); };
    for_tokens_along(vocabulary, rest, allow);
    if (beyond) for_tokens_beginning(vocabulary, rest, allow, true);
    // A special token has no bytes in the vocabulary.
    if (const std::optional<int32_t> whole = tokenizer_->token_to_id(mark);
        held_.empty() && whole && *whole < vocab_size_)
      set_token(words, *whole);
  }
}

void GrammarGate::allowed(std::span<uint64_t> words) const {
  if (forces()) {
    std::ranges::fill(words, 0);
    return set_token(words, forced_[next_forced_]);
  }
  if (phase_ == Phase::kGrammar) return grammar_->allowed(words);
  if (!grammar_ || phase_ == Phase::kFree) return allow_all(words);
  if (phase_ == Phase::kOpening) {
    if (trial_)
      trial_->allowed(words);
    else
      std::ranges::fill(words, 0);
    if (call_trial_) {
      std::vector<uint64_t> more(words.size());
      call_trial_->allowed(more);
      for (size_t i = 0; i < words.size(); ++i) words[i] |= more[i];
    }
    allow_marks(thoughts_, false, words);
    allow_marks(calls_, call_grammar_ == nullptr, words);  // what is beyond a mark would not be bound
    return;
  }
  // Thoughts are free, but do not end the text, and no token ends them and goes on: its rest would not be bound.
  allow_all(words);
  for (const int32_t token : stop_token_ids_)
    if (token >= 0 && token < vocab_size_) clear_token(words, token);
  const auto& vocabulary = static_cast<const TrieVocabulary&>(*vocabulary_);
  for (const std::string& mark : marks_->ends)
    if (mark.starts_with(held_))
      for_tokens_beginning(
          vocabulary, std::string_view(mark).substr(held_.size()), [&](uint32_t token) { clear_token(words, token); },
          true);
}

bool GrammarGate::accept(int32_t token) {
  switch (phase_) {
    case Phase::kGrammar:
      return grammar_->accept(token);
    case Phase::kFree:
      return true;
    case Phase::kOpening:
      return accept_opening(token, bytes_of(token));
    case Phase::kThinking:
      break;
  }
  if (forces()) ++next_forced_;
  ++spent_;
  return accept_thought(bytes_of(token));
}

bool GrammarGate::accept_opening(int32_t token, std::string_view bytes) {
  if (trial_ && !trial_->accept(token)) trial_.reset();
  if (call_trial_ && !call_trial_->accept(token)) call_trial_.reset();
  held_ += bytes;
  if (!held_.empty() && starts_with_any(calls_, held_)) {
    phase_ = Phase::kFree;
    if (call_grammar_) bind(GrammarState(call_grammar_));
    return true;
  }
  // Without a grammar white space may stand before the mark.
  std::string_view seen = held_;
  if (!grammar_) seen.remove_prefix(std::min(seen.size(), seen.find_first_not_of(" \t\r\n")));
  if (!seen.empty() && starts_with_any(thoughts_, seen)) {
    phase_ = Phase::kThinking;
    held_.clear();
    trial_.reset();
    call_trial_.reset();
    spend();
    return true;
  }
  if ((any_starts_with(thoughts_, seen) || any_starts_with(calls_, held_)) && !bytes.empty()) return true;
  // Neither: the text is what the grammar says from its start on.
  if (!grammar_) {
    phase_ = Phase::kFree;
    return true;
  }
  // As long as it may be both a call and an answer it stays open.
  if (trial_ && call_trial_) return true;
  if (!trial_ && !call_trial_) return false;
  bind(GrammarState(trial_ ? *trial_ : *call_trial_));
  return true;
}

// From now on this is what holds.
void GrammarGate::bind(GrammarState state) {
  phase_ = Phase::kGrammar;
  grammar_.reset();
  grammar_.emplace(std::move(state));
}

bool GrammarGate::accept_thought(std::string_view bytes) {
  bool over = false;
  for (const char c : bytes) {
    if (over) break;  // free to go on only without a grammar
    held_ += c;
    while (!any_starts_with(marks_->ends, held_)) held_.erase(0, 1);
    over = std::ranges::find(marks_->ends, held_) != marks_->ends.end();
  }
  if (over)
    open({});
  else
    spend();
  return true;
}

bool GrammarGate::can_end() const {
  if (phase_ == Phase::kGrammar) return grammar_->can_end();
  if (!grammar_ || phase_ == Phase::kFree) return true;
  if (phase_ != Phase::kOpening) return false;
  return (trial_ && trial_->can_end()) || (call_trial_ && call_trial_->can_end());
}

}  // namespace lk
