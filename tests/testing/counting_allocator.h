// SPDX-License-Identifier: Apache-2.0
// Counts what a thread allocates. It replaces operator new, so one file of a test program includes it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace lk::testing {

inline thread_local int64_t allocations_of_this_thread = 0;

// Allocations of the constructing thread since then.
class AllocationCounter {
 public:
  int64_t count() const { return allocations_of_this_thread - begin_; }

 private:
  const int64_t begin_ = allocations_of_this_thread;
};

}  // namespace lk::testing

// NOLINTBEGIN: every allocation of this program passes here. All forms are replaced together: what the library keeps of
// its own (std::stable_sort asks without exceptions) would be freed by the wrong function under a sanitizer.
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++lk::testing::allocations_of_this_thread;
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t align, const std::nothrow_t&) noexcept {
  ++lk::testing::allocations_of_this_thread;
  const auto alignment = static_cast<size_t>(align);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
[[gnu::noinline]] void* operator new(size_t size) {
  if (void* memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, std::align_val_t align) {
  if (void* memory = operator new(size, align, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  std::free(memory);
}
// NOLINTEND
