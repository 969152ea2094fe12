// SPDX-License-Identifier: Apache-2.0
// What a checkpoint holds of a job: trainer_state.json (how far it is, and whose state this is) and
// trainer_state.safetensors (parameters and AdamW's moments, f32, by parameter). Restored, the job goes on as if it had
// never stopped, bit for bit.
#pragma once

#include <string>

#include "lk/train/checkpoint_file.h"
#include "lk/train/trainer.h"

namespace lk {

// What must be the same for a state to fit: all that decides what the job computes.
struct JobIdentity {
  std::string base;     // digest of the base's weights
  std::string data;     // digests of its files
  std::string options;  // of the job: a JSON object
};

// The two files, as parts of a checkpoint.
std::vector<CheckpointPart> job_state_parts(TrainJob& job, Backend& backend, const JobIdentity& identity);
// kFailedPrecondition when the state is another base's, another data's or another job's (says which); kDataLoss when it
// is damaged. Then nothing of the job was changed; after kIoError it must not be used.
Status read_job_state(TrainJob& job, Backend& backend, const JobIdentity& identity, const std::string& directory);

}  // namespace lk
