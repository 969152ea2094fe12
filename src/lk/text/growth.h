// SPDX-License-Identifier: Apache-2.0
// How much the parts of a tokenizer lengthen a text, known when its file is read: a file whose parts multiply it is
// refused before any text meets it.
#pragma once

#include "lk/text/json_view.h"

namespace lk {

// A text of n bytes becomes one of at most factor * n + added. Parts whose effect does not repeat (normal forms, case)
// count as 1: they may lengthen a text once, which WorkBudget allows for.
struct Growth {
  double factor = 1, added = 0;

  Growth then(const Growth& next) const { return {factor * next.factor, added * next.factor + next.added}; }
  // kUnsupported naming the part, the last one of a chain which has this growth as a whole.
  Status check(const JsonView& part) const;
};

}  // namespace lk
