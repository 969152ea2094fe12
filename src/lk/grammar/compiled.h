// SPDX-License-Identifier: Apache-2.0
// What stands behind the public Grammar.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "lk/grammar/masks.h"

namespace lk {

class Grammar {
 public:
  Grammar(grammar::Automaton automaton, std::shared_ptr<const TokenVocabulary> vocabulary);

  // States and masks computed so far. Once they exceed their budget a new arena is begun; states move over on their
  // next use.
  struct Position {
    std::shared_ptr<grammar::Arena> arena;
    grammar::StateId state = 0;
  };
  Position start() const;
  void allowed(Position& position, std::span<uint64_t> words) const;
  bool accept(Position& position, int32_t token) const;
  bool can_end(const Position& position) const;
  bool advance(Position& position, std::string_view bytes) const;  // false (and unchanged) when the bytes do not fit
  const grammar::TrieVocabulary& vocabulary() const {
    return static_cast<const grammar::TrieVocabulary&>(*vocabulary_);
  }
  int64_t memory() const { return compiled_bytes_ + arena_bytes_.load(std::memory_order_relaxed); }

 private:
  void refresh(Position& position) const;  // requires: mutex_ is held

  grammar::Automaton automaton_;
  std::shared_ptr<const TokenVocabulary> vocabulary_;
  grammar::Machine machine_;
  grammar::MaskBuilder masks_;
  int64_t compiled_bytes_;
  mutable std::atomic<int64_t> arena_bytes_{0};
  mutable std::mutex mutex_;  // guards the arenas of all positions
  mutable std::shared_ptr<grammar::Arena> arena_;
};

}  // namespace lk
