// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/ir.h"

#include <algorithm>

#include "lk/base/check.h"
#include "lk/grammar/code_points.h"

namespace lk::grammar {
namespace {

ByteSet byte_range(uint32_t first, uint32_t last) {
  ByteSet set;
  for (uint32_t byte = first; byte <= last; ++byte) set.set(byte);
  return set;
}

// Splits [first, last] where the encodings have the same length and all continuation bytes but one are free.
void add_utf8(Ir& ir, uint32_t first, uint32_t last, std::vector<Expr>& out) {
  constexpr uint32_t kLengthEnds[] = {0x7F, 0x7FF, 0xFFFF};
  for (const uint32_t end : kLengthEnds) {
    if (first <= end && last > end) {
      add_utf8(ir, first, end, out);
      return add_utf8(ir, end + 1, last, out);
    }
  }
  for (uint32_t bits = 6; bits <= 18 && last > 0x7F; bits += 6) {
    const uint32_t mask = (1u << bits) - 1;
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      add_utf8(ir, first, first | mask, out);
      return add_utf8(ir, (first | mask) + 1, last, out);
    }
    if ((last & mask) != mask) {
      add_utf8(ir, first, (last & ~mask) - 1, out);
      return add_utf8(ir, last & ~mask, last, out);
    }
  }
  if (last <= 0x7F) return out.push_back(ir.bytes(byte_range(first, last)));
  const int following = last <= 0x7FF ? 1 : last <= 0xFFFF ? 2 : 3;
  const uint32_t lead = following == 1 ? 0xC0 : following == 2 ? 0xE0 : 0xF0;
  std::vector<Expr> parts;
  for (int k = following; k >= 0; --k) {
    const uint32_t from = first >> (6 * k), to = last >> (6 * k);
    parts.push_back(ir.bytes(k == following ? byte_range(lead | from, lead | to)
                                            : byte_range(0x80 | (from & 0x3F), 0x80 | (to & 0x3F))));
  }
  out.push_back(ir.seq(std::move(parts)));
}

}  // namespace

Ir::Ir() {
  add({.kind = ExprNode::Kind::kEmpty});
  add({.kind = ExprNode::Kind::kNever});
}

Expr Ir::add(ExprNode node) {
  memory_ += static_cast<int64_t>(sizeof(ExprNode) + node.children.size() * sizeof(Expr) + node.literal.size() +
                                  node.edges.size() * sizeof(ExprNode::Edge));
  nodes_.push_back(std::move(node));
  return static_cast<Expr>(nodes_.size() - 1);
}

Expr Ir::bytes(const ByteSet& set) {
  if (set.none()) return never();
  const auto [at, added] = byte_sets_.try_emplace(set, 0);
  if (added) at->second = add({.kind = ExprNode::Kind::kBytes, .bytes = set});
  return at->second;
}

Expr Ir::literal(std::string_view text) {
  if (text.empty()) return empty();
  return add({.kind = ExprNode::Kind::kLiteral, .literal = std::string(text)});
}

Expr Ir::seq(std::vector<Expr> parts) {
  std::erase(parts, empty());
  if (std::find(parts.begin(), parts.end(), never()) != parts.end()) return never();
  if (parts.empty()) return empty();
  if (parts.size() == 1) return parts[0];
  return add({.kind = ExprNode::Kind::kSeq, .children = std::move(parts)});
}

Expr Ir::alt(std::vector<Expr> parts) {
  std::erase(parts, never());
  if (parts.empty()) return never();
  if (parts.size() == 1) return parts[0];
  return add({.kind = ExprNode::Kind::kAlt, .children = std::move(parts)});
}

Expr Ir::repeat(Expr part, int min, int max) {
  if (max == 0 || part == empty()) return empty();
  if (min == 1 && max == 1) return part;
  if (const int count = std::max(min, max); count > largest_.number) note_count(count, "a repetition");
  return add({.kind = ExprNode::Kind::kRepeat, .min = min, .max = max, .children = {part}});
}

Expr Ir::both(Expr a, Expr b) { return add({.kind = ExprNode::Kind::kBoth, .children = {a, b}}); }
Expr Ir::difference(Expr a, Expr b) { return add({.kind = ExprNode::Kind::kDifference, .children = {a, b}}); }

Expr Ir::graph(int num_states, std::vector<ExprNode::Edge> edges) {
  return add({.kind = ExprNode::Kind::kGraph, .min = num_states, .edges = std::move(edges)});
}

Expr Ir::call(RuleId rule) { return add({.kind = ExprNode::Kind::kRule, .rule = rule}); }

Expr Ir::code_points(const CodePoints& set) {
  const auto [at, added] = code_point_sets_.try_emplace(set.ranges, 0);
  if (added) {
    ByteSet ascii;  // one class of bytes instead of many branches
    std::vector<Expr> parts;
    for (const auto& [first, last] : set.ranges) {
      if (first <= 0x7F) ascii |= byte_range(first, std::min(last, 0x7Fu));
      if (last > 0x7F) add_utf8(*this, std::max(first, 0x80u), last, parts);
    }
    parts.push_back(bytes(ascii));
    at->second = alt(std::move(parts));
  }
  return at->second;
}

RuleId Ir::add_rule(std::string name, bool shared) {
  rules_.push_back({.name = std::move(name), .body = never(), .shared = shared});
  memory_ += static_cast<int64_t>(sizeof(Rule));
  return static_cast<RuleId>(rules_.size() - 1);
}

void Ir::define(RuleId rule, Expr body) {
  LK_CHECK(!rules_[rule].defined, "rule {} is defined twice", rules_[rule].name);
  rules_[rule].body = body;
  rules_[rule].defined = true;
}

}  // namespace lk::grammar
