// SPDX-License-Identifier: Apache-2.0
// What serving a request costs its tenant (VTC, arXiv:2401.00588 §3.1 and §4.2), and how long answers tend to be.
#pragma once

#include <string_view>
#include <unordered_map>

#include "lk/sched/request.h"

namespace lk {

// Service in thousandths of the price of one prompt token: whole numbers, so that counters never drift.
using MilliUnits = int64_t;

// h(p, q), the price of p computed prompt tokens and q output tokens; never falls in either. Tokens of the prefix cache
// are free.
struct ServiceCost {
  double prompt = 1, output = 2;  // the usual price ratio
  double product = 0, output_square = 0, constant = 0;

  MilliUnits of(int64_t prompt_tokens, int64_t output_tokens) const;
  // Milliseconds of Llama-2-7B on an A10G as the VTC authors profiled it (appendix B.2), times ten.
  static ServiceCost profiled() {
    return {.prompt = 2.1, .output = 1, .product = 0.04, .output_square = 0.032, .constant = 11.46};
  }
  // "1:2" (prompt:output), "profiled", or "a,b,c,d,e" = a p + b q + c p q + d q^2 + e. kInvalidArgument when a number
  // is negative.
  static Result<ServiceCost> parse(std::string_view text);
};

// Output lengths by (tenant, adapter): a moving average that weighs the newest by one fifth, as the VTC artifact does.
// Who outlives a forecast is taken for half done; until a first answer of the pair has ended, that is also what the
// next ones are taken for.
class LengthPredictor {
 public:
  // Tokens, at most max_tokens. Before the first answer of a pair, the average of all, or more: see outlived().
  int64_t predict(const Request& request) const;
  void learn(const Request& request, int64_t output_tokens);
  // This many tokens are made and the forecast has passed: the new one, at most max_tokens.
  int64_t outlived(const Request& request, int64_t output_tokens);

 private:
  static uint64_t key(const Request& request);
  std::unordered_map<uint64_t, double> means_;
  std::unordered_map<uint64_t, int64_t> longest_;  // forecast of pairs without a mean
  double overall_ = 0;
};

}  // namespace lk
