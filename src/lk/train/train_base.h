// SPDX-License-Identifier: Apache-2.0
// TrainBase: the base that all jobs of a run train over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lk/dataset/dataset.h"
#include "lk/model/weights.h"
#include "lk/ops/backend.h"

namespace lk {

// Loaded; shared with whoever serves it meanwhile. A preview needs neither weights nor backend.
struct TrainBase {
  std::string directory;
  std::shared_ptr<const ModelWeights> weights;  // with their checkpoint
  Backend* backend = nullptr;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplates> templates;  // or null
  std::vector<int32_t> end_tokens;  // behind which a server stops; the first closes texts and completions
  int64_t context = 0;              // positions; 0 = no limit
  int64_t reserved_bytes = 0;       // that whoever serves it may yet take: pages, and buffers of a step
};

// SHA-256 of the files of all weights and of what says how they are used, in hex: what makes a base this base to those
// who train on it.
Result<std::string> base_files_digest(const std::string& directory, const AskStop& stop = {});

}  // namespace lk
