// SPDX-License-Identifier: Apache-2.0
#include "lk/base/memory_limits.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "testing/temp_dir.h"

namespace lk {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// A machine of 24 GiB with 20 GiB available, as files under a directory.
class MemoryLimitsTest : public ::testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_.path() + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void in_group(const std::string& lines) {
    write("/proc/meminfo", "MemTotal:       25165824 kB\nMemFree:         1000 kB\nMemAvailable:   20971520 kB\n");
    write("/proc/self/cgroup", lines);
  }
  MemoryLimits read() { return read_memory_limits(root_.path()); }
  testing::TempDir root_;
};

TEST_F(MemoryLimitsTest, MachineWithoutControlGroups) {
  in_group("");
  EXPECT_EQ(read().total, 24 * kGiB);
  EXPECT_EQ(read().available, 20 * kGiB);
  EXPECT_EQ(read().source, "the machine");
}

TEST_F(MemoryLimitsTest, LimitOfTheServiceAndWhatItsFilesGiveBack) {
  in_group("0::/system.slice/lorikeet.service\n");
  const std::string group = "/sys/fs/cgroup/system.slice/lorikeet.service/";
  write(group + "memory.max", "8589934592\n");
  write(group + "memory.high", "max\n");
  write(group + "memory.current", "3221225472\n");
  write(group + "memory.stat", "anon 1073741824\ninactive_file 1073741824\nactive_file 1073741824\n");
  write("/sys/fs/cgroup/system.slice/memory.max", "max\n");
  EXPECT_EQ(read().total, 8 * kGiB);
  EXPECT_EQ(read().available, 7 * kGiB);
  EXPECT_EQ(read().source, "memory.max of /system.slice/lorikeet.service");
}

TEST_F(MemoryLimitsTest, AnOuterGroupCountsWithWhatOthersHoldInIt) {
  in_group("0::/pod/server\n");
  write("/sys/fs/cgroup/pod/server/memory.max", "8589934592\n");
  write("/sys/fs/cgroup/pod/memory.max", "6442450944\n");
  write("/sys/fs/cgroup/pod/memory.current", "5368709120\n");
  write("/sys/fs/cgroup/pod/memory.stat", "inactive_file 0\nactive_file 0\n");
  EXPECT_EQ(read().total, 6 * kGiB);
  EXPECT_EQ(read().available, 1 * kGiB);
  EXPECT_EQ(read().source, "memory.max of /pod");
}

// A container sees its own group as the root of the mount, and, without a namespace, still the host's name for it.
TEST_F(MemoryLimitsTest, ContainerWhoseGroupIsTheMount) {
  for (const char* name : {"0::/\n", "0::/kubepods/pod1/abc\n"}) {
    in_group(name);
    write("/sys/fs/cgroup/memory.max", "2147483648\n");
    EXPECT_EQ(read().total, 2 * kGiB);
    EXPECT_EQ(read().available, 2 * kGiB);
    EXPECT_EQ(read().source, "memory.max of /");
  }
}

TEST_F(MemoryLimitsTest, MemoryHighIsALimitToo) {
  in_group("0::/a\n");
  write("/sys/fs/cgroup/a/memory.max", "8589934592\n");
  write("/sys/fs/cgroup/a/memory.high", "4294967296\n");
  EXPECT_EQ(read().total, 4 * kGiB);
  EXPECT_EQ(read().source, "memory.high of /a");
}

TEST_F(MemoryLimitsTest, VersionOneAndItsNoLimit) {
  in_group("9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(read().total, 24 * kGiB);
  write("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "4294967296\n");
  write("/sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "2147483648\n");
  write("/sys/fs/cgroup/memory/docker/x/memory.stat", "total_inactive_file 1073741824\ntotal_active_file 0\n");
  EXPECT_EQ(read().total, 4 * kGiB);
  EXPECT_EQ(read().available, 3 * kGiB);
  EXPECT_EQ(read().source, "memory.limit_in_bytes of /docker/x");
}

TEST_F(MemoryLimitsTest, LimitAboveTheMachineAndNonsenseLimitNothing) {
  in_group("0::/a\nnonsense\n0::no-slash\n");
  write("/sys/fs/cgroup/a/memory.max", "999999999999\n");
  write("/sys/fs/cgroup/memory.max", "-5\n");
  EXPECT_EQ(read().total, 24 * kGiB);
  EXPECT_EQ(read().source, "the machine");
}

TEST(MemoryLimits, ThisMachineHasSome) {
  const MemoryLimits limits = read_memory_limits();
  EXPECT_GT(limits.total, 64 << 20);
  EXPECT_GT(limits.available, 0);
  EXPECT_LE(limits.available, limits.total);
}

}  // namespace
}  // namespace lk
