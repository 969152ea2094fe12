// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "lk/base/check.h"
#include "lk/grammar/machine.h"

namespace lk::grammar {

void TokenSet::add_to(std::span<uint64_t> out) const {
  for (size_t k = 0; k < words.size(); ++k) out[k] |= words[k];
  for (const uint32_t token : list) out[token / 64] |= uint64_t{1} << (token % 64);
}

size_t Arena::Hash::operator()(const std::vector<Item>& items) const {
  uint64_t hash = 0x9E3779B97F4A7C15u;
  for (const Item& item : items) {
    hash = (hash ^ (uint64_t{item.node} << 32 | item.frame)) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
  }
  return hash;
}

Arena::Arena() { intern_frame({}); }

std::optional<StateId> Arena::find_state(const std::vector<Item>& kernel, bool ends) const {
  const auto at = state_ids_[ends].find(kernel);
  return at == state_ids_[ends].end() ? std::nullopt : std::optional(at->second);
}

StateId Arena::add_state(State state) {
  const auto id = static_cast<StateId>(states_.size());
  memory_ += static_cast<int64_t>(sizeof(State) + 64 + (2 * state.kernel.size() + state.shift.size()) * sizeof(Item) +
                                  state.next.size() * sizeof(StateId));
  state_ids_[state.ends].emplace(state.kernel, id);
  states_.push_back(std::move(state));
  return id;
}

FrameId Arena::intern_frame(std::vector<Item> returns) {
  std::sort(returns.begin(), returns.end());
  const auto [at, added] = frame_ids_.try_emplace(std::move(returns), static_cast<FrameId>(frames_.size()));
  if (added) {
    memory_ += static_cast<int64_t>(sizeof(Frame) + 64 + 2 * at->first.size() * sizeof(Item));
    const int depth = at->first.empty() ? 0 : frames_[at->first[0].frame].depth + 1;
    frames_.push_back({.returns = at->first, .depth = depth});
  }
  return at->second;
}

}  // namespace lk::grammar
