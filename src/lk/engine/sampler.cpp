// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "lk/base/rng.h"

namespace lk {
namespace {

struct Candidate {
  float logit;
  int32_t token;
  // Most likely first; equal logits by id, so that the order is total.
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : token < other.token;
  }
};

std::vector<Candidate> top_candidates(const float* logits, int64_t vocab_size, int64_t count) {
  std::vector<Candidate> best;  // heap with the least likely of the best in front
  for (int64_t token = 0; token < vocab_size; ++token) {
    if (static_cast<int64_t>(best.size()) == count && !(logits[token] > best.front().logit)) continue;
    best.push_back({logits[token], static_cast<int32_t>(token)});
    std::push_heap(best.begin(), best.end());
    if (static_cast<int64_t>(best.size()) > count) {
      std::pop_heap(best.begin(), best.end());
      best.pop_back();
    }
  }
  std::sort_heap(best.begin(), best.end());
  return best;
}

int32_t argmax(const float* logits, int64_t vocab_size, const Backend& backend) {
  const float max = backend.row_max(logits, vocab_size);
  for (int64_t token = 0; token < vocab_size; ++token)
    if (logits[token] == max) return static_cast<int32_t>(token);
  return 0;  // every logit is NaN
}

void apply_penalties(float* logits, int64_t vocab_size, const SamplingParams& params, std::span<const int32_t> tokens,
                     int64_t prompt_length) {
  for (const auto& [token, bias] : params.logit_bias)
    if (token >= 0 && token < vocab_size) logits[token] += bias;
  if (params.repetition_penalty == 1 && params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  std::unordered_map<int32_t, int64_t> output_count;  // 0 = only in the prompt
  for (size_t i = 0; i < tokens.size(); ++i) output_count[tokens[i]] += static_cast<int64_t>(i) >= prompt_length;
  for (const auto& [token, count] : output_count) {
    if (token < 0 || token >= vocab_size) continue;
    float& logit = logits[token];
    if (params.repetition_penalty != 1) {
      const auto penalty = static_cast<float>(params.repetition_penalty);
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
    if (count > 0)
      logit -= static_cast<float>(params.presence_penalty + params.frequency_penalty * static_cast<double>(count));
  }
}

// Draws from the whole distribution: no candidate list, no sort.
int32_t draw_from_all(const float* logits, int64_t vocab_size, double inverse_temperature, double u,
                      const Backend& backend) {
  const auto max = static_cast<double>(backend.row_max(logits, vocab_size));
  std::vector<float> weight(static_cast<size_t>(vocab_size));
  double total = 0;
  for (int64_t token = 0; token < vocab_size; ++token) {
    const float w = std::exp(static_cast<float>((static_cast<double>(logits[token]) - max) * inverse_temperature));
    weight[static_cast<size_t>(token)] = w;
    total += w;
  }
  double left = u * total;
  int32_t last = 0;
  for (int64_t token = 0; token < vocab_size; ++token) {
    const double w = weight[static_cast<size_t>(token)];
    if (w <= 0) continue;
    last = static_cast<int32_t>(token);
    if ((left -= w) < 0) break;
  }
  return last;
}

int32_t draw_from_candidates(std::vector<Candidate>& candidates, const SamplingParams& params, double u) {
  const double max = candidates.front().logit;
  std::vector<double> weight;
  double total = 0;
  for (const Candidate& candidate : candidates) {
    weight.push_back(std::exp((candidate.logit - max) / params.temperature));
    total += weight.back();
  }
  // top-p keeps the smallest set of most likely tokens that reaches p, at least one; min-p is relative to the
  // likeliest.
  size_t kept = 0;
  double kept_total = 0;
  while (kept < weight.size()) {
    if (kept > 0 && (kept_total >= params.top_p * total || weight[kept] < params.min_p || weight[kept] <= 0)) break;
    kept_total += weight[kept++];
  }
  double left = u * kept_total;
  for (size_t i = 0; i < kept; ++i)
    if ((left -= weight[i]) < 0) return candidates[i].token;
  return candidates[kept - 1].token;
}

}  // namespace

TokenLogprob token_logprob(const float* logits, int64_t vocab_size, int32_t token, int num_top,
                           const Backend& backend) {
  TokenLogprob result{.token = token};
  const float max = backend.row_max(logits, vocab_size);
  const float log_sum = backend.log_sum_exp(logits, vocab_size, max);
  result.logprob = logits[token] - log_sum;
  result.rank = 1 + std::count_if(logits, logits + vocab_size, [&](float logit) { return logit > logits[token]; });
  if (num_top > 0)
    for (const Candidate& candidate : top_candidates(logits, vocab_size, num_top))
      result.top.emplace_back(candidate.token, candidate.logit - log_sum);
  return result;
}

TokenLogprob sample_token(float* logits, int64_t vocab_size, const SamplingParams& params,
                          std::span<const int32_t> tokens, int64_t prompt_length, TokenConstraint* constraint,
                          const Backend& backend) {
  const bool changes_logits = !params.logit_bias.empty() || params.repetition_penalty != 1 ||
                              params.presence_penalty != 0 || params.frequency_penalty != 0;
  // Log-probabilities are the model's own, so the untouched row is kept when both are wanted.
  std::vector<float> raw;
  if ((changes_logits || constraint) && params.num_logprobs >= 0) raw.assign(logits, logits + vocab_size);
  if (changes_logits) apply_penalties(logits, vocab_size, params, tokens, prompt_length);
  if (constraint) constraint->mask({logits, static_cast<size_t>(vocab_size)});

  int32_t token;
  if (params.temperature == 0) {
    token = argmax(logits, vocab_size, backend);
  } else {
    const double u = random_uniform(params.seed, tokens.size() - static_cast<size_t>(prompt_length));
    if (params.top_k == 0 && params.top_p >= 1 && params.min_p <= 0) {
      token = draw_from_all(logits, vocab_size, 1 / params.temperature, u, backend);
    } else {
      std::vector<Candidate> candidates;
      if (params.top_k > 0 && params.top_k < vocab_size) {
        candidates = top_candidates(logits, vocab_size, params.top_k);
      } else {
        for (int64_t id = 0; id < vocab_size; ++id) candidates.push_back({logits[id], static_cast<int32_t>(id)});
        std::sort(candidates.begin(), candidates.end());
      }
      token = draw_from_candidates(candidates, params, u);
    }
  }
  if (params.num_logprobs < 0) return {.token = token};
  return token_logprob(raw.empty() ? logits : raw.data(), vocab_size, token, params.num_logprobs, backend);
}

}  // namespace lk
