// SPDX-License-Identifier: Apache-2.0
// The base that something is trained over, without an engine: weights, back-end, tokenizer and templates.
#pragma once

#include <memory>
#include <string>

#include "lk/infer/text_model.h"
#include "lk/train/train_base.h"

namespace lk::apps {

struct TrainingBase {
  std::unique_ptr<Backend> backend;  // null where somebody else's is used
  std::shared_ptr<const TextModel> text;
  TrainBase base;
};

// Of a directory or a name on the hub. threads: 0 = all. Prints the model's warnings. Refuses what cannot be trained:
// no tokenizer, no head.
Result<TrainingBase> open_training_base(std::string directory, DType act, int threads, const std::string& isa);

// What training needs of the text side.
Status take_text(const TextModel& text, TrainBase& base);
Status check_trainable(const TrainBase& base);

}  // namespace lk::apps
