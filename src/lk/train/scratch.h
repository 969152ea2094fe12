// SPDX-License-Identifier: Apache-2.0
// ScratchLayout: places in one piece of memory. Phases that never run at the same time copy the layout of what they
// share and go on from there, so the memory is as large as the largest of them.
#pragma once

#include <cstdint>

namespace lk {

class ScratchLayout {
 public:
  // The offset of `bytes` bytes, at a whole cache line.
  int64_t take(int64_t bytes) {
    const int64_t offset = used_;
    used_ += (bytes + 63) / 64 * 64;
    return offset;
  }
  int64_t used() const { return used_; }

 private:
  int64_t used_ = 0;
};

}  // namespace lk
