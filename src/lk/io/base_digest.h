// SPDX-License-Identifier: Apache-2.0
// base_digest: tells one base model from another, for what is stored about adapters that belong to it.
#pragma once

#include <string>

#include "lk/base/status.h"
#include "lk/io/safetensors.h"

namespace lk {

// Of what an adapter was made for, hex: config.json (without the notes that tools leave there), tokenizer.json where
// there is one, and of all tensors names, types, shapes and bytes (checksums: a weight that differs anywhere is seen).
// Reads all weights, at the speed of memory: for the start of a server. In which files they lie, under which names and
// with which times, makes no difference. `config` is the file; `tokenizer` may be missing; `checkpoint` is null for
// random weights.
Result<std::string> base_digest(const std::string& config, const std::string& tokenizer, const TensorStore* checkpoint);

}  // namespace lk
