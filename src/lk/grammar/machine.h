// SPDX-License-Identifier: Apache-2.0
// Runs an Automaton over bytes. A state is a set of (node, frame) items; a frame is a set of places to return to, so
// that frames form a graph and an ambiguous grammar does not multiply its stacks. States and frames are interned in an
// arena and their transitions remembered: what was computed once is a table lookup for every later text of the grammar.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "lk/grammar/automaton.h"
#include "lk/grammar/vocabulary.h"

namespace lk::grammar {

using StateId = uint32_t;
using FrameId = uint32_t;
inline constexpr StateId kDead = ~0u;
inline constexpr StateId kUnknown = ~0u - 1;  // a transition that was not asked for yet
inline constexpr FrameId kBottom =
    0;  // the frame of the root rule, or what lies below in a mask that does not depend on it

struct Item {
  uint32_t node;
  FrameId frame;
  auto operator<=>(const Item&) const = default;
};

// Few tokens as a list, many as a bit set.
struct TokenSet {
  std::vector<uint32_t> list;
  std::vector<uint64_t> words;
  void add_to(std::span<uint64_t> out) const;
  bool empty() const { return list.empty() && words.empty(); }
  int64_t memory() const { return static_cast<int64_t>(sizeof(*this) + list.capacity() * 4 + words.capacity() * 8); }
};

class Arena {
 public:
  struct Frame {
    std::vector<Item> returns;  // sorted; one call deeper than each of their frames
    int depth = 0;              // open calls
  };
  // The tokens that fit a node whatever is below, and the subtrees of the trie that leave its rule and depend on it.
  struct NodeMask {
    TokenSet tokens;
    std::vector<uint32_t> subtrees;
    int depth = 0;  // open calls that any of it made
  };
  struct StateMask {
    std::vector<const TokenSet*> parts;
    TokenSet own;
  };
  struct State {
    std::vector<Item> kernel;   // what identifies the state: sorted, without what follows from calls
    std::vector<Item> shift;    // items that move on a byte
    bool ends = false;          // the bottom frame is left here
    int depth = 0;              // most open calls of any item
    std::vector<StateId> next;  // [class]
    std::unique_ptr<StateMask> mask;
  };

  Arena();
  const State& state(StateId id) const { return states_[id]; }
  State& state(StateId id) { return states_[id]; }
  const Frame& frame(FrameId id) const { return frames_[id]; }
  int64_t memory() const { return memory_; }
  void account(int64_t bytes) { memory_ += bytes; }

  std::optional<StateId> find_state(const std::vector<Item>& kernel, bool ends) const;
  StateId add_state(State state);
  FrameId intern_frame(std::vector<Item> returns);

  std::unordered_map<uint32_t, NodeMask> node_masks;  // by node

 private:
  struct Hash {
    size_t operator()(const std::vector<Item>& items) const;
  };
  std::deque<State> states_;
  std::deque<Frame> frames_;
  std::unordered_map<std::vector<Item>, StateId, Hash> state_ids_[2];  // [ends]
  std::unordered_map<std::vector<Item>, FrameId, Hash> frame_ids_;
  int64_t memory_ = 0;
};

class Machine {
 public:
  explicit Machine(const Automaton& automaton) : a_(automaton) {}
  StateId start(Arena& arena, uint32_t node) const;  // that node on the bottom frame
  StateId step(Arena& arena, StateId from, uint8_t byte) const {
    const uint8_t c = a_.class_of[byte];
    const StateId known = arena.state(from).next[c];
    return known != kUnknown ? known : move(arena, from, c);
  }
  StateId run(Arena& arena, StateId from, std::string_view bytes) const;  // kDead once dead
  StateId migrate(const Arena& from, StateId id, Arena& to) const;
  const Automaton& automaton() const { return a_; }

 private:
  StateId move(Arena& arena, StateId from, uint8_t c) const;
  StateId close(Arena& arena, const std::vector<Item>& items) const;
  const Automaton& a_;
};

}  // namespace lk::grammar
