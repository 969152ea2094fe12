// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace lk {

// A number of log-probabilities (SamplingParams, SampleArgs): those of the tokens that logit_bias names, in its order,
// instead of the most likely ones. A bias of 0 changes nothing.
inline constexpr int kLogprobsOfBiased = -2;

// Whether that number asks for any at all.
constexpr bool wants_logprobs(int num_logprobs) { return num_logprobs >= 0 || num_logprobs == kLogprobsOfBiased; }

}  // namespace lk
