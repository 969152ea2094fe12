// SPDX-License-Identifier: Apache-2.0
#include "lk/base/memory_limits.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <optional>
#include <vector>

namespace lk {
namespace {

// Version 1 says "no limit" by a number near 2^63.
constexpr int64_t kNoLimit = int64_t{1} << 60;

// A file that holds one number; "max" and a missing file are none.
std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) return {};
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value >= kNoLimit) return {};
  return value;
}

// Lines of "name value", or "name: value kB"; bytes.
std::map<std::string, int64_t> read_table(const std::string& path) {
  std::map<std::string, int64_t> table;
  std::ifstream file(path);
  std::string name, rest;
  for (int64_t value; file >> name >> value; table[name] = value) {
    std::getline(file, rest);
    if (name.ends_with(':')) name.pop_back(), value *= 1024;
  }
  return table;
}

// The files of one version of control groups.
struct Version {
  std::vector<std::string> mounts, limits;
  std::string usage, inactive_file, active_file;
};
const Version kVersion2{.mounts = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"},
                        .limits = {"memory.max", "memory.high"},
                        .usage = "memory.current",
                        .inactive_file = "inactive_file",
                        .active_file = "active_file"};
const Version kVersion1{.mounts = {"/sys/fs/cgroup/memory"},
                        .limits = {"memory.limit_in_bytes"},
                        .usage = "memory.usage_in_bytes",
                        .inactive_file = "total_inactive_file",
                        .active_file = "total_active_file"};

// What the groups from `path` up to the mount allow: each bounds all that lies beneath it. In a container the path may
// be the host's name for a group that is mounted as "/": directories that are not there are passed over.
void apply(const Version& version, const std::string& root, std::string path, MemoryLimits& limits) {
  for (;; path.resize(path.rfind('/'))) {
    for (const std::string& mount : version.mounts) {
      const std::string group = root + mount + path + "/";
      for (const std::string& name : version.limits) {
        const std::optional<int64_t> limit = read_number(group + name);
        if (!limit) continue;
        if (*limit < limits.total) limits.total = *limit, limits.source = name + " of " + (path.empty() ? "/" : path);
        auto stat = read_table(group + "memory.stat");
        const int64_t files = stat[version.inactive_file] + stat[version.active_file];
        const int64_t held = std::max<int64_t>(0, read_number(group + version.usage).value_or(0) - files);
        limits.available = std::min(limits.available, std::max<int64_t>(0, *limit - held));
      }
    }
    if (path.empty()) return;
  }
}

MemoryLimits read_machine(const std::string& root) {
  auto meminfo = read_table(root + "/proc/meminfo");
  MemoryLimits limits{.total = meminfo["MemTotal"], .available = meminfo["MemAvailable"]};
  const int64_t page = sysconf(_SC_PAGESIZE);
  if (limits.total <= 0) limits.total = sysconf(_SC_PHYS_PAGES) * page;  // /proc/meminfo is hidden
  if (limits.available <= 0) limits.available = sysconf(_SC_AVPHYS_PAGES) * page;
  return limits;
}

}  // namespace

MemoryLimits read_memory_limits(const std::string& root) {
  MemoryLimits limits = read_machine(root);
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/a/b" or "4:cpu,memory:/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    while (path.ends_with('/')) path.pop_back();
    if (!path.empty() && path[0] != '/') continue;
    if (controllers == ",,") apply(kVersion2, root, path, limits);
    if (controllers.find(",memory,") != std::string::npos) apply(kVersion1, root, path, limits);
  }
  limits.available = std::min(limits.available, limits.total);
  return limits;
}

int64_t read_resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;  // pages
  return file >> size >> resident ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

}  // namespace lk
