// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/ledger_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/write_error.h"

namespace lk {
namespace json = boost::json;

Status append_to_ledger(const std::string& path, const json::object& line) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  std::string text = json_text(line) + "\n";
  bool ok = fd >= 0;
  if (ok) {
    const off_t size = ::lseek(fd, 0, SEEK_END);
    char last = '\n';
    ok = size >= 0 && (size == 0 || ::pread(fd, &last, 1, size - 1) == 1);
    if (last != '\n') text.insert(text.begin(), '\n');
  }
  ok = ok && write_all(fd, text) == text.size() && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  return ok ? Status()
            : Status(write_error_code(error), fmt::format("cannot write {}: {}", path, std::strerror(error)));
}

Status read_ledger(const std::string& path, const std::function<void(const json::object&)>& on_line) {
  if (!file_exists(path)) return Status();
  std::ifstream in(path);
  std::string text;
  while (std::getline(in, text)) {
    boost::system::error_code error;
    const json::value line = json::parse(text, error);
    if (!error && line.is_object()) on_line(line.get_object());
  }
  return in.bad() || !in.eof() ? io_error("{} cannot be read", path) : Status();
}

}  // namespace lk
