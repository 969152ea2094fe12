// SPDX-License-Identifier: Apache-2.0
#include "lk/text/growth.h"

namespace lk {

Status Growth::check(const JsonView& part) const {
  constexpr double kMaxFactor = 64;   // real ones stay below 10
  constexpr double kMaxAdded = 4096;  // bytes; real ones add one character
  if (factor <= kMaxFactor && added <= kMaxAdded) return {};
  return part.error(StatusCode::kUnsupported,
                    "with this part the rules make up to {:g} bytes of one and add up to {:g}, more than {:g} and {:g}",
                    factor, added, kMaxFactor, kMaxAdded);
}

}  // namespace lk
