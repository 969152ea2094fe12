// SPDX-License-Identifier: Apache-2.0
#include "listen_flags.h"

#include <sys/resource.h>

#include <algorithm>

#include "lk/base/bytes.h"

namespace lk::apps {

void ListenFlags::add_to(CLI::App& command) {
  const char* network = "Network";
  command.add_option("--host", host, "address to listen on")->capture_default_str()->group(network);
  command.add_option("--port", port, "0 = any free port")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(network);
  command.add_option("--unix-socket", unix_socket, "also listen on this unix socket")->group(network);
  command.add_option("--tls-cert", tls_cert, "certificate chain (PEM)")->group(network);
  command.add_option("--tls-key", tls_key, "private key (PEM)")->group(network);
  command.add_option("--io-threads", io_threads, "threads for connections")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(network);
  command.add_option("--max-connections", limits.max_connections, "in all")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(network);
  command.add_option("--max-connections-per-address", limits.max_connections_per_address, "of one client")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(network);
  command.add_option("--max-body", max_body, "largest request body")->capture_default_str()->group(network);
}

Result<std::vector<HttpListen>> ListenFlags::listen() const {
  if (tls_cert.empty() != tls_key.empty()) return invalid_argument("--tls-cert and --tls-key go together");
  const std::string shown = host == "localhost" ? "127.0.0.1" : host;
  const bool is_bare_ipv6 = shown.find(':') != std::string::npos && shown[0] != '[';
  std::vector<HttpListen> all{
      {.address = fmt::format("{}:{}", is_bare_ipv6 ? "[" + shown + "]" : shown, port), .tls = !tls_cert.empty()}};
  if (!unix_socket.empty()) all.push_back({.address = "unix:" + unix_socket});
  return all;
}

Result<HttpLimits> ListenFlags::http_limits() const {
  HttpLimits filled = limits;
  const Result<int64_t> body = parse_bytes(max_body);
  if (!body.ok()) return body.status().with_context("--max-body");
  filled.max_body_bytes = *body;
  return filled;
}

void raise_file_limit(int64_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto target = std::min<rlim_t>(limit.rlim_max, static_cast<rlim_t>(wanted + 256));
  if (target <= limit.rlim_cur) return;
  limit.rlim_cur = target;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace lk::apps
