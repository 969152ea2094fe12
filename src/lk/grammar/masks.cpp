// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/masks.h"

#include <algorithm>
#include <bit>

namespace lk::grammar {
namespace {

// What the computation of one mask may add to the arena, as a measure of its time. A grammar that needs more loses
// tokens in this mask: never a wrong one, never all.
constexpr int64_t kMaxMaskBytes = 4 << 20;

void set(std::vector<uint64_t>& words, uint32_t token) { words[token / 64] |= uint64_t{1} << (token % 64); }

}  // namespace

// Visits the nodes [first, last) of the trie, whose parents' states are on the stack.
struct MaskBuilder::Walk {
  const Machine& machine;
  const TrieVocabulary& vocabulary;
  Arena& arena;
  std::vector<uint64_t>& words;
  std::vector<uint32_t>* left = nullptr;  // receives the subtrees that left the bottom frame and did not survive in it
  std::vector<StateId>
      stack;  // [depth]; kSimple | node for a lone item on the bottom frame that calls and ends nothing
  std::vector<uint8_t> escaped;  // [depth] the bottom frame was left on the way
  int depth = 0;
  int64_t limit;  // of the arena's memory
  bool found = false;

  Walk(const MaskBuilder& masks, Arena& to, std::vector<uint64_t>& tokens, int64_t memory)
      : machine(masks.machine_),
        vocabulary(masks.vocabulary_),
        arena(to),
        words(tokens),
        stack(vocabulary.max_depth() + 1, kDead),
        escaped(vocabulary.max_depth() + 1, 0),
        limit(memory) {}

  void run_all(StateId from) {
    stack[0] = from;
    depth = arena.state(from).depth;
    run(1, vocabulary.num_nodes());
  }
  void run_node(uint32_t node) {
    if (simple(node)) {
      stack[0] = kSimple | node;
      run(1, vocabulary.num_nodes());
    } else {
      run_all(machine.start(arena, node));
    }
  }
  void run_subtree(StateId from, uint32_t subtree) {
    const size_t parent = vocabulary.depth(subtree) - 1;
    stack[parent] = machine.run(arena, from, vocabulary.path(subtree).substr(0, parent));
    if (stack[parent] != kDead) run(subtree, vocabulary.subtree_end(subtree));
  }

 private:
  static constexpr StateId kSimple = 1u << 31;
  bool simple(uint32_t node) const {
    const Automaton& a = machine.automaton();
    return !a.accepts[node] && a.calls_of(node).empty();
  }

  // Most of a walk stays within one rule: then the automaton's own table is enough.
  StateId step(StateId from, uint8_t byte) {
    if ((from & kSimple) == 0) return machine.step(arena, from, byte);
    const Automaton& a = machine.automaton();
    const uint32_t to = a.next[size_t{from & ~kSimple} * a.num_classes + a.class_of[byte]];
    if (to == kNoNode) return kDead;
    if (simple(to)) return kSimple | to;
    const auto [at, added] = starts.try_emplace(to, 0);
    if (added) at->second = machine.start(arena, to);
    return at->second;
  }
  std::unordered_map<uint32_t, StateId> starts;

  void run(size_t first, size_t last) {
    for (size_t node = first; node < last;) {
      const size_t at = vocabulary.depth(node);
      const StateId state = step(stack[at - 1], vocabulary.byte(node));
      if (state == kDead) {
        if (left != nullptr && escaped[at - 1]) left->push_back(static_cast<uint32_t>(node));
        node = vocabulary.subtree_end(node);
        continue;
      }
      stack[at] = state;
      escaped[at] = escaped[at - 1];
      if ((state & kSimple) == 0) {
        const Arena::State& reached = arena.state(state);
        escaped[at] |= static_cast<uint8_t>(reached.ends);
        depth = std::max(depth, reached.depth);
      }
      for (const uint32_t token : vocabulary.tokens_at(node)) {
        set(words, token);
        found = true;
      }
      ++node;
      if (arena.memory() > limit && found) return;
    }
  }
};

TokenSet MaskBuilder::pack(const std::vector<uint64_t>& words) const {
  TokenSet out;
  size_t count = 0;
  for (const uint64_t word : words) count += static_cast<size_t>(std::popcount(word));
  if (count > words.size()) {
    out.words = words;
    return out;
  }
  out.list.reserve(count);
  for (size_t k = 0; k < words.size(); ++k) {
    for (uint64_t word = words[k]; word != 0; word &= word - 1)
      out.list.push_back(static_cast<uint32_t>(k * 64 + static_cast<size_t>(std::countr_zero(word))));
  }
  return out;
}

const Arena::NodeMask& MaskBuilder::node_mask(Arena& arena, uint32_t node, int64_t limit) const {
  const auto [at, added] = arena.node_masks.try_emplace(node);
  Arena::NodeMask& mask = at->second;
  if (!added) return mask;
  std::vector<uint64_t> words(static_cast<size_t>(vocabulary_.size() + 63) / 64);
  Walk walk(*this, arena, words, limit);
  walk.left = &mask.subtrees;
  walk.run_node(node);
  mask.tokens = pack(words);
  mask.depth = walk.depth;
  arena.account(mask.tokens.memory() + static_cast<int64_t>(mask.subtrees.capacity() * 4 + 64));
  return mask;
}

const Arena::StateMask& MaskBuilder::mask(Arena& arena, StateId id) const {
  if (arena.state(id).mask != nullptr) return *arena.state(id).mask;
  auto mask = std::make_unique<Arena::StateMask>();
  std::vector<uint64_t> own(static_cast<size_t>(vocabulary_.size() + 63) / 64);
  const int64_t limit = arena.memory() + kMaxMaskBytes;
  Walk walk(*this, arena, own, limit);
  for (const Item item : std::vector<Item>(arena.state(id).kernel)) {
    if (arena.memory() > limit && (walk.found || !mask->parts.empty())) break;
    const Arena::NodeMask& part = node_mask(arena, item.node, limit);
    const int below = arena.frame(item.frame).depth;
    if (below > 0 && below + part.depth + machine_.automaton().max_height + 1 > kMaxOpenCalls) {
      // So deep that the limit on open calls may forbid what the node alone allows.
      mask->parts.clear();
      walk.run_all(id);
      break;
    }
    if (!part.tokens.empty()) mask->parts.push_back(&part.tokens);
    if (item.frame == kBottom) continue;  // nothing below: what leaves has no way on
    for (const uint32_t subtree : part.subtrees) {
      if (arena.memory() > limit && (walk.found || !mask->parts.empty())) break;
      walk.run_subtree(id, subtree);
    }
  }
  mask->own = pack(own);
  arena.account(mask->own.memory() + static_cast<int64_t>(sizeof(*mask) + mask->parts.size() * sizeof(void*)));
  arena.state(id).mask = std::move(mask);
  return *arena.state(id).mask;
}

}  // namespace lk::grammar
