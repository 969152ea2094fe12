// SPDX-License-Identifier: Apache-2.0
// Expression -> nondeterministic automaton (Thompson) -> deterministic automaton (subset construction), one rule at a
// time.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "lk/grammar/automaton.h"
#include "lk/grammar/ir.h"

namespace lk::grammar {

// Bytes that no expression of the grammar tells apart share a class.
struct ByteClasses {
  uint32_t count = 0;
  std::array<uint8_t, 256> class_of{};
  explicit ByteClasses(const Ir& ir);
  std::vector<uint8_t> classes_of(const ByteSet& set) const;
};

struct Nfa {
  struct State {
    std::vector<uint32_t> epsilon;
    std::vector<std::pair<uint32_t, uint32_t>> moves;  // index in class_sets, target
    std::vector<std::pair<RuleId, uint32_t>> calls;
  };
  std::vector<State> states;
  std::vector<std::vector<uint8_t>> class_sets;
  uint32_t end = 0;  // state 0 is the start
};

struct Dfa {
  std::vector<uint32_t> next;  // [node, class]
  std::vector<uint8_t> accepts;
  std::vector<std::vector<std::pair<RuleId, uint32_t>>> calls;  // [node]
  size_t size() const { return accepts.size(); }
};

// The deterministic automaton of one expression; rules with expand[rule] are expanded in place. Incomplete once the
// budget failed.
Dfa build_dfa(const Ir& ir, Expr expr, const ByteClasses& classes, const std::vector<uint8_t>& expand, Budget& budget);

}  // namespace lk::grammar
