// SPDX-License-Identifier: Apache-2.0
// lorikeet route: one address in front of many replicas.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "commands.h"
#include "config.h"
#include "help.h"
#include "lk/base/file.h"
#include "lk/cluster/router.h"
#include "lk/net/listener.h"

namespace lk::apps {
namespace {

struct RouteFlags {
  std::vector<std::string> replicas;
  std::string host = "127.0.0.1", key_file, max_body = "8MiB";
  int port = 8080;
  double drain_timeout = 120;
  bool insecure = false;
  RouterOptions router;

  void add_to(CLI::App& command);
  Result<RouterOptions> options() const;
};

void RouteFlags::add_to(CLI::App& command) {
  const char* fleet = "Fleet";
  command.add_option("--replica", replicas, "http(s)://HOST:PORT of a `lorikeet serve`; repeatable")
      ->required()
      ->group(fleet);
  command.add_option("--policy", router.fleet.policy, "who gets a request")
      ->check(CLI::IsMember(picker_names()))
      ->capture_default_str()
      ->group(fleet);
  command
      .add_option("--fleet-key-file", key_file,
                  "file with a key of scope fleet that every replica knows; also as $LORIKEET_FLEET_KEY")
      ->group(fleet);
  command.add_option("--replica-ca", router.tls_ca, "authorities (PEM) of https replicas instead of the system's")
      ->group(fleet);
  command
      .add_flag("--exact-only", router.exact_only,
                "end an answer with an error rather than let a replica of other numerics go on with it")
      ->group(fleet);
  const char* network = "Network";
  command.add_option("--host", host, "address to listen on")->capture_default_str()->group(network);
  command.add_option("--port", port, "0 = any free port")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(network);
  command.add_option("--tls-cert", router.tls_cert, "certificate chain (PEM)")->group(network);
  command.add_option("--tls-key", router.tls_key, "private key (PEM)")->group(network);
  command.add_option("--io-threads", router.io_threads, "threads for connections")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group(network);
  command.add_option("--max-body", max_body, "largest request body")->capture_default_str()->group(network);
  command.add_flag("--insecure", insecure, "allow listening beyond loopback in front of replicas that have no keys")
      ->group("Security");
  command.add_option("--drain-timeout", drain_timeout, "seconds to finish what is in flight after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group("Operations");
}

Result<std::string> read_key(const std::string& file) {
  std::string key;
  if (!file.empty()) {
    LK_ASSIGN_OR_RETURN(key, read_file(file));
  } else if (const char* variable = std::getenv("LORIKEET_FLEET_KEY")) {
    key = variable;
  }
  while (!key.empty() && std::string_view(" \t\r\n").find(key.back()) != std::string_view::npos) key.pop_back();
  if (key.find_first_of(" \t\r\n") != std::string::npos)
    return invalid_argument("{}: a key is one line", file.empty() ? "$LORIKEET_FLEET_KEY" : file);
  return key;
}

Result<RouterOptions> RouteFlags::options() const {
  RouterOptions filled = router;
  for (std::string url : replicas) {
    while (url.ends_with('/')) url.pop_back();
    if (!url.starts_with("http://") && !url.starts_with("https://"))
      return invalid_argument("--replica {}: give http://HOST:PORT or https://HOST:PORT", url);
    if (url.find('/', url.find("://") + 3) != std::string::npos)
      return invalid_argument("--replica {}: without a path", url);
    filled.fleet.urls.push_back(std::move(url));
  }
  LK_ASSIGN_OR_RETURN(filled.fleet_key, read_key(key_file));
  const Result<int64_t> body = parse_bytes(max_body);
  if (!body.ok()) return body.status().with_context("--max-body");
  filled.limits.max_body_bytes = *body;
  if (router.tls_cert.empty() != router.tls_key.empty())
    return invalid_argument("--tls-cert and --tls-key need each other");
  const std::string address = fmt::format("{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]", port);
  // Replicas with keys ask every client for one; without keys this would be the hole in the wall.
  if (filled.fleet_key.empty() && !insecure && !is_local_address(address))
    return failed_precondition(
        "listening on {} in front of replicas without API keys would let everybody in: give them keys and the router "
        "one of scope fleet (--fleet-key-file), or say --insecure",
        address);
  filled.listen = {{.address = address, .tls = !router.tls_cert.empty()}};
  filled.insecure = insecure;
  filled.version = LK_VERSION;
  return filled;
}

Status run(const RouteFlags& flags) {
  LK_ASSIGN_OR_RETURN(RouterOptions options, flags.options());
  auto mutex = std::make_shared<std::mutex>();
  options.log = [mutex](std::string_view event, std::string_view detail) {
    std::lock_guard lock(*mutex);
    fmt::print(stderr, "lorikeet route: {}: {}\n", event, detail);
  };
  watch_interrupts();
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Router> router, Router::start(options));
  fmt::print(stderr, "lorikeet route: {} replicas, policy {}, http{}://{}\n", options.fleet.urls.size(),
             options.fleet.policy, options.listen[0].tls ? "s" : "", router->address(0));
  while (!interrupted) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  fmt::print(stderr, "lorikeet route: no new requests; finishing what is in flight\n");
  if (!router->drain(std::chrono::milliseconds(static_cast<int64_t>(flags.drain_timeout * 1000))))
    fmt::print(stderr, "lorikeet route: some answers were cut off after {} s\n", flags.drain_timeout);
  return Status();
}

}  // namespace

void add_route(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<RouteFlags>();
  CLI::App* command = app.add_subcommand("route", "One address in front of many replicas of one model");
  flags->add_to(*command);
  command->callback([flags, &exit_code] {
    const Status status = run(*flags);
    exit_code = status.ok() ? 0 : fail(status);
  });
}

}  // namespace lk::apps
