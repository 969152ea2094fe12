// SPDX-License-Identifier: Apache-2.0
#include "training_base.h"

#include "commands.h"
#include "hub_names.h"
#include "lk/ops/cpu_backend.h"

namespace lk::apps {

Status take_text(const TextModel& text, TrainBase& base) {
  if (!text.tokenizer()) return invalid_argument("{} has no tokenizer.json; training reads text", base.directory);
  base.tokenizer = text.tokenizer();
  base.templates = text.base().templates;
  base.end_tokens = text.base().end_tokens;
  base.context = text.context();
  return Status();
}

Status check_trainable(const TrainBase& base) {
  if (base.weights->config.has_lm_head) return Status();
  return unsupported("{}: a decoder without an lm_head predicts no tokens, so there is nothing to train on",
                     base.directory);
}

Result<TrainingBase> open_training_base(std::string directory, DType act, int threads, const std::string& isa) {
  TrainingBase loaded;
  LK_RETURN_IF_ERROR(find_model(directory));
  loaded.base.directory = directory;
  LK_ASSIGN_OR_RETURN(loaded.backend, make_cpu_backend({.num_threads = threads, .isa = parse_cpu_isa(isa)}));
  LK_RETURN_IF_ERROR(TextEngine::read_config(directory, "").status());
  LK_ASSIGN_OR_RETURN(loaded.base.weights, load_weights(directory, act, *loaded.backend));
  loaded.base.backend = loaded.backend.get();
  LK_ASSIGN_OR_RETURN(loaded.text, TextModel::load(directory, loaded.base.weights->config, 0));
  warn(directory, loaded.base.weights->warnings);
  LK_RETURN_IF_ERROR(check_trainable(loaded.base));
  LK_RETURN_IF_ERROR(take_text(*loaded.text, loaded.base));
  return loaded;
}

}  // namespace lk::apps
