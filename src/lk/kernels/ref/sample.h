// SPDX-License-Identifier: Apache-2.0
// The definition of a draw, step by step. kernels/sample.cpp takes from it what is cheap.
#pragma once

#include <span>
#include <vector>

#include "lk/kernels/args.h"

namespace lk {

struct Candidate {
  float logit;
  int32_t token;
  // Most likely first; equal logits by id, so that the order is total.
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : token < other.token;
  }
};

bool changes_logits(const SampleArgs& args);   // a bias or a penalty is set
void apply_penalties(const SampleArgs& args);  // to args.logits: bias, then repetition, presence, frequency
// Top-p and min-p, then the draw, over the candidates that are left (sorted, at least one). weights: scratch.
int32_t draw_from_sorted(const SampleArgs& args, std::span<const Candidate> candidates, std::vector<double>& weights);

namespace ref {
// From args.logits as penalties and mask left them, some of them finite. Requires: temperature > 0.
int32_t draw(const SampleArgs& args);
}  // namespace ref

}  // namespace lk
