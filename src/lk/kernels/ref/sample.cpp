// SPDX-License-Identifier: Apache-2.0
#include "lk/kernels/ref/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lk/base/logprobs.h"
#include "lk/kernels/cpu.h"

namespace lk {

bool changes_logits(const SampleArgs& args) {
  return !args.logit_bias.empty() || args.repetition_penalty != 1 || args.presence_penalty != 0 ||
         args.frequency_penalty != 0;
}

void apply_penalties(const SampleArgs& args) {
  // A finite logit stays finite: what a request asks for must not look like damaged weights.
  constexpr float kLargest = std::numeric_limits<float>::max();
  const auto change = [&](float& logit, float changed) {
    if (logit >= -kLargest) logit = std::clamp(changed, -kLargest, kLargest);
  };
  for (const auto& [token, bias] : args.logit_bias)
    if (token >= 0 && token < args.vocab_size) change(args.logits[token], args.logits[token] + bias);
  if (args.repetition_penalty == 1 && args.presence_penalty == 0 && args.frequency_penalty == 0) return;
  const auto repetition = static_cast<float>(args.repetition_penalty);
  for (const auto& [token, count] : args.seen) {
    if (token < 0 || token >= args.vocab_size) continue;
    float& logit = args.logits[token];
    if (args.repetition_penalty != 1) change(logit, logit > 0 ? logit / repetition : logit * repetition);
    if (count > 0)
      change(logit,
             logit - static_cast<float>(args.presence_penalty + args.frequency_penalty * static_cast<double>(count)));
  }
}

int32_t draw_from_sorted(const SampleArgs& args, std::span<const Candidate> candidates, std::vector<double>& weights) {
  const auto max = static_cast<double>(candidates.front().logit);
  weights.clear();
  double total = 0;
  for (const Candidate& candidate : candidates) {
    weights.push_back(std::exp((static_cast<double>(candidate.logit) - max) / args.temperature));
    total += weights.back();
  }
  size_t kept = 0;
  double kept_total = 0;
  while (kept < weights.size()) {
    if (kept > 0 && (kept_total >= args.top_p * total || weights[kept] < args.min_p || weights[kept] <= 0)) break;
    kept_total += weights[kept++];
  }
  double left = args.uniform * kept_total;
  for (size_t i = 0; i < kept; ++i)
    if ((left -= weights[i]) < 0) return candidates[i].token;
  return candidates[kept - 1].token;
}

namespace ref {
namespace {

// The whole distribution, in the order of ids: no list of candidates, weights rounded to f32.
int32_t draw_by_ids(const SampleArgs& args, double max) {
  const double inverse_temperature = 1 / args.temperature;
  const auto weight = [&](int64_t token) {
    const double d = (static_cast<double>(args.logits[token]) - max) * inverse_temperature;
    return static_cast<double>(std::exp(static_cast<float>(d)));
  };
  double total = 0;
  for (int64_t token = 0; token < args.vocab_size; ++token) total += weight(token);
  double left = args.uniform * total;
  int32_t last = 0;
  for (int64_t token = 0; token < args.vocab_size; ++token) {
    const double w = weight(token);
    if (w <= 0) continue;
    last = static_cast<int32_t>(token);
    if ((left -= w) < 0) break;
  }
  return last;
}

}  // namespace

int32_t draw(const SampleArgs& args) {
  std::vector<Candidate> candidates;
  for (int64_t token = 0; token < args.vocab_size; ++token)
    candidates.push_back({args.logits[token], static_cast<int32_t>(token)});
  if (args.top_k == 0 && args.top_p >= 1 && args.min_p <= 0)
    return draw_by_ids(args, static_cast<double>(std::min_element(candidates.begin(), candidates.end())->logit));
  std::sort(candidates.begin(), candidates.end());
  if (args.top_k > 0 && args.top_k < args.vocab_size) candidates.resize(static_cast<size_t>(args.top_k));
  std::vector<double> weights;
  return draw_from_sorted(args, candidates, weights);
}

void sample(const SampleArgs& args, SampleResult* result) {
  *result = {};
  const std::vector<float> given(args.logits, args.logits + args.vocab_size);
  const auto fault = [&] {
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t token = 0; token < args.vocab_size; ++token) {
      const auto logit = static_cast<double>(args.logits[token]);
      if (std::isnan(logit) || logit == std::numeric_limits<double>::infinity()) return SampleFault::kNotFinite;
      largest = std::max(largest, logit);
    }
    return std::isinf(largest) ? SampleFault::kNotAllowed : SampleFault::kNone;
  };
  if (fault() != SampleFault::kNone) {
    result->fault = SampleFault::kNotFinite;
    return;
  }
  result->token = args.given;
  if (args.given < 0) {
    apply_penalties(args);
    if (args.allowed)
      for (int64_t token = 0; token < args.vocab_size; ++token)
        if ((args.allowed[token / 64] >> (token % 64) & 1) == 0)
          args.logits[token] = -std::numeric_limits<float>::infinity();
    if ((result->fault = fault()) != SampleFault::kNone) return;
    result->token = static_cast<int32_t>(std::max_element(args.logits, args.logits + args.vocab_size) - args.logits);
    if (args.temperature != 0) result->token = draw(args);
  }
  if (!wants_logprobs(args.num_logprobs)) return;
  std::vector<Candidate> order;
  for (size_t token = 0; token < given.size(); ++token) order.push_back({given[token], static_cast<int32_t>(token)});
  std::sort(order.begin(), order.end());
  double sum = 0;
  const auto max = static_cast<double>(order[0].logit);
  for (const Candidate& candidate : order) sum += std::exp(static_cast<double>(candidate.logit) - max);
  const double log_sum = max + std::log(sum);
  const float logit = given[static_cast<size_t>(result->token)];
  result->logprob = static_cast<float>(static_cast<double>(logit) - log_sum);
  result->rank = 1 + std::count_if(given.begin(), given.end(), [&](float other) { return other > logit; });
  if (args.num_logprobs == kLogprobsOfBiased)
    for (const auto& [token, bias] : args.logit_bias)
      if (token >= 0 && token < args.vocab_size)
        result->top.emplace_back(token,
                                 static_cast<float>(static_cast<double>(given[static_cast<size_t>(token)]) - log_sum));
  for (size_t i = 0; i < std::min(order.size(), static_cast<size_t>(std::max(args.num_logprobs, 0))); ++i)
    result->top.emplace_back(order[i].token, static_cast<float>(static_cast<double>(order[i].logit) - log_sum));
}

}  // namespace ref
}  // namespace lk
