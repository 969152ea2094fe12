// SPDX-License-Identifier: Apache-2.0
// Which tokens may follow a state: a walk of the token trie, done once per node of the automaton for all that does not
// depend on the frames below it, and completed per state with the tokens that leave the node's rule.
#pragma once

#include "lk/grammar/machine.h"

namespace lk::grammar {

class MaskBuilder {
 public:
  MaskBuilder(const Machine& machine, const TrieVocabulary& vocabulary) : machine_(machine), vocabulary_(vocabulary) {}
  // The tokens of a state; computed on the first call. Without end tokens.
  const Arena::StateMask& mask(Arena& arena, StateId id) const;

 private:
  struct Walk;
  const Arena::NodeMask& node_mask(Arena& arena, uint32_t node, int64_t limit) const;
  TokenSet pack(const std::vector<uint64_t>& words) const;

  const Machine& machine_;
  const TrieVocabulary& vocabulary_;
};

}  // namespace lk::grammar
