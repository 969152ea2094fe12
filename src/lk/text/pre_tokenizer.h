// SPDX-License-Identifier: Apache-2.0
// The "pre_tokenizer" section of tokenizer.json: cuts pieces into smaller ones that the model
// treats alone. Thread safety: immutable after parse.
#pragma once

#include <memory>

#include "lk/text/growth.h"
#include "lk/text/json_view.h"
#include "lk/text/pieces.h"

namespace lk {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// What happens to matches: turns the cover of a text (matches and the rest) into the kept spans, in
// place.
void apply_behavior(SplitBehavior behavior, std::vector<Span>& spans);

enum class PrependScheme { kFirst, kNever, kAlways };

// Shared by the pre-tokenizer and the decoder Metaspace.
struct MetaspaceOptions {
  std::string replacement;  // one character
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;
  static Result<MetaspaceOptions> parse(const JsonView& json);
};

class PreTokenizer {
 public:
  // Null for a null section. kUnsupported for one that multiplies texts.
  static Result<std::unique_ptr<const PreTokenizer>> parse(const JsonView& json);
  virtual ~PreTokenizer() = default;
  virtual Status apply(PieceList& list, WorkBudget& budget) const = 0;
  virtual bool needs_origins() const { return false; }
  virtual Growth growth() const { return {}; }
};

}  // namespace lk
