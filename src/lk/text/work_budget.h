// SPDX-License-Identifier: Apache-2.0
// What one text may cost the tokenizer. Its rules come from a file that perhaps a tenant wrote: they may not make more
// of a text, nor spend more on it, than honest rules ever do. Thread safety: a budget belongs to one thread and one
// text.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lk/base/status.h"

namespace lk {

class WorkBudget {
 public:
  // `text_bytes`: of the text as it was given.
  explicit WorkBudget(size_t text_bytes);

  // Counts steps that cost about as much as looking at one character does. kInvalidArgument when there were too many,
  // or the thread has worked for too long.
  Status spend(uint64_t steps) {
    steps_ += steps;
    return steps_ < next_check_ ? Status() : check();
  }
  // Before something whose steps cannot be counted, such as a match; looks at the clock now and then.
  Status tick() { return ++ticks_ % 16 != 0 ? Status() : check(); }
  // kInvalidArgument when the rules have made more than most_bytes() of the text, at any stage.
  Status check_size(size_t bytes) const;

  uint64_t steps() const { return steps_; }
  uint64_t most_steps() const { return most_steps_; }
  // Honest rules make of a byte three at most: a space becomes "▁". Compatibility forms of single characters are
  // longer; no long text is made of these only.
  size_t most_bytes() const { return most_bytes_; }

 private:
  Status check();
  size_t text_bytes_, most_bytes_;
  uint64_t steps_ = 0, next_check_, most_steps_;
  uint32_t ticks_ = 0;
  int64_t deadline_;  // nanoseconds of this thread's processor time
};

}  // namespace lk
