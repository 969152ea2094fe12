// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "lk/base/check.h"
#include "lk/grammar/compiled.h"

namespace lk {
namespace {

constexpr int64_t kMaxArenaBytes = 16 << 20;

}  // namespace

Grammar::Grammar(grammar::Automaton automaton, std::shared_ptr<const TokenVocabulary> vocabulary)
    : automaton_(std::move(automaton)),
      vocabulary_(std::move(vocabulary)),
      machine_(automaton_),
      masks_(machine_, this->vocabulary()),
      compiled_bytes_(automaton_.memory() + static_cast<int64_t>(sizeof(*this))),
      arena_(std::make_shared<grammar::Arena>()) {}

Grammar::Position Grammar::start() const {
  const std::lock_guard lock(mutex_);
  return {arena_, machine_.start(*arena_, automaton_.start[automaton_.root])};
}

void Grammar::refresh(Position& position) const {
  if (arena_->memory() > kMaxArenaBytes) arena_ = std::make_shared<grammar::Arena>();
  if (position.arena != arena_) {
    position.state = machine_.migrate(*position.arena, position.state, *arena_);
    position.arena = arena_;
  }
}

void Grammar::allowed(Position& position, std::span<uint64_t> words) const {
  const std::lock_guard lock(mutex_);
  refresh(position);
  const grammar::Arena::StateMask& mask = masks_.mask(*arena_, position.state);
  for (const grammar::TokenSet* part : mask.parts) part->add_to(words);
  mask.own.add_to(words);
  if (arena_->state(position.state).ends) {
    for (const int32_t token : vocabulary().end_tokens())
      words[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64);
  }
  arena_bytes_.store(arena_->memory(), std::memory_order_relaxed);
}

bool Grammar::advance(Position& position, std::string_view bytes) const {
  const std::lock_guard lock(mutex_);
  refresh(position);
  const grammar::StateId state = machine_.run(*arena_, position.state, bytes);
  arena_bytes_.store(arena_->memory(), std::memory_order_relaxed);
  if (state == grammar::kDead) return false;
  position.state = state;
  return true;
}

bool Grammar::can_end(const Position& position) const {
  const std::lock_guard lock(mutex_);
  return position.arena->state(position.state).ends;
}

struct GrammarState::Impl {
  std::shared_ptr<const Grammar> grammar;
  Grammar::Position position;
  bool ended = false;
};

GrammarState::GrammarState(std::shared_ptr<const Grammar> grammar) : impl_(std::make_unique<Impl>()) {
  LK_CHECK(grammar != nullptr, "a state needs a grammar");
  impl_->position = grammar->start();
  impl_->grammar = std::move(grammar);
}
GrammarState::GrammarState(const GrammarState& other) : impl_(std::make_unique<Impl>(*other.impl_)) {}
GrammarState::GrammarState(GrammarState&&) noexcept = default;
GrammarState::~GrammarState() = default;

void GrammarState::allowed(std::span<uint64_t> words) const {
  const size_t needed = static_cast<size_t>(impl_->grammar->vocabulary().size() + 63) / 64;
  LK_CHECK(words.size() >= needed, "a mask of {} words for {} tokens", words.size(),
           impl_->grammar->vocabulary().size());
  std::fill(words.begin(), words.end(), 0);
  if (!impl_->ended) impl_->grammar->allowed(impl_->position, words);
}

bool GrammarState::accept(int32_t token) {
  const grammar::TrieVocabulary& vocabulary = impl_->grammar->vocabulary();
  if (impl_->ended || token < 0 || token >= vocabulary.size()) return false;
  if (vocabulary.is_end(token)) {
    impl_->ended = can_end();
    return impl_->ended;
  }
  const std::string& bytes = vocabulary.bytes(token);
  return !bytes.empty() && impl_->grammar->advance(impl_->position, bytes);
}

bool GrammarState::can_end() const { return !impl_->ended && impl_->grammar->can_end(impl_->position); }

int64_t grammar_bytes(const Grammar& grammar) { return grammar.memory(); }

}  // namespace lk
