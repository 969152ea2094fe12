// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/machine.h"

#include <algorithm>

#include "lk/base/check.h"

namespace lk::grammar {
namespace {

// A grammar so ambiguous that more items are alive at once loses some of its texts: never a wrong one, and never all.
constexpr size_t kMaxKernel = 64;

// Finds the position of a key in a list that mostly has a few entries.
class SmallIndex {
 public:
  // The position of `key`, or `next` after noting the key for that position.
  uint32_t find_or_add(uint64_t key, uint32_t next) {
    if (keys_.size() < kFew) {
      for (const auto& [known, position] : keys_) {
        if (known == key) return position;
      }
      keys_.emplace_back(key, next);
      if (keys_.size() == kFew) map_.insert(keys_.begin(), keys_.end());
      return next;
    }
    return map_.try_emplace(key, next).first->second;
  }

 private:
  static constexpr size_t kFew = 16;
  std::vector<std::pair<uint64_t, uint32_t>> keys_;
  std::unordered_map<uint64_t, uint32_t> map_;
};

// Computes what follows from a set of items without a byte: returns from rules that end, then calls.
class Closure {
 public:
  Closure(const Automaton& a, Arena& arena) : a_(a), arena_(arena) {}

  StateId run(const std::vector<Item>& items) {
    size_t done = 0;
    for (const Item& item : items) {
      if (work_.size() >= kMaxKernel) break;  // what is kept is kept whole
      add(item, true);
      for (; done < work_.size(); ++done) leave(work_[done].item);
    }
    for (const Work& work : work_) {
      if (work.kernel) state_.kernel.push_back(work.item);
    }
    std::sort(state_.kernel.begin(), state_.kernel.end());
    if (state_.kernel.empty() && !state_.ends) return kDead;
    if (const auto known = arena_.find_state(state_.kernel, state_.ends)) return *known;
    for (const Work& work : work_) call(work.item.node, {work.item.frame, false}, arena_.frame(work.item.frame).depth);
    for (size_t k = 0; k < inner_.size(); ++k)
      call(inner_[k].first, {inner_[k].second, true}, temps_[inner_[k].second].depth);
    finish();
    state_.next.assign(a_.num_classes, kUnknown);
    return arena_.add_state(std::move(state_));
  }

 private:
  struct Work {
    Item item;
    bool kernel;
  };
  struct Ref {
    uint32_t frame;
    bool temp;
    bool operator==(const Ref&) const = default;
  };
  struct Temp {  // a frame in the making
    RuleId rule;
    int depth;
    std::vector<std::pair<uint32_t, Ref>> returns;
  };

  bool fits(int depth, uint32_t node) const { return depth + a_.height[node] <= kMaxOpenCalls; }

  void add(const Item& item, bool kernel) {
    const auto next = static_cast<uint32_t>(work_.size());
    const uint32_t at = work_index_.find_or_add(uint64_t{item.node} << 32 | item.frame, next);
    if (at == next) {
      work_.push_back({item, kernel});
    } else {
      work_[at].kernel |= kernel;
    }
  }

  // Ends the rule of an item on a finished frame, and steps over calls of rules that may be empty.
  void leave(const Item item) {
    if (a_.accepts[item.node]) {
      if (item.frame == kBottom) state_.ends = true;
      for (const Item& back : arena_.frame(item.frame).returns) add(back, true);
    }
    const int depth = arena_.frame(item.frame).depth;
    for (const Automaton::Call& call : a_.calls_of(item.node)) {
      if (call.tail) {
        if (fits(depth, a_.start[call.rule])) add({a_.start[call.rule], item.frame}, false);
      }
      if (a_.nullable[call.rule] && fits(depth, call.target)) add({call.target, item.frame}, false);
    }
  }

  void call(uint32_t node, Ref frame, int depth) {
    if (a_.moves[node]) shift_.emplace_back(node, frame);
    state_.depth = std::max(state_.depth, depth);
    for (const Automaton::Call& call : a_.calls_of(node)) {
      const uint32_t start = a_.start[call.rule];
      if (!fits(depth, call.target)) continue;
      if (frame.temp) {  // for finished frames leave() did these
        if (call.tail && fits(depth, start)) add_inner(start, frame.frame);
        if (a_.nullable[call.rule]) add_inner(call.target, frame.frame);
      }
      if (call.tail || !fits(depth + 1, start)) continue;
      Temp& callee = temps_[find_temp(call.rule, depth + 1, start)];
      const std::pair<uint32_t, Ref> back{call.target, frame};
      if (std::find(callee.returns.begin(), callee.returns.end(), back) == callee.returns.end())
        callee.returns.push_back(back);
    }
  }

  size_t find_temp(RuleId rule, int depth, uint32_t start) {
    const auto next = static_cast<uint32_t>(temps_.size());
    const uint32_t at = temp_index_.find_or_add(uint64_t{rule} << 32 | static_cast<uint32_t>(depth), next);
    if (at == next) {
      temps_.push_back({rule, depth, {}});
      add_inner(start, at);
    }
    return at;
  }

  void add_inner(uint32_t node, uint32_t temp) {
    const auto next = static_cast<uint32_t>(inner_.size());
    if (inner_index_.find_or_add(uint64_t{node} << 32 | temp, next) == next) inner_.emplace_back(node, temp);
  }

  // Interns the frames, outer ones first, and collects the items that move on.
  void finish() {
    std::vector<uint32_t> order(temps_.size());
    for (uint32_t k = 0; k < order.size(); ++k) order[k] = k;
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t x, uint32_t y) { return temps_[x].depth < temps_[y].depth; });
    std::vector<FrameId> ids(temps_.size());
    const auto id_of = [&](Ref ref) { return ref.temp ? ids[ref.frame] : ref.frame; };
    for (const uint32_t k : order) {
      std::vector<Item> returns;
      for (const auto& [node, ref] : temps_[k].returns) returns.push_back({node, id_of(ref)});
      ids[k] = arena_.intern_frame(std::move(returns));
    }
    for (const auto& [node, ref] : shift_) state_.shift.push_back({node, id_of(ref)});
    std::sort(state_.shift.begin(), state_.shift.end());
    state_.shift.erase(std::unique(state_.shift.begin(), state_.shift.end()), state_.shift.end());
  }

  const Automaton& a_;
  Arena& arena_;
  Arena::State state_;
  std::vector<Work> work_;
  std::vector<Temp> temps_;
  std::vector<std::pair<uint32_t, uint32_t>> inner_;  // node, temp
  std::vector<std::pair<uint32_t, Ref>> shift_;
  SmallIndex work_index_, temp_index_, inner_index_;
};

}  // namespace

StateId Machine::close(Arena& arena, const std::vector<Item>& items) const { return Closure(a_, arena).run(items); }

StateId Machine::start(Arena& arena, uint32_t node) const { return close(arena, {{node, kBottom}}); }

StateId Machine::move(Arena& arena, StateId from, uint8_t c) const {
  std::vector<Item> items;
  for (const Item& item : arena.state(from).shift) {
    const uint32_t to = a_.next[size_t{item.node} * a_.num_classes + c];
    if (to != kNoNode && arena.frame(item.frame).depth + a_.height[to] <= kMaxOpenCalls)
      items.push_back({to, item.frame});
  }
  const StateId to = items.empty() ? kDead : close(arena, items);
  arena.state(from).next[c] = to;
  arena.account(static_cast<int64_t>(32 * items.size()));  // work already done counts as something worth keeping
  return to;
}

StateId Machine::run(Arena& arena, StateId from, std::string_view bytes) const {
  for (const char byte : bytes) {
    if (from == kDead) return kDead;
    from = step(arena, from, static_cast<uint8_t>(byte));
  }
  return from;
}

StateId Machine::migrate(const Arena& from, StateId id, Arena& to) const {
  // Frames are interned after those they return to, so ascending ids are a good order.
  std::vector<FrameId> needed, todo;
  const auto need = [&](FrameId frame) {
    if (std::find(needed.begin(), needed.end(), frame) != needed.end()) return;
    needed.push_back(frame);
    todo.push_back(frame);
  };
  for (const Item& item : from.state(id).kernel) need(item.frame);
  while (!todo.empty()) {
    const FrameId frame = todo.back();
    todo.pop_back();
    for (const Item& back : from.frame(frame).returns) need(back.frame);
  }
  std::sort(needed.begin(), needed.end());
  std::unordered_map<FrameId, FrameId> ids;
  for (const FrameId frame : needed) {
    std::vector<Item> returns = from.frame(frame).returns;
    for (Item& back : returns) back.frame = ids.at(back.frame);
    ids[frame] = frame == kBottom ? kBottom : to.intern_frame(std::move(returns));
  }
  std::vector<Item> kernel = from.state(id).kernel;
  for (Item& item : kernel) item.frame = ids.at(item.frame);
  const StateId moved = close(to, kernel);
  return moved;
}

}  // namespace lk::grammar
