// SPDX-License-Identifier: Apache-2.0
// How much memory this process may use: the machine's, or less in a container or a service with a limit.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

// Bytes.
struct MemoryLimits {
  int64_t total = 0;      // never more than this: the tightest limit of any control group around us, or the machine
  int64_t available = 0;  // of it now, beside what others hold; files the kernel caches give way and count as free
  std::string source = "the machine";  // what sets `total`: or "memory.max of /system.slice/lorikeet.service"
};

// Reads /proc and the control groups (version 2, or version 1 beside it) that are mounted under /sys/fs/cgroup. What
// cannot be read does not limit. `root` is put before every path.
MemoryLimits read_memory_limits(const std::string& root = "");

// Bytes this process has in memory now, pages of mapped files included; 0 where /proc does not say.
int64_t read_resident_bytes();

}  // namespace lk
