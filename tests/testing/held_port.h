// SPDX-License-Identifier: Apache-2.0
// HeldPort: a port for a program that has to be told one. It is below those that the system gives to anybody, and
// nobody else of these tests (tests/http/etcd.py has the same locks) gets it while it is held.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

namespace lk::testing {

class HeldPort {
 public:
  HeldPort() {
    const std::filesystem::path locks = std::filesystem::temp_directory_path() / "lorikeet-test-ports";
    std::filesystem::create_directories(locks);
    for (int i = 0; i < kCount && lock_ < 0; ++i) {
      port_ = kFirst + (::getpid() * 17 + i) % kCount;
      lock_ = ::open((locks / std::to_string(port_)).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
      if (lock_ >= 0 && (::flock(lock_, LOCK_EX | LOCK_NB) != 0 || !is_free(port_))) ::close(std::exchange(lock_, -1));
    }
    if (lock_ < 0) std::abort();
  }
  HeldPort(HeldPort&& other) noexcept : port_(other.port_), lock_(std::exchange(other.lock_, -1)) {}
  ~HeldPort() {
    if (lock_ >= 0) ::close(lock_);
  }
  int number() const { return port_; }

 private:
  static constexpr int kFirst = 20'000, kCount = 10'000;
  static bool is_free(int port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int yes = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    const bool free = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    return free;
  }
  int port_ = 0, lock_ = -1;
};

}  // namespace lk::testing
