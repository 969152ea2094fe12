// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/adapters/adapter_stat.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <map>
#include <string_view>

namespace lk {
namespace {

bool says_missing(int error) { return error == ENOENT || error == ENOTDIR; }

std::string describe(const struct stat& info) {
  return fmt::format("{}:{}:{}.{};", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

// Of the folder of chat templates, if there is one: what is in it, sorted by name.
std::string describe_templates(int directory) {
  const int fd = ::openat(directory, kChatTemplateDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* folder = fd < 0 ? nullptr : ::fdopendir(fd);
  if (folder == nullptr) {
    if (fd >= 0) ::close(fd);
    return "";
  }
  std::map<std::string, std::string> found;
  for (const dirent* entry = ::readdir(folder); entry != nullptr; entry = ::readdir(folder)) {
    struct stat info {};
    if (std::string_view(entry->d_name).ends_with(".jinja") && ::fstatat(fd, entry->d_name, &info, 0) == 0)
      found[entry->d_name] = describe(info);
  }
  ::closedir(folder);
  std::string text;
  for (const auto& [name, described] : found) text += name + ":" + described;
  return text;
}

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
      text += describe(info);
      found.empty = false;
    } else if (!says_missing(errno)) {
      found = {.state = AdapterStat::State::kUnreadable, .error = errno};
      break;
    } else {
      if (i < kNumNeededAdapterFiles) found.state = AdapterStat::State::kIncomplete;
      text += "-;";
    }
  }
  text += describe_templates(fd);
  ::close(fd);
  if (found.complete()) found.stamp = std::hash<std::string>()(text);
  return found;
}

AdapterStat stat_adapter(const std::string& directory) { return stat_adapter(AT_FDCWD, directory); }

}  // namespace lk
