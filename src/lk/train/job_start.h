// SPDX-License-Identifier: Apache-2.0
// JobStart: the adapter that a job begins with, as its configuration describes it: made from nothing, taken up from a
// PEFT directory, or drawn from the job's own data (EVA).
#pragma once

#include <memory>

#include "lk/lora/adapter.h"
#include "lk/train/job_config.h"
#include "lk/train/train_base.h"
#include "lk/train/train_pass.h"

namespace lk {

struct JobStart {
  std::shared_ptr<const Adapter> adapter;
  TrainableOptions options;
};

// A specification in PEFT's terms; `base` is what the adapter's file will call its base.
AdapterConfig peft_config(const AdapterSpec& spec, const std::string& base);

// `base_name` is what the configuration calls the base; the adapter's own file will say it.
Result<JobStart> make_job_start(const JobConfig& config, const TrainBase& base, const std::string& base_name);

// Whether the start is only known once a pass has seen the data: until then ranks may still grow to twice as much.
bool waits_for_data(const AdapterSpec& spec);
// Bytes that settle_start() takes beside the adapters before and after it; 0 for those that do not wait.
int64_t settling_bytes(const AdapterSpec& spec, const Adapter& start);
// Makes `start` what it will be, for one that waits. kCancelled when `stop` said so.
Status settle_start(JobStart& start, const JobConfig& config, const TrainBase& base, const std::string& base_name,
                    TrainPass& pass, SampleReader& data, const AskStop& stop);

}  // namespace lk
