// SPDX-License-Identifier: Apache-2.0
// Listener: a bound, listening, non-blocking socket, TCP or unix, and what accept() can say about a new peer.
#pragma once

#include <string>
#include <string_view>

#include "lk/base/status.h"

namespace lk {

struct Peer {
  std::string name;  // "10.0.0.7", "2001:db8::1", "unix"
  std::string
      account;  // what the per-address limit counts by: an IPv4 address, an IPv6 /64; empty for unix sockets (no limit)
};

// Whether nobody but this machine can connect to a listen address: loopback, written as an address or as localhost, or
// a unix socket.
bool is_local_address(const std::string& address);
// Of a Host header: an address ("127.0.0.1:8000", "[::1]", "10.1.2.3") or localhost: what only the one who typed it
// chose.
bool is_literal_host(std::string_view host);

class Listener {
 public:
  // "127.0.0.1:8000", "[::1]:0", "localhost:8000", "unix:/path". A unix socket gets mode 0600; a file left behind by a
  // server that died is replaced, one that somebody listens on is not. An IPv6 wildcard does not take IPv4: list both.
  // kAlreadyExists when the address is taken.
  static Result<Listener> open(const std::string& address);
  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  ~Listener();  // closes what was not released, removes the unix socket file if it is still ours

  int fd() const { return fd_; }
  int release_fd();                                        // the caller closes it
  const std::string& address() const { return address_; }  // with the port that was chosen

  // One connection: its non-blocking descriptor, or -1 with errno set.
  static int accept(int fd, Peer* peer);

 private:
  Listener(int fd, std::string address) : fd_(fd), address_(std::move(address)) {}
  static Result<Listener> open_tcp(const std::string& address);
  static Result<Listener> open_unix(const std::string& path);
  int fd_ = -1;
  std::string address_;
  std::string unix_path_;
  unsigned long inode_ = 0;
};

}  // namespace lk
