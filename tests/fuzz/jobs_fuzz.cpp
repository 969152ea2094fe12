// SPDX-License-Identifier: Apache-2.0
// JOBS.yaml from arbitrary bytes; what is accepted keeps to the ranges that the trainer counts on.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lk/train/job_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto run = lk::parse_run_config(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!run.ok()) return 0;
  for (const lk::JobConfig& job : run->jobs) {
    (void)lk::job_config_json(job);
    const lk::TrainSpec& train = job.train;
    for (const int64_t step : {0, 1, 50, 100, 1000}) {
      const double rate = lk::learning_rate_at(train, step, 100);
      if (!(rate >= 0 && rate <= train.lr)) std::abort();
    }
    if ((train.steps > 0) == (train.epochs > 0)) std::abort();
    if ((train.batch_samples > 0) == (train.batch_tokens > 0)) std::abort();
  }
  return 0;
}
