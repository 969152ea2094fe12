// SPDX-License-Identifier: Apache-2.0
// A sample as people read it: what is trained stands out from what is masked.
#pragma once

#include <string>

#include "lk/dataset/render.h"

namespace lk {

// With `color`: ANSI, trained tokens green (yellow for a weight below 1), the others dim. Without: trained runs stand
// in
// [[ ]], with their weight if it is not 1. Control characters of the text are written as \xNN.
std::string preview_sample(const Sample& sample, const Tokenizer& tokenizer, bool color);

}  // namespace lk
