// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/dfa.h"

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>

#include "lk/base/check.h"

namespace lk::grammar {
namespace {

struct VectorHash {
  size_t operator()(const std::vector<uint32_t>& values) const {
    uint64_t hash = 0x9E3779B97F4A7C15u;
    for (const uint32_t value : values) hash = (hash ^ value) * 0xD6E8FEB86659FD93u, hash ^= hash >> 32;
    return hash;
  }
};

// Subset construction.
class Determiniser {
 public:
  Determiniser(const Nfa& nfa, uint32_t num_classes, Budget& budget)
      : nfa_(nfa), num_classes_(num_classes), budget_(budget), mark_(nfa.states.size(), 0), by_class_(num_classes) {}

  Dfa run() {
    intern({0});
    for (size_t node = 0; node < subsets_.size() && budget_.ok(); ++node) expand(static_cast<uint32_t>(node));
    budget_.release(subset_bytes_);
    return std::move(dfa_);
  }

 private:
  // The node of the states reachable from `states` without a byte.
  uint32_t intern(std::vector<uint32_t> states) {
    ++round_;
    std::vector<uint32_t> subset;
    for (const uint32_t state : states) mark_[state] = round_;
    while (!states.empty()) {
      const uint32_t state = states.back();
      states.pop_back();
      const Nfa::State& from = nfa_.states[state];
      if (!from.moves.empty() || !from.calls.empty() || state == nfa_.end) subset.push_back(state);
      for (const uint32_t to : from.epsilon) {
        if (mark_[to] == round_) continue;
        mark_[to] = round_;
        states.push_back(to);
      }
    }
    std::sort(subset.begin(), subset.end());
    const auto [at, added] = ids_.try_emplace(std::move(subset), static_cast<uint32_t>(subsets_.size()));
    if (added) {
      subsets_.push_back(&at->first);
      const int64_t bytes = static_cast<int64_t>(at->first.size() * sizeof(uint32_t) + 64);
      subset_bytes_ += bytes;
      budget_.spend(bytes + num_classes_ * static_cast<int64_t>(sizeof(uint32_t)) + 40);
      dfa_.accepts.push_back(std::binary_search(at->first.begin(), at->first.end(), nfa_.end));
      dfa_.calls.emplace_back();
      dfa_.next.resize(dfa_.next.size() + num_classes_, kNoNode);
    }
    return at->second;
  }

  void expand(uint32_t node) {
    std::map<RuleId, std::vector<uint32_t>> calls;
    for (const uint32_t state : *subsets_[node]) {
      budget_.spend(0);
      for (const auto& [set, to] : nfa_.states[state].moves) {
        for (const uint8_t c : nfa_.class_sets[set]) by_class_[c].push_back(to);
      }
      for (const auto& [rule, to] : nfa_.states[state].calls) calls[rule].push_back(to);
    }
    std::map<std::vector<uint32_t>, uint32_t> seen;  // most classes lead to few places
    for (uint32_t c = 0; c < num_classes_; ++c) {
      std::vector<uint32_t>& targets = by_class_[c];
      if (targets.empty()) continue;
      std::sort(targets.begin(), targets.end());
      targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
      const auto [at, added] = seen.try_emplace(targets, 0);
      if (added) at->second = intern(targets);
      dfa_.next[size_t{node} * num_classes_ + c] = at->second;
      targets.clear();
    }
    for (auto& [rule, targets] : calls) {
      budget_.spend(static_cast<int64_t>(sizeof(Automaton::Call)));
      const uint32_t target = intern(std::move(targets));
      dfa_.calls[node].emplace_back(rule, target);
    }
  }

  const Nfa& nfa_;
  uint32_t num_classes_;
  Budget& budget_;
  Dfa dfa_;
  std::unordered_map<std::vector<uint32_t>, uint32_t, VectorHash> ids_;
  std::vector<const std::vector<uint32_t>*> subsets_;  // keys of ids_
  int64_t subset_bytes_ = 0;
  std::vector<uint32_t> mark_;
  uint32_t round_ = 0;
  std::vector<std::vector<uint32_t>> by_class_;
};

class NfaBuilder {
 public:
  NfaBuilder(const Ir& ir, const ByteClasses& classes, const std::vector<uint8_t>& expand, Budget& budget)
      : ir_(ir), classes_(classes), expand_(expand), budget_(budget) {}

  Nfa run(Expr expr) {
    const uint32_t start = add_state();
    nfa_.end = build(expr, start);
    return std::move(nfa_);
  }

 private:
  using Kind = ExprNode::Kind;
  uint32_t add_state() {
    budget_.spend(sizeof(Nfa::State));
    spent_ += sizeof(Nfa::State);
    nfa_.states.emplace_back();
    return static_cast<uint32_t>(nfa_.states.size() - 1);
  }
  void epsilon(uint32_t from, uint32_t to) { nfa_.states[from].epsilon.push_back(to); }
  void move(uint32_t from, std::vector<uint8_t> set, uint32_t to) {
    const auto [at, added] = set_ids_.try_emplace(std::move(set), static_cast<uint32_t>(nfa_.class_sets.size()));
    if (added) nfa_.class_sets.push_back(at->first);
    nfa_.states[from].moves.emplace_back(at->second, to);
    budget_.spend(8);
  }
  uint32_t move(uint32_t from, std::vector<uint8_t> set) {
    const uint32_t to = add_state();
    move(from, std::move(set), to);
    return to;
  }

  // Adds `expr` from `from` on; returns where it ends. Nothing is added to `from` but ways out of it.
  uint32_t build(Expr expr, uint32_t from) {
    if (!budget_.spend(0)) return from;  // also what adds no state: shared parts are written out here
    const ExprNode& node = ir_.node(expr);
    switch (node.kind) {
      case Kind::kEmpty:
        return from;
      case Kind::kNever:
        return add_state();
      case Kind::kBytes:
        return move(from, classes_.classes_of(node.bytes));
      case Kind::kLiteral:
        for (const char c : node.literal) from = move(from, {classes_.class_of[static_cast<uint8_t>(c)]});
        return from;
      case Kind::kSeq:
        for (const Expr child : node.children) from = build(child, from);
        return from;
      case Kind::kAlt: {
        const uint32_t end = add_state();
        for (const Expr child : node.children) epsilon(build(child, branch(from)), end);
        return end;
      }
      case Kind::kRepeat:
        return repeat(node, from);
      case Kind::kRule: {
        if (expand_[node.rule]) return build(ir_.rule(node.rule).body, from);
        const uint32_t to = add_state();
        nfa_.states[from].calls.emplace_back(node.rule, to);
        return to;
      }
      case Kind::kBoth:
      case Kind::kDifference:
        return combine(node, from);
      case Kind::kGraph: {
        std::vector<uint32_t> states(static_cast<size_t>(node.min));
        for (uint32_t& state : states) state = add_state();
        epsilon(from, states[0]);
        for (const auto& edge : node.edges) epsilon(build(edge.expr, branch(states[edge.from])), states[edge.to]);
        return states.back();
      }
    }
    return from;
  }

  // A state of its own for what may loop back to its start.
  uint32_t branch(uint32_t from) {
    const uint32_t state = add_state();
    epsilon(from, state);
    return state;
  }

  uint32_t repeat(const ExprNode& node, uint32_t from) {
    for (int k = 0; k < node.min && budget_.ok(); ++k) from = build(node.children[0], from);
    if (node.max == kUnbounded) {
      const uint32_t loop = branch(from);
      epsilon(build(node.children[0], branch(loop)), loop);
      return branch(loop);
    }
    const uint32_t end = add_state();
    for (int k = node.min; k < node.max && budget_.ok(); ++k) {
      epsilon(from, end);
      from = build(node.children[0], branch(from));
    }
    epsilon(from, end);
    return end;
  }

  // The product of both automata: pairs of nodes, where the second may be dead in a difference.
  uint32_t combine(const ExprNode& node, uint32_t from) {
    const Dfa a = build_dfa(ir_, node.children[0], classes_, expand_, budget_);
    const Dfa b = build_dfa(ir_, node.children[1], classes_, expand_, budget_);
    const bool difference = node.kind == Kind::kDifference;
    const uint32_t end = add_state();
    if (!budget_.ok()) return end;
    std::unordered_map<uint64_t, uint32_t> ids;
    std::vector<std::pair<uint32_t, uint32_t>> pairs;
    const auto intern = [&](uint32_t x, uint32_t y) {
      const auto [at, added] = ids.try_emplace(uint64_t{x} << 32 | y, 0);
      if (added) {
        at->second = add_state();
        pairs.emplace_back(x, y);
        if (a.accepts[x] && (y == kNoNode ? difference : (b.accepts[y] != 0) != difference)) epsilon(at->second, end);
      }
      return at->second;
    };
    epsilon(from, intern(0, 0));
    for (size_t k = 0; k < pairs.size() && budget_.ok(); ++k) {
      const auto [x, y] = pairs[k];
      LK_CHECK(a.calls[x].empty() && (y == kNoNode || b.calls[y].empty()), "a rule call inside an intersection");
      std::map<uint32_t, std::vector<uint8_t>> targets;
      for (uint32_t c = 0; c < classes_.count; ++c) {
        const uint32_t to_a = a.next[size_t{x} * classes_.count + c];
        const uint32_t to_b = y == kNoNode ? kNoNode : b.next[size_t{y} * classes_.count + c];
        if (to_a == kNoNode || (to_b == kNoNode && !difference)) continue;
        targets[intern(to_a, to_b)].push_back(static_cast<uint8_t>(c));
      }
      const uint32_t state = ids.at(uint64_t{x} << 32 | y);
      for (auto& [to, set] : targets) move(state, std::move(set), to);
    }
    return end;
  }

  const Ir& ir_;
  const ByteClasses& classes_;
  const std::vector<uint8_t>& expand_;
  Budget& budget_;
  Nfa nfa_;
  std::map<std::vector<uint8_t>, uint32_t> set_ids_;

 public:
  int64_t spent_ = 0;
};

}  // namespace

ByteClasses::ByteClasses(const Ir& ir) {
  ByteSet singles;
  count = 1;
  const auto refine = [&](const ByteSet& set) {
    std::array<int, 512> ids;
    ids.fill(-1);
    uint32_t next = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      int& id = ids[size_t{class_of[byte]} * 2 + set[byte]];
      if (id < 0) id = static_cast<int>(next++);
      class_of[byte] = static_cast<uint8_t>(id);
    }
    count = next;
  };
  for (const ExprNode& node : ir.nodes()) {
    if (node.kind == ExprNode::Kind::kBytes) refine(node.bytes);
    for (const char c : node.literal) singles.set(static_cast<uint8_t>(c));
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    if (singles[byte]) refine(ByteSet().set(byte));
  }
}

std::vector<uint8_t> ByteClasses::classes_of(const ByteSet& set) const {
  std::array<bool, 256> seen{};
  std::vector<uint8_t> classes;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (!set[byte] || seen[class_of[byte]]) continue;
    seen[class_of[byte]] = true;
    classes.push_back(class_of[byte]);
  }
  std::sort(classes.begin(), classes.end());
  return classes;
}

Dfa build_dfa(const Ir& ir, Expr expr, const ByteClasses& classes, const std::vector<uint8_t>& expand, Budget& budget) {
  NfaBuilder builder(ir, classes, expand, budget);
  const Nfa nfa = builder.run(expr);
  Dfa dfa = Determiniser(nfa, classes.count, budget).run();
  budget.release(builder.spent_);
  return dfa;
}

}  // namespace lk::grammar
