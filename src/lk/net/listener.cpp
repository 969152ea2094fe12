// SPDX-License-Identifier: Apache-2.0
#include "lk/net/listener.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace lk {
namespace {

constexpr int kBacklog = 4096;  // the kernel lowers it to net.core.somaxconn

std::string format_ip(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof text);
  } else {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr, text, sizeof text);
  }
  return text;
}

Peer describe(const sockaddr_storage& address) {
  if (address.ss_family != AF_INET && address.ss_family != AF_INET6) return {"unix", ""};
  Peer peer;
  peer.name = format_ip(address);
  peer.account = peer.name;
  if (address.ss_family == AF_INET6) {  // one customer has a whole /64
    const auto& bytes = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr.s6_addr;
    peer.account = "v6";
    for (int i = 0; i < 8; ++i) peer.account += fmt::format(":{:02x}", bytes[i]);
  }
  return peer;
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

bool somebody_listens(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return true;
  const sockaddr_un address = unix_address(path);
  const bool refused =
      ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 && errno == ECONNREFUSED;
  ::close(fd);
  return !refused;
}

}  // namespace

bool is_local_address(const std::string& address) {
  if (address.starts_with("unix:")) return true;
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  in_addr v4{};
  in6_addr v6{};
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  if (::inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

Listener::Listener(Listener&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      address_(std::move(other.address_)),
      unix_path_(std::exchange(other.unix_path_, {})),
      inode_(other.inode_) {}

Listener::~Listener() {
  if (fd_ >= 0) ::close(fd_);
  struct stat info {};
  if (!unix_path_.empty() && ::lstat(unix_path_.c_str(), &info) == 0 && info.st_ino == inode_)
    ::unlink(unix_path_.c_str());
}

int Listener::release_fd() { return std::exchange(fd_, -1); }

Result<Listener> Listener::open(const std::string& address) {
  if (address.starts_with("unix:")) return open_unix(address.substr(5));
  return open_tcp(address);
}

Result<Listener> Listener::open_tcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return invalid_argument("listen address '{}': expected host:port, [v6]:port or unix:/path", address);
  }
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (port.size() > 5 || port.find_first_not_of("0123456789") != std::string::npos || std::stoi(port) > 65535) {
    return invalid_argument("listen address '{}': the port must be a number from 0 to 65535", address);
  }
  if (host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  else if (host.find(':') != std::string::npos)
    return invalid_argument("listen address '{}': write an IPv6 address in brackets", address);

  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return invalid_argument("listen address '{}': {}", address, gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> free_later(found, &::freeaddrinfo);
  Listener listener(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), address);
  if (listener.fd_ < 0) return io_error("socket for {}: {}", address, std::strerror(errno));
  const int on = 1;
  ::setsockopt(listener.fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (found->ai_family == AF_INET6) ::setsockopt(listener.fd_, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  if (::bind(listener.fd_, found->ai_addr, found->ai_addrlen) != 0 || ::listen(listener.fd_, kBacklog) != 0) {
    if (errno == EADDRINUSE) return already_exists("cannot listen on {}: another process does", address);
    return io_error("cannot listen on {}: {}", address, std::strerror(errno));
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(listener.fd_, reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return io_error("getsockname of {}: {}", address, std::strerror(errno));
  }
  const bool v6 = bound.ss_family == AF_INET6;
  const int chosen =
      ntohs(v6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port : reinterpret_cast<sockaddr_in&>(bound).sin_port);
  listener.address_ = fmt::format("{}{}{}:{}", v6 ? "[" : "", format_ip(bound), v6 ? "]" : "", chosen);
  return listener;
}

Result<Listener> Listener::open_unix(const std::string& path) {
  if (path.empty() || path.size() >= sizeof(sockaddr_un::sun_path) || path.find('\0') != std::string::npos) {
    return invalid_argument("unix socket path '{}': it must have 1 to {} bytes", path,
                            sizeof(sockaddr_un::sun_path) - 1);
  }
  Listener listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "unix:" + path);
  if (listener.fd_ < 0) return io_error("socket for {}: {}", path, std::strerror(errno));
  const sockaddr_un address = unix_address(path);
  const auto bind = [&] { return ::bind(listener.fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address); };
  int failed = bind();
  struct stat info {};
  if (failed != 0 && errno == EADDRINUSE && ::lstat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    if (somebody_listens(path)) return already_exists("cannot listen on {}: another process does", path);
    ::unlink(path.c_str());
    failed = bind();
  }
  if (failed != 0) return io_error("cannot listen on {}: {}", path, std::strerror(errno));
  // Nobody can connect before listen(), so there is no moment with a wider mode.
  if (::chmod(path.c_str(), 0600) != 0 || ::lstat(path.c_str(), &info) != 0) {
    return io_error("cannot set the mode of {}: {}", path, std::strerror(errno));
  }
  listener.unix_path_ = path;
  listener.inode_ = info.st_ino;
  if (::listen(listener.fd_, kBacklog) != 0) return io_error("cannot listen on {}: {}", path, std::strerror(errno));
  return listener;
}

int Listener::accept(int fd, Peer* peer) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  const int accepted = ::accept4(fd, reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (accepted < 0) return -1;
  *peer = describe(address);
  if (!peer->account.empty()) {
    const int on = 1, unsent = 128 << 10;
    ::setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on,
                 sizeof on);  // tokens leave at once; write()s are coalesced by us
    // What a slow reader has not taken waits in our bounded buffer, not in megabytes of kernel memory.
    ::setsockopt(accepted, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
    ::setsockopt(accepted, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  }
  return accepted;
}

bool is_literal_host(std::string_view host) {
  std::string name(host);
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  const size_t colon = name.rfind(':');
  if (colon != std::string::npos && name.find(']', colon) == std::string::npos) {
    if (name.find_first_not_of("0123456789", colon + 1) != std::string::npos) return false;
    name.resize(colon);
  }
  unsigned char address[sizeof(in6_addr)];
  if (name.size() > 2 && name.front() == '[' && name.back() == ']')
    return ::inet_pton(AF_INET6, name.substr(1, name.size() - 2).c_str(), address) == 1;
  return name == "localhost" || name.ends_with(".localhost") || ::inet_pton(AF_INET, name.c_str(), address) == 1;
}

}  // namespace lk
