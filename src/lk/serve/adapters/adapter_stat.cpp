// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_stat.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

namespace lk {
namespace {

bool says_missing(int error) { return error == ENOENT || error == ENOTDIR; }

}  // namespace

AdapterStat stat_adapter(int root, const std::string& directory) {
  const int fd = ::openat(root, directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    if (says_missing(errno)) return {};
    return {.state = AdapterStat::State::kUnreadable, .error = errno};
  }
  AdapterStat found{.state = AdapterStat::State::kComplete};
  std::string text;
  for (int i = 0; i < static_cast<int>(std::size(kAdapterFiles)); ++i) {
    struct stat info {};
    if (::fstatat(fd, kAdapterFiles[i], &info, 0) == 0) {
      if (i < kNumNeededAdapterFiles && !S_ISREG(info.st_mode)) found.state = AdapterStat::State::kIncomplete;
      text += fmt::format("{}:{}:{}.{};", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
    } else if (!says_missing(errno)) {
      found = {.state = AdapterStat::State::kUnreadable, .error = errno};
      break;
    } else {
      if (i < kNumNeededAdapterFiles) found.state = AdapterStat::State::kIncomplete;
      text += "-;";
    }
  }
  ::close(fd);
  if (found.complete()) found.stamp = std::hash<std::string>()(text);
  return found;
}

AdapterStat stat_adapter(const std::string& directory) { return stat_adapter(AT_FDCWD, directory); }

}  // namespace lk
