// SPDX-License-Identifier: Apache-2.0
// AdapterRun: which rows of a batch use which adapter, and the one walk over them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "lk/model/merged_weights.h"
#include "lk/model/resident_adapter.h"

namespace lk {

// Rows [row_begin, row_end) of the batch use `adapter`; null = the bare base model. With `merged` (of that adapter)
// they run on W' where it has one, instead of on W and the rank rows. `dormant` rows of an activated adapter come
// before its activation: they use what it replaces of the base, and none of its deltas.
struct AdapterRun {
  int32_t row_begin = 0, row_end = 0;
  const ResidentAdapter* adapter = nullptr;
  const MergedWeights* merged = nullptr;
  bool dormant = false;
};

// Cuts rows [0, num_rows) into the fewest stretches of rows that use the same thing, and calls apply(thing, begin, end)
// for each: `choose` says what the rows of a run use (a weight, a bias, ...), and values are compared with ==. `runs`
// ascend and are disjoint; rows of no run are the bare base's.
template <class Choose, class Apply>
void for_each_stretch(std::span<const AdapterRun> runs, int64_t num_rows, const Choose& choose, const Apply& apply) {
  const auto bare = choose(AdapterRun{});
  auto current = bare;
  int64_t begin = 0, end = 0;  // of the stretch so far
  const auto extend = [&](const auto& thing, int64_t until) {
    if (until == end) return;
    if (!(thing == current)) {
      if (begin < end) apply(current, begin, end);
      current = thing;
      begin = end;
    }
    end = until;
  };
  for (const AdapterRun& run : runs) {
    extend(bare, run.row_begin);
    extend(choose(run), run.row_end);
  }
  extend(bare, num_rows);
  if (begin < end) apply(current, begin, end);
}

// The parts of `runs` in rows [begin, end), counted from begin.
inline void clip_runs(std::span<const AdapterRun> runs, int64_t begin, int64_t end, std::vector<AdapterRun>& out) {
  out.clear();
  for (const AdapterRun& run : runs) {
    const auto first = static_cast<int32_t>(std::max<int64_t>(run.row_begin, begin) - begin);
    const auto last = static_cast<int32_t>(std::min<int64_t>(run.row_end, end) - begin);
    if (first < last) out.push_back({first, last, run.adapter, run.merged, run.dormant});
  }
}

// The runs of gathered rows: where rows[i] (ascending) lies in a run, i lies in the result's.
inline void gather_runs(std::span<const AdapterRun> runs, std::span<const int32_t> rows, std::vector<AdapterRun>& out) {
  out.clear();
  size_t i = 0;
  for (const AdapterRun& run : runs) {
    while (i < rows.size() && rows[i] < run.row_begin) ++i;
    const size_t first = i;
    while (i < rows.size() && rows[i] < run.row_end) ++i;
    if (first < i)
      out.push_back({static_cast<int32_t>(first), static_cast<int32_t>(i), run.adapter, run.merged, run.dormant});
  }
}

}  // namespace lk
