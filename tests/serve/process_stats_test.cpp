// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/process_stats.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstring>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

namespace lk {
namespace {

TEST(ProcessStats, CountsFilesThreadsAndMemory) {
  std::thread([] {}).join();  // a sanitizer has a thread of its own from the first one on
  const ProcessStats before = read_process_stats();
  EXPECT_GE(before.open_files, 1);
  EXPECT_GE(before.threads, 1);

  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  constexpr size_t kBytes = size_t{64} << 20;
  const auto memory = std::make_unique<char[]>(kBytes);
  std::memset(memory.get(), 1, kBytes);
  std::latch stop(1);
  std::vector<std::jthread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { stop.wait(); });
  const ProcessStats during = read_process_stats();
  stop.count_down();
  ::close(fds[0]);
  ::close(fds[1]);
  EXPECT_EQ(during.open_files, before.open_files + 2);
  EXPECT_EQ(during.threads, before.threads + 3);
  EXPECT_GT(during.resident_bytes, before.resident_bytes + (int64_t{32} << 20));
  EXPECT_EQ(read_process_stats().open_files, before.open_files);
}

TEST(ProcessStats, ANameWithBracketsAndBlanksMisleadsNothing) {
  const int64_t threads = read_process_stats().threads;
  char old_name[16];
  ::prctl(PR_GET_NAME, old_name);
  ::prctl(PR_SET_NAME, "a) R 1 (b");
  EXPECT_EQ(read_process_stats().threads, threads);
  ::prctl(PR_SET_NAME, old_name);
}

}  // namespace
}  // namespace lk
