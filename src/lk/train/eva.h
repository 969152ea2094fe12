// SPDX-License-Identifier: Apache-2.0
// EVA (arXiv:2410.07170): A starts as the directions in which a module's inputs vary most over the job's own data, and
// ranks go to the modules where few directions say most. B stays 0.
#pragma once

#include "lk/dataset/dataset.h"
#include "lk/train/train_pass.h"

namespace lk {

struct EvaOptions {
  double rho = 2;              // a module gets at most so many times its rank
  double tau = 0.99;           // directions have settled when their cosine with the last batch's is that
  int64_t max_tokens = 65536;  // of data; what has not settled by then is taken as it is
};

// Bytes of host memory that apply_eva() takes at most beside the adapters before and after it.
int64_t eva_bytes(const Adapter& initial, const EvaOptions& options = {});

// `initial` with new A, ranks and scalings (alpha / r stays, so alpha follows r); modules left with no rank are gone.
// Reads samples from the cursor of `data` on and puts the cursor back. Requires: `initial` has plain deltas, B = 0.
// kCancelled when `stop`, asked before every block, said so.
Result<Adapter> apply_eva(Adapter initial, TrainPass& pass, Backend& backend, const ModelWeights& weights,
                          SampleReader& data, const EvaOptions& options = {}, const AskStop& stop = {});

}  // namespace lk
