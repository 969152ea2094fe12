// SPDX-License-Identifier: Apache-2.0
// What a loop that waits for another thread does between two looks.
#pragma once

namespace lk {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace lk
