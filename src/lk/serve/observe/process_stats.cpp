// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/observe/process_stats.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <string_view>

namespace lk {
namespace {

// A /proc file is made as it is read: one read into a buffer that holds all of it.
template <size_t N>
std::string_view read_small_file(const char* path, char (&buffer)[N]) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  const ssize_t length = ::read(fd, buffer, N);
  ::close(fd);
  return {buffer, length > 0 ? static_cast<size_t>(length) : 0};
}

// Field `number` (from 0) of a line of fields separated by single blanks, 0 when there is none.
int64_t field(std::string_view text, int number) {
  while (number-- > 0) {
    const size_t blank = text.find(' ');
    if (blank == std::string_view::npos) return 0;
    text.remove_prefix(blank + 1);
  }
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

int64_t count_open_files() {
  DIR* directory = ::opendir("/proc/self/fd");
  if (!directory) return 0;
  int64_t count = 0;
  while (const dirent* entry = ::readdir(directory)) count += entry->d_name[0] != '.' ? 1 : 0;
  ::closedir(directory);
  return count > 0 ? count - 1 : 0;  // not the directory itself
}

}  // namespace

ProcessStats read_process_stats() {
  ProcessStats stats{.open_files = count_open_files()};
  char buffer[2048];
  stats.resident_bytes = field(read_small_file("/proc/self/statm", buffer), 1) * ::sysconf(_SC_PAGESIZE);
  std::string_view stat = read_small_file("/proc/self/stat", buffer);
  // The program's name, field 1, may hold blanks and brackets: fields are counted from the last bracket on.
  if (const size_t bracket = stat.rfind(')'); bracket != std::string_view::npos && bracket + 2 < stat.size())
    stats.threads = field(stat.substr(bracket + 2), 17);
  return stats;
}

}  // namespace lk
