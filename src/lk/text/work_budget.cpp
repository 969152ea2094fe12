// SPDX-License-Identifier: Apache-2.0
#include "lk/text/work_budget.h"

#include <ctime>

#include <algorithm>

namespace lk {
namespace {

constexpr size_t kSmallTextBytes = size_t{4} << 20;  // any text may become so long
constexpr uint64_t kStepsBetweenChecks = 1 << 20;
constexpr uint64_t kFreeSteps = uint64_t{1} << 26, kStepsPerByte = 256;
constexpr int64_t kSecond = 1'000'000'000;

// Not the time of day: on a busy machine an honest text must not be refused.
int64_t thread_time() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

}  // namespace

WorkBudget::WorkBudget(size_t text_bytes)
    : text_bytes_(text_bytes),
      most_bytes_(std::max(kSmallTextBytes, 3 * text_bytes + 4096)),
      next_check_(kStepsBetweenChecks),
      most_steps_(kFreeSteps + kStepsPerByte * text_bytes),
      deadline_(thread_time() + 2 * kSecond + kSecond * static_cast<int64_t>(text_bytes >> 20)) {}

Status WorkBudget::check() {
  if (steps_ <= most_steps_ && thread_time() <= deadline_) {
    next_check_ = std::min(steps_ + kStepsBetweenChecks, most_steps_ + 1);
    return {};
  }
  return invalid_argument("the tokenizer's rules take too long for this text of {} bytes", text_bytes_);
}

Status WorkBudget::check_size(size_t bytes) const {
  if (bytes <= most_bytes_) return {};
  return invalid_argument("the tokenizer's rules make more than {} bytes of this text of {}", most_bytes_, text_bytes_);
}

}  // namespace lk
