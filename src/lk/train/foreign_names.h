// SPDX-License-Identifier: Apache-2.0
// What other trainers (transformers, PEFT, TRL, axolotl, LLaMA-Factory, unsloth, mlx-lm, OpenAI's API) call the things
// of a jobs file: for the messages about unknown keys and values. Nothing is read under these names.
#pragma once

#include <string>
#include <string_view>

namespace lk {

// What to write instead of another trainer's `key`, as the end of a sentence: "use \"train.lr\"". Empty: not known.
std::string instead_of_key(std::string_view key);
// The same for a value of one of our keys: "cosine_with_min_lr" of schedule.
std::string instead_of_value(std::string_view value);

}  // namespace lk
