// SPDX-License-Identifier: Apache-2.0
// Adapters of trainers that do not write PEFT's format: mlx-lm (adapters.safetensors) and mistral-finetune
// (lora.safetensors). They are converted, not served: what was meant is settled once.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "lk/base/status.h"
#include "lk/io/model_config.h"
#include "lk/lora/adapter.h"

namespace lk {

// Whether the directory holds such an adapter.
bool is_foreign_adapter(const std::string& directory);

// `scaling` replaces the one in the files (mistral-finetune's params.json may be missing on a hub). Errors: a tensor
// that plays no part, shapes of another base, a scaling that is nowhere. The values are not checked further: what is
// written is loaded again.
Result<std::shared_ptr<const Adapter>> read_foreign_adapter(const std::string& directory, const ModelConfig& config,
                                                            std::optional<double> scaling = {});

}  // namespace lk
