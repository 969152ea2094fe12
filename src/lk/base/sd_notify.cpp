// SPDX-License-Identifier: Apache-2.0
#include "lk/base/sd_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace lk {
namespace {

std::optional<int64_t> environment_number(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  int64_t number = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

}  // namespace

Status notify_service_manager(std::string_view state) {
  const char* name = std::getenv("NOTIFY_SOCKET");
  if (name == nullptr || *name == '\0') return Status();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(name);
  if ((name[0] != '/' && name[0] != '@') || length < 2 || length >= sizeof address.sun_path)
    return invalid_argument("NOTIFY_SOCKET is neither a path nor an abstract socket of at most {} characters",
                            sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, name, length);
  if (name[0] == '@') address.sun_path[0] = '\0';  // abstract: a leading zero, and the length ends the name
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return io_error("cannot notify the service manager: {}", std::strerror(errno));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length + (name[0] == '/' ? 1 : 0));
  const ssize_t sent =
      ::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address), size);
  const int error = errno;
  ::close(fd);
  if (sent != static_cast<ssize_t>(state.size()))
    return io_error("cannot notify the service manager: {}", std::strerror(error));
  return Status();
}

Status notify_reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return notify_service_manager(
      fmt::format("RELOADING=1\nMONOTONIC_USEC={}", int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000));
}

std::optional<std::chrono::microseconds> watchdog_timeout() {
  const auto timeout = environment_number("WATCHDOG_USEC");
  if (!timeout || *timeout <= 0) return std::nullopt;
  if (const auto pid = environment_number("WATCHDOG_PID"); pid && *pid != ::getpid())
    return std::nullopt;  // meant for another process
  return std::chrono::microseconds(*timeout);
}

}  // namespace lk
