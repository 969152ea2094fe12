// SPDX-License-Identifier: Apache-2.0
// What the parts of `lorikeet bench merge` share: a dummy model with adapters of one rank.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <boost/json.hpp>

#include "lk/engine/engine.h"

namespace lk::apps {

struct MergeBenchFlags {
  std::string dummy, json, adapter_dir, part = "all", shape = "both";
  std::vector<std::string> choosers{"never", "always", "exclusive", "dlora", "cost"};
  std::vector<int64_t> ranks{8, 64, 256};
  std::vector<double> shares{0.3, 0.5, 0.7, 0.9, 1.0};
  int64_t adapters = 4, decode_batch = 32, prefill_tokens = 512, requests = 96;
  double b_scale = 0.2;  // of the random adapters; larger changes lose less to rounding
  int threads = 0, samples = 9, repeat = 15;
  double spread = 0.01;  // standard error of the paired ratio at which a cell has rounds enough
  uint64_t seed = 1;
};

struct MergeBench {
  std::shared_ptr<const ModelWeights> weights;
  std::unique_ptr<Engine> engine;
  std::vector<AdapterId> adapters;  // of one rank; the first is the hot one
};

// Seeded random weights (of flags.dummy, or of a built-in shape of 150 M parameters) and flags.adapters adapters of
// rank `rank` on all linears.
Result<MergeBench> make_merge_bench(const MergeBenchFlags& flags, int64_t rank,
                                    std::shared_ptr<const ModelWeights> weights);

// Step times of each mode: rank x share of the hot adapter x {prefill, decode}.
Result<boost::json::array> bench_merge_modes(const MergeBenchFlags& flags);
// Whole runs under each chooser.
Result<boost::json::array> bench_merge_choosers(const MergeBenchFlags& flags);

double median_of(std::vector<double> values);

}  // namespace lk::apps
