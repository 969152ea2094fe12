// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/heap_trimmer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "lk/serve/observe/process_stats.h"

namespace lk {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr size_t kBlock = 64 << 10;  // below the size that gets a mapping of its own
constexpr size_t kBlocks = 640;      // 40 MiB

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kOwnHeap = true;  // the sanitizer's, which glibc knows nothing about
#else
constexpr bool kOwnHeap = false;
#endif

// What a worker does with a large grammar: much memory for a moment, and a little that stays and was allocated last.
std::unique_ptr<char[]> swell() {
  std::vector<std::unique_ptr<char[]>> blocks;
  for (size_t i = 0; i < kBlocks; ++i) {
    blocks.push_back(std::make_unique<char[]>(kBlock));
    std::memset(blocks.back().get(), 1, kBlock);
  }
  return std::make_unique<char[]>(kBlock);
}

TEST(HeapTrimmer, GivesBackWhatAThreadLeftFree) {
  if (kOwnHeap) GTEST_SKIP() << "a sanitizer has a heap of its own";
  HeapTrimmer trimmer;
  EXPECT_FALSE(trimmer.tick()) << "nothing has grown";
  const int64_t before = read_process_stats().resident_bytes;
  std::unique_ptr<char[]> kept;
  std::thread([&] { kept = swell(); }).join();
  ASSERT_GT(read_process_stats().resident_bytes, before + 30 * kMiB)
      << "the heap gave it back by itself: the test tests nothing";
  EXPECT_GT(read_heap_stats().free_bytes, 30 * kMiB);
  EXPECT_TRUE(trimmer.tick());
  EXPECT_LT(read_process_stats().resident_bytes, before + 8 * kMiB);
  EXPECT_FALSE(trimmer.tick()) << "the free bytes are still in the heap's books, but not resident";
  // And again, in the same free memory.
  std::thread([&] { kept = swell(); }).join();
  EXPECT_TRUE(trimmer.tick());
  EXPECT_LT(read_process_stats().resident_bytes, before + 8 * kMiB + static_cast<int64_t>(kBlock));
}

TEST(HeapTrimmer, MemoryInUseIsNoReason) {
  HeapTrimmer trimmer;
  trimmer.tick();
  const auto large = std::make_unique<char[]>(static_cast<size_t>(32 * kMiB));
  std::memset(large.get(), 1, static_cast<size_t>(32 * kMiB));
  const int64_t free = read_heap_stats().free_bytes;
  EXPECT_EQ(trimmer.tick(), free >= 8 * kMiB);
  EXPECT_GE(read_heap_stats().used_bytes, kOwnHeap ? 0 : 32 * kMiB);
}

}  // namespace
}  // namespace lk
