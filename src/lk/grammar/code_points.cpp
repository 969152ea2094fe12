// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/code_points.h"

#include <algorithm>

namespace lk::grammar {

void CodePoints::normalize() {
  constexpr uint32_t kFirstSurrogate = 0xD800, kLastSurrogate = 0xDFFF;
  std::vector<Range> parts;
  for (const auto& [first, last] : ranges) {
    if (first < kFirstSurrogate) parts.emplace_back(first, std::min(last, kFirstSurrogate - 1));
    if (last > kLastSurrogate) parts.emplace_back(std::max(first, kLastSurrogate + 1), std::min(last, kMax));
  }
  std::sort(parts.begin(), parts.end());
  ranges.clear();
  for (const auto& [first, last] : parts) {
    if (first > last) continue;
    if (!ranges.empty() && first <= ranges.back().second + 1) {
      ranges.back().second = std::max(ranges.back().second, last);
    } else {
      ranges.emplace_back(first, last);
    }
  }
}

CodePoints CodePoints::inverted() const {
  CodePoints out;
  uint32_t next = 0;
  for (const auto& [first, last] : ranges) {
    if (first > next) out.add(next, first - 1);
    next = last + 1;
  }
  if (next <= kMax) out.add(next, kMax);
  out.normalize();
  return out;
}

CodePoints CodePoints::both(const CodePoints& other) const {
  CodePoints out;
  for (size_t a = 0, b = 0; a < ranges.size() && b < other.ranges.size();) {
    const uint32_t first = std::max(ranges[a].first, other.ranges[b].first);
    const uint32_t last = std::min(ranges[a].second, other.ranges[b].second);
    if (first <= last) out.add(first, last);
    ranges[a].second < other.ranges[b].second ? ++a : ++b;
  }
  out.normalize();
  return out;
}

CodePoints CodePoints::minus(const CodePoints& other) const { return both(other.inverted()); }

bool CodePoints::contains(uint32_t code_point) const {
  const auto at = std::upper_bound(ranges.begin(), ranges.end(), Range{code_point, kMax});
  return at != ranges.begin() && std::prev(at)->second >= code_point;
}

}  // namespace lk::grammar
