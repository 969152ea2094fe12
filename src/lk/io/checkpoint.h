// SPDX-License-Identifier: Apache-2.0
// Checkpoint: a model directory, opened. Every tensor of its files is accounted for once: it is a weight of the model
// (by one of the names that text_model_path() knows), or it is named in a warning, or the directory is refused. Where
// config.json and the files disagree about the head, the files decide, as in transformers 5.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lk/base/status.h"
#include "lk/io/model_config.h"
#include "lk/io/safetensors.h"

namespace lk {

struct Checkpoint {
  // As the file says, but for what the tensors decide: tie_word_embeddings (both matrices there and different: not
  // tied), has_lm_head (a bare decoder without one).
  ModelConfig config;
  std::shared_ptr<const TensorStore> weights;     // by weight_name(); of the model's weights nothing is missing
  std::shared_ptr<const TensorStore> files;       // all tensors, by the names in the files
  std::map<std::string, std::string> file_names;  // weight_name() -> name in the files
  std::vector<std::string> warnings;

  // The name that a weight has, or would have, in the files.
  std::string file_name(const std::string& weight_name) const;
};

// Errors: those of load_model_config() and TensorStore::open_model(); a weight that is missing, misshapen, of a type
// that is not read, or there twice under two names.
Result<Checkpoint> open_checkpoint(const std::string& directory);

}  // namespace lk
