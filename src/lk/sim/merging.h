// SPDX-License-Identifier: Apache-2.0
// The ways of merging that a simulation can compare: the server's choosers, and the fixed rules they are measured
// against, which are no choice for an operator.
#pragma once

#include "lk/merging/chooser.h"

namespace lk::sim {

enum class Merging : uint8_t {
  kNever,
  kAlways,     // merges the adapter with most requests and runs the others beside it
  kExclusive,  // merges the adapter of the oldest request and runs nobody else (dLoRA's "merged-only")
  kDlora,
  kCost
};
Result<Merging> parse_merging(std::string_view text);  // "never", "always", "exclusive", "dlora", "cost"
const char* to_string(Merging merging);
std::unique_ptr<MergeChooser> make_chooser(Merging merging);  // null for kNever

}  // namespace lk::sim
