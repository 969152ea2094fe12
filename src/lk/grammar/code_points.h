// SPDX-License-Identifier: Apache-2.0
// Sets of Unicode code points (surrogates are never members).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

namespace lk::grammar {

struct CodePoints {
  using Range = std::pair<uint32_t, uint32_t>;  // inclusive
  static constexpr uint32_t kMax = 0x10FFFF;
  std::vector<Range> ranges;  // sorted, apart, without surrogates; after normalize()

  CodePoints() = default;
  CodePoints(std::initializer_list<Range> list) : ranges(list) { normalize(); }
  static CodePoints all() { return {{0, kMax}}; }
  void add(uint32_t first, uint32_t last) { ranges.emplace_back(first, last); }  // normalize() afterwards
  void add(const CodePoints& other) { ranges.insert(ranges.end(), other.ranges.begin(), other.ranges.end()); }
  void normalize();
  CodePoints inverted() const;
  CodePoints minus(const CodePoints& other) const;
  CodePoints both(const CodePoints& other) const;
  bool contains(uint32_t code_point) const;
};

}  // namespace lk::grammar
