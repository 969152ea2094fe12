// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/automaton.h"

#include <algorithm>
#include <queue>
#include <unordered_set>

#include "lk/grammar/dfa.h"

namespace lk::grammar {
namespace {

// Which rules are reached from the root, which of them call themselves, and how large each is when expanded.
// Expressions share parts, so every walk here meets an expression once, however many ways lead to it: as trees they may
// be exponentially larger than the grammar. Whatever loops is charged to the budget.
class RuleGraph {
 public:
  RuleGraph(const Ir& ir, RuleId root, Budget& budget)
      : ir_(ir), budget_(budget), info_(ir.num_rules()), seen_(ir.nodes().size(), 0), times_(seen_.size(), 0) {
    visit(root);
  }

  struct Info {
    bool reached = false, done = false, recursive = false;
    int64_t size = 0;
    int nesting = 0;  // of expanded rules in one another
    int64_t uses = 0;
  };
  const Info& operator[](RuleId rule) const { return info_[rule]; }
  std::vector<uint8_t> expand(RuleId root) const {
    std::vector<uint8_t> out(info_.size());
    for (RuleId rule = 0; rule < info_.size(); ++rule)
      out[rule] = rule != root && info_[rule].reached && expandable(rule);
    return out;
  }

 private:
  static constexpr int64_t kAlwaysExpanded = 128;  // bytes of text, about
  static constexpr int kMaxNesting = 8;            // expansion is recursive
  static constexpr int64_t kHuge = int64_t{1} << 40;
  static int64_t capped_product(int64_t a, int64_t b) { return a > kHuge / std::max<int64_t>(b, 1) ? kHuge : a * b; }

  bool expandable(RuleId rule) const {
    const Info& info = info_[rule];
    return !ir_.rule(rule).shared && !info.recursive && info.nesting < kMaxNesting &&
           (info.size <= kAlwaysExpanded || info.uses == 1);
  }

  // Depth first without recursion: a rule is done after the rules it calls; one that is met while open calls itself.
  void visit(RuleId root) {
    struct Open {
      RuleId rule;
      std::vector<RuleId> callees;
      size_t next = 0;
    };
    std::vector<Open> open;
    const auto enter = [&](RuleId rule) {
      info_[rule].reached = true;
      open.push_back({rule, callees(rule)});
    };
    enter(root);
    while (!open.empty() && budget_.ok()) {
      Open& top = open.back();
      if (top.next < top.callees.size()) {
        const RuleId callee = top.callees[top.next++];
        if (!info_[callee].reached) {
          enter(callee);
        } else if (!info_[callee].done) {
          // A cycle: all its rules are on the stack from the callee on. Marking the callee breaks every such cycle.
          info_[callee].recursive = true;
        }
        continue;
      }
      info_[top.rule].done = true;
      measure(top.rule);
      open.pop_back();
    }
  }

  // The expressions of a rule's body, each once and after its parts: a part is always older, so of a smaller index.
  std::vector<Expr> parts(RuleId rule) {
    std::vector<Expr> found;
    ++walk_;
    const auto meet = [&](Expr expr) {
      if (seen_[expr] == walk_) return;
      seen_[expr] = walk_;
      times_[expr] = 0;
      found.push_back(expr);
    };
    meet(ir_.rule(rule).body);
    for (size_t k = 0; k < found.size() && budget_.spend(0); ++k) {
      const ExprNode& node = ir_.node(found[k]);
      for (const Expr child : node.children) meet(child);
      for (const auto& edge : node.edges) meet(edge.expr);
    }
    std::ranges::sort(found);
    return found;
  }

  // The rules called by this one, each once; counts their uses, as many as there are when all is written out.
  std::vector<RuleId> callees(RuleId rule) {
    std::vector<RuleId> called;
    const std::vector<Expr> all = parts(rule);
    if (!budget_.ok()) return called;
    times_[all.back()] = 1;  // the body, which is the newest
    for (size_t k = all.size(); k-- > 0;) {
      const ExprNode& node = ir_.node(all[k]);
      const auto use = [&](int64_t& count) { count = std::min(kHuge, count + times_[all[k]]); };
      for (const Expr child : node.children) use(times_[child]);
      for (const auto& edge : node.edges) use(times_[edge.expr]);
      if (node.kind != ExprNode::Kind::kRule) continue;
      use(info_[node.rule].uses);
      called.push_back(node.rule);
    }
    std::ranges::sort(called);
    called.erase(std::ranges::unique(called).begin(), called.end());
    return called;
  }

  // Size and nesting of a rule, from those of the rules it calls.
  void measure(RuleId rule) {
    Info& info = info_[rule];
    std::vector<int64_t>& size = times_;
    for (const Expr expr : parts(rule)) {
      const ExprNode& node = ir_.node(expr);
      if (node.kind == ExprNode::Kind::kRule) {
        const Info& callee = info_[node.rule];
        const bool expanded = callee.done && expandable(node.rule);
        if (expanded) info.nesting = std::max(info.nesting, callee.nesting);
        size[expr] = expanded ? callee.size : 1;
        continue;
      }
      int64_t total = 1 + static_cast<int64_t>(node.literal.size());
      for (const Expr child : node.children) total = std::min(kHuge, total + size[child]);
      for (const auto& edge : node.edges) total = std::min(kHuge, total + size[edge.expr]);
      if (node.kind == ExprNode::Kind::kRepeat) total = capped_product(total, std::max({1, node.min, node.max}));
      size[expr] = total;
    }
    info.size = size[ir_.rule(rule).body];
    ++info.nesting;
  }

  const Ir& ir_;
  Budget& budget_;
  std::vector<Info> info_;
  uint32_t walk_ = 0;
  std::vector<uint32_t> seen_;  // [expr] by which walk, the last one
  std::vector<int64_t> times_;  // [expr] of that walk: how often it is written out, or its size
};

// Open calls that each node needs to reach the end of its rule; kNoNode if it never does. Settles nodes in order of
// that number.
std::vector<uint32_t> heights(const Automaton& a, const std::vector<std::vector<Automaton::Call>>& calls) {
  const size_t num_nodes = a.accepts.size();
  struct Use {
    uint32_t node, call;
  };
  std::vector<std::vector<uint32_t>> before(num_nodes);
  std::vector<std::vector<Use>> callers(a.start.size()), returns(num_nodes);
  for (uint32_t node = 0; node < num_nodes; ++node) {
    uint32_t last = kNoNode;
    for (uint32_t c = 0; c < a.num_classes; ++c) {
      const uint32_t to = a.next[size_t{node} * a.num_classes + c];
      if (to != kNoNode && to != last) before[to].push_back(node);
      last = to;
    }
    for (uint32_t k = 0; k < calls[node].size(); ++k) {
      callers[calls[node][k].rule].push_back({node, k});
      returns[calls[node][k].target].push_back({node, k});
    }
  }
  std::vector<RuleId> rule_at(num_nodes, kNoNode);
  for (RuleId rule = 0; rule < a.start.size(); ++rule) {
    if (a.start[rule] != kNoNode) rule_at[a.start[rule]] = rule;
  }
  std::vector<uint32_t> height(num_nodes, kNoNode);
  using Entry = std::pair<uint32_t, uint32_t>;  // height, node
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
  for (uint32_t node = 0; node < num_nodes; ++node) {
    if (a.accepts[node]) queue.emplace(0, node);
  }
  const auto try_call = [&](const Use& use) {
    const Automaton::Call& call = calls[use.node][use.call];
    const uint32_t inside = height[a.start[call.rule]], after = height[call.target];
    if (inside != kNoNode && after != kNoNode) queue.emplace(std::max(inside + (call.tail ? 0 : 1), after), use.node);
  };
  while (!queue.empty()) {
    const auto [value, node] = queue.top();
    queue.pop();
    if (height[node] != kNoNode) continue;
    height[node] = value;
    for (const uint32_t previous : before[node]) queue.emplace(value, previous);
    for (const Use& use : returns[node]) try_call(use);
    if (rule_at[node] != kNoNode) {
      for (const Use& use : callers[rule_at[node]]) try_call(use);
    }
  }
  return height;
}

void find_nullable(Automaton& a, const std::vector<std::vector<Automaton::Call>>& calls, Budget& budget) {
  a.nullable.assign(a.start.size(), 0);
  for (bool changed = true; changed && budget.ok();) {
    changed = false;
    for (RuleId rule = 0; rule < a.start.size(); ++rule) {
      if (a.nullable[rule] || a.start[rule] == kNoNode) continue;
      std::vector<uint32_t> todo{a.start[rule]};
      std::unordered_set<uint32_t> seen{a.start[rule]};
      while (!todo.empty() && !a.nullable[rule] && budget.spend(0)) {
        const uint32_t node = todo.back();
        todo.pop_back();
        a.nullable[rule] = a.accepts[node];
        for (const Automaton::Call& call : calls[node]) {
          if (!a.nullable[call.rule] || !seen.insert(call.target).second) continue;
          todo.push_back(call.target);
        }
      }
      changed |= a.nullable[rule] != 0;
    }
  }
}

// Nodes that stand beside a node before any byte, for each node: what one step of a text costs. False if too many.
bool fan_out_fits(const Automaton& a, Budget& budget) {
  constexpr size_t kMaxFanOut = 1024;
  std::vector<uint32_t> mark(a.num_nodes(), kNoNode), todo;
  for (uint32_t from = 0; from < a.num_nodes() && budget.ok(); ++from) {
    if (a.calls_of(from).empty()) continue;
    todo.assign(1, from);
    mark[from] = from;
    for (size_t k = 0; k < todo.size(); ++k) {
      if (todo.size() > kMaxFanOut) return false;
      const auto visit = [&](uint32_t node) {
        if (mark[node] == from) return;
        mark[node] = from;
        todo.push_back(node);
      };
      for (const Automaton::Call& call : a.calls_of(todo[k])) {
        visit(a.start[call.rule]);
        if (a.nullable[call.rule]) visit(call.target);
      }
    }
    budget.spend(0);
  }
  return true;
}

// A rule that can call itself before any byte, or kNoNode.
RuleId find_left_recursion(const Automaton& a, Budget& budget) {
  const size_t num_rules = a.start.size();
  std::vector<std::vector<RuleId>> first(num_rules);
  for (RuleId rule = 0; rule < num_rules; ++rule) {
    if (a.start[rule] == kNoNode) continue;
    std::vector<uint32_t> todo{a.start[rule]};
    std::unordered_set<uint32_t> seen{a.start[rule]};
    while (!todo.empty() && budget.spend(0)) {
      const uint32_t node = todo.back();
      todo.pop_back();
      for (const Automaton::Call& call : a.calls_of(node)) {
        first[rule].push_back(call.rule);
        if (!a.nullable[call.rule] || !seen.insert(call.target).second) continue;
        todo.push_back(call.target);
      }
    }
  }
  enum : uint8_t { kNew, kOpen, kDone };
  std::vector<uint8_t> state(num_rules, kNew);
  for (RuleId root = 0; root < num_rules; ++root) {
    if (state[root] != kNew) continue;
    std::vector<std::pair<RuleId, size_t>> open{{root, 0}};
    state[root] = kOpen;
    while (!open.empty()) {
      const RuleId rule = open.back().first;
      if (open.back().second == first[rule].size()) {
        state[rule] = kDone;
        open.pop_back();
        continue;
      }
      const RuleId callee = first[rule][open.back().second++];
      if (state[callee] == kOpen) return callee;
      if (state[callee] == kNew) {
        state[callee] = kOpen;
        open.emplace_back(callee, 0);
      }
    }
  }
  return kNoNode;
}

// Takes out what never ends, so that whatever is alive can be finished.
void prune(Automaton& a, std::vector<std::vector<Automaton::Call>>& calls) {
  const std::vector<uint32_t> height = heights(a, calls);
  const auto dead = [&](uint32_t node) { return height[node] > static_cast<uint32_t>(kMaxOpenCalls); };
  for (uint32_t& to : a.next) {
    if (to != kNoNode && dead(to)) to = kNoNode;
  }
  a.call_begin.assign(1, 0);
  a.moves.assign(a.num_nodes(), 0);
  a.height.assign(a.num_nodes(), 0);
  for (uint32_t node = 0; node < a.num_nodes(); ++node) {
    for (const Automaton::Call& call : calls[node]) {
      if (!dead(node) && !dead(call.target) && !dead(a.start[call.rule])) a.calls.push_back(call);
    }
    a.call_begin.push_back(static_cast<uint32_t>(a.calls.size()));
    const auto row = a.next.begin() + static_cast<std::ptrdiff_t>(size_t{node} * a.num_classes);
    a.moves[node] = std::any_of(row, row + a.num_classes, [](uint32_t to) { return to != kNoNode; });
    if (dead(node)) continue;
    a.height[node] = static_cast<uint16_t>(height[node]);
    a.max_height = std::max(a.max_height, static_cast<int>(height[node]));
  }
}

}  // namespace

int64_t Automaton::memory() const {
  return static_cast<int64_t>(sizeof(*this) + next.size() * sizeof(uint32_t) + num_nodes() * (4 + sizeof(uint32_t)) +
                              calls.size() * sizeof(Call) + start.size() * 5);
}

Result<Automaton> build_automaton(const Ir& ir, RuleId root, Budget& budget) {
  budget.spend(ir.memory());
  LK_RETURN_IF_ERROR(budget.status());
  const RuleGraph graph(ir, root, budget);
  LK_RETURN_IF_ERROR(budget.status());
  for (RuleId rule = 0; rule < ir.num_rules(); ++rule) {
    if (graph[rule].reached && !ir.rule(rule).defined)
      return invalid_argument("rule \"{}\" is not defined", ir.rule(rule).name);
  }
  const ByteClasses classes(ir);
  const std::vector<uint8_t> expand = graph.expand(root);
  Automaton a;
  a.num_classes = classes.count;
  a.class_of = classes.class_of;
  a.root = root;
  a.start.assign(ir.num_rules(), kNoNode);
  std::vector<std::vector<Automaton::Call>> calls;
  for (RuleId rule = 0; rule < ir.num_rules(); ++rule) {
    if (!graph[rule].reached || expand[rule]) continue;
    const Dfa dfa = build_dfa(ir, ir.rule(rule).body, classes, expand, budget);
    LK_RETURN_IF_ERROR(budget.status());
    const auto offset = static_cast<uint32_t>(a.num_nodes());
    a.start[rule] = offset;
    for (const uint32_t to : dfa.next) a.next.push_back(to == kNoNode ? kNoNode : to + offset);
    a.accepts.insert(a.accepts.end(), dfa.accepts.begin(), dfa.accepts.end());
    for (const auto& list : dfa.calls) {
      calls.emplace_back();
      for (const auto& [callee, target] : list) calls.back().push_back({callee, target + offset, false});
    }
  }
  for (auto& list : calls) {
    for (Automaton::Call& call : list) {
      const auto row = a.next.begin() + static_cast<std::ptrdiff_t>(size_t{call.target} * a.num_classes);
      call.tail = a.accepts[call.target] && calls[call.target].empty() &&
                  std::all_of(row, row + a.num_classes, [](uint32_t to) { return to == kNoNode; });
    }
  }
  prune(a, calls);
  for (uint32_t node = 0; node < a.num_nodes(); ++node) {
    const auto list = a.calls_of(node);
    calls[node].assign(list.begin(), list.end());
  }
  find_nullable(a, calls, budget);
  LK_RETURN_IF_ERROR(budget.status());
  if (const RuleId rule = find_left_recursion(a, budget); rule != kNoNode) {
    return invalid_argument(
        "rule \"{}\" is left-recursive: it can begin with itself before any character; write it with repetition",
        ir.rule(rule).name);
  }
  const uint32_t start = a.start[root];
  if (heights(a, calls)[start] > static_cast<uint32_t>(kMaxOpenCalls))
    return invalid_argument("no text matches the grammar");
  if (!fan_out_fits(a, budget))
    return invalid_argument("the grammar is too complex: more than 1024 places may come next without a character");
  LK_RETURN_IF_ERROR(budget.status());
  return a;
}

}  // namespace lk::grammar
