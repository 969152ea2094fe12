// SPDX-License-Identifier: Apache-2.0
#include "lk/base/sd_notify.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace lk {
namespace {

class SdNotify : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) ::unsetenv(name);
    if (fd_ >= 0) ::close(fd_);
    if (!path_.empty()) std::filesystem::remove(path_);
  }
  // A manager's socket; '@' makes it abstract.
  void listen(const std::string& name) {
    fd_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name[0] == '@')
      address.sun_path[0] = '\0';
    else
      path_ = name;
    ASSERT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address),
                     static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())),
              0);
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
  }
  std::string received() {
    char text[512];
    const ssize_t size = ::recv(fd_, text, sizeof text, MSG_DONTWAIT);
    return size < 0 ? "nothing" : std::string(text, static_cast<size_t>(size));
  }
  int fd_ = -1;
  std::string path_;
};

TEST_F(SdNotify, SilentWithoutManager) {
  ::unsetenv("NOTIFY_SOCKET");
  EXPECT_TRUE(notify_service_manager("READY=1").ok());
  EXPECT_FALSE(watchdog_timeout().has_value());
}

TEST_F(SdNotify, PathSocket) {
  listen((std::filesystem::temp_directory_path() / ("lorikeet-notify-" + std::to_string(::getpid()))).string());
  ASSERT_TRUE(notify_service_manager("READY=1\nSTATUS=ok").ok());
  EXPECT_EQ(received(), "READY=1\nSTATUS=ok");
}

TEST_F(SdNotify, AbstractSocket) {
  listen("@lorikeet-notify-" + std::to_string(::getpid()));
  ASSERT_TRUE(notify_service_manager("STOPPING=1").ok());
  EXPECT_EQ(received(), "STOPPING=1");
  ASSERT_TRUE(notify_reloading().ok());
  EXPECT_TRUE(received().starts_with("RELOADING=1\nMONOTONIC_USEC="));
}

TEST_F(SdNotify, BadSocketsAreErrors) {
  for (const std::string& name :
       {std::string("relative"), std::string("@"), std::string("/nowhere/notify"), "/" + std::string(200, 'x')}) {
    ::setenv("NOTIFY_SOCKET", name.c_str(), 1);
    EXPECT_FALSE(notify_service_manager("READY=1").ok()) << name;
  }
}

TEST_F(SdNotify, WatchdogIsForThisProcessOnly) {
  ::setenv("WATCHDOG_USEC", "30000000", 1);
  EXPECT_EQ(watchdog_timeout(), std::chrono::seconds(30));
  ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
  EXPECT_EQ(watchdog_timeout(), std::chrono::seconds(30));
  ::setenv("WATCHDOG_PID", "1", 1);
  EXPECT_FALSE(watchdog_timeout().has_value());
  ::unsetenv("WATCHDOG_PID");
  for (const char* bad : {"", "0", "-5", "x", "10s"}) {
    ::setenv("WATCHDOG_USEC", bad, 1);
    EXPECT_FALSE(watchdog_timeout().has_value()) << bad;
  }
}

}  // namespace
}  // namespace lk
