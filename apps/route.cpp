// SPDX-License-Identifier: Apache-2.0
// lorikeet route: one address in front of many replicas.
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "commands.h"
#include "fleet_flags.h"
#include "listen_flags.h"
#include "lk/base/file.h"
#include "lk/cluster/router.h"
#include "lk/net/listener.h"
#include "lk/serve/access/state_store.h"
#include "lk/serve/route/fleet_gate.h"

namespace lk::apps {
namespace {

struct RouteFlags {
  RegistryFlags registry;
  std::vector<std::string> replicas;
  ListenFlags network;
  std::string key_file, state;
  double drain_timeout = 120;
  RouterOptions router;
  FleetGateOptions gate;

  RouteFlags() {
    network.port = 8080;
    network.io_threads = 1;
  }
  void add_to(CLI::App& command);
  struct Prepared {
    RouterOptions router;
    FleetGateOptions gate;
    std::unique_ptr<AccountStore> store;
  };
  Result<Prepared> prepare() const;
};

void RouteFlags::add_to(CLI::App& command) {
  const char* fleet = "Fleet";
  command.add_option("--replica", replicas, "http(s)://HOST:PORT of a `lorikeet serve`; repeatable")->group(fleet);
  registry.add_to(command, "the replicas are those that are registered there, beside --replica");
  command.add_option("--policy", router.fleet.policy, "who gets a request")
      ->check(CLI::IsMember(picker_names()))
      ->capture_default_str()
      ->group(fleet);
  command
      .add_option("--planner", router.planner.kind,
                  "which running requests go on elsewhere, and where adapters are kept; ilp needs CBC")
      ->check(CLI::IsMember(planner_names()))
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
  network.add_to(command);
  const char* security = "Security";
  command
      .add_option("--state", state,
                  "file of keys and tenants (lorikeet keys --state): keys are judged and limits hold here; "
                  "without it, and without a key of your own, replicas judge keys")
      ->group(security);
  command
      .add_option("--api-key-file", gate.access.key_file,
                  "file with one key of your own, for completions; also as $LORIKEET_API_KEY")
      ->group(security);
  registry.add_keys_to(command, security);
  command.add_flag("--insecure", gate.insecure, "allow listening beyond loopback without any API key")->group(security);
  command.add_option("--drain-timeout", drain_timeout, "seconds to finish what is in flight after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group("Operations");
}

Result<RouteFlags::Prepared> RouteFlags::prepare() const {
  Prepared prepared{.router = router, .gate = gate, .store = nullptr};
  prepared.router.shared_adapters = registry.given();
  if (replicas.empty() && !registry.given()) return invalid_argument("give --replica URL, or --fleet");
  for (std::string url : replicas) {
    while (url.ends_with('/')) url.pop_back();
    if (!url.starts_with("http://") && !url.starts_with("https://"))
      return invalid_argument("--replica {}: give http://HOST:PORT or https://HOST:PORT", url);
    if (url.find('/', url.find("://") + 3) != std::string::npos)
      return invalid_argument("--replica {}: without a path", url);
    prepared.router.fleet.urls.push_back(std::move(url));
  }
  RouterOptions& filled = prepared.router;
  LK_ASSIGN_OR_RETURN(filled.fleet_key, read_key(key_file, "LORIKEET_FLEET_KEY"));
  LK_ASSIGN_OR_RETURN(filled.listen, network.listen());
  LK_ASSIGN_OR_RETURN(filled.limits, network.http_limits());
  filled.tls_cert = network.tls_cert;
  filled.tls_key = network.tls_key;
  filled.io_threads = network.io_threads;
  filled.version = LK_VERSION;

  FleetGateOptions& door = prepared.gate;
  if (const char* key = std::getenv("LORIKEET_API_KEY"); key != nullptr) door.access.key_text = key;
  if (!state.empty()) {
    // A new, empty file would be nobody's intention.
    if (!file_exists(state)) return not_found("--state {}: no such file; lorikeet keys --state makes one", state);
    LK_ASSIGN_OR_RETURN(prepared.store, StateStore::open(state));
  }
  if (registry.has_keys()) {
    if (prepared.store) return invalid_argument("--state and --fleet-keys: keys are in one place");
    LK_ASSIGN_OR_RETURN(prepared.store, registry.open_accounts());
  }
  door.judges = prepared.store != nullptr || !door.access.key_file.empty() || !door.access.key_text.empty();
  door.fleet_key = filled.fleet_key;
  door.max_body_bytes = filled.limits.max_body_bytes;
  door.version = filled.version;
  return prepared;
}

Status run(const RouteFlags& flags) {
  LK_ASSIGN_OR_RETURN(RouteFlags::Prepared prepared, flags.prepare());
  RouterOptions& options = prepared.router;
  auto mutex = std::make_shared<std::mutex>();
  options.log = [mutex](std::string_view event, std::string_view detail) {
    std::lock_guard lock(*mutex);
    fmt::print(stderr, "lorikeet route: {}: {}\n", event, detail);
  };
  prepared.gate.log = options.log;
  watch_interrupts();
  LK_ASSIGN_OR_RETURN(std::unique_ptr<FleetGate> gate, FleetGate::create(prepared.gate, std::move(prepared.store)));
  // Without keys this would be the hole in the wall.
  for (const HttpListen& listener : options.listen)
    if (gate->open() && !prepared.gate.insecure && !is_local_address(listener.address))
      return failed_precondition(
          "listening on {} without any API key would let everybody in: give replicas keys and the router one of scope "
          "fleet (--fleet-key-file), or the router keys of its own (--state, --fleet-keys), or say --insecure",
          listener.address);
  std::unique_ptr<Registry> registry;
  std::unique_ptr<PlanBoard> board;
  if (flags.registry.given()) {
    LK_ASSIGN_OR_RETURN(registry, flags.registry.open(options.log));
    board = std::make_unique<PlanBoard>(*registry, options.log);
    options.publish_plan = [raw = board.get()](const FleetPlan& plan) { raw->publish(plan); };
  }
  raise_file_limit(2 * options.limits.max_connections);  // most of them have one to a replica
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Router> router, Router::start(options, std::move(gate)));
  if (registry) {
    follow_members(*registry, *router, options.log);
    board->follow(*router, planner_places(options.planner.kind));
  }
  fmt::print(stderr, "lorikeet route: {} replicas{}, policy {}, http{}://{}\n", options.fleet.urls.size(),
             registry ? " and those of " + flags.registry.url : "", options.fleet.policy,
             options.listen[0].tls ? "s" : "", router->address(0));
  while (!interrupted) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  fmt::print(stderr, "lorikeet route: no new requests; finishing what is in flight\n");
  if (!router->drain(std::chrono::milliseconds(static_cast<int64_t>(flags.drain_timeout * 1000))))
    fmt::print(stderr, "lorikeet route: some answers were cut off after {} s\n", flags.drain_timeout);
  if (registry) {
    registry->withdraw();
    registry->close();  // it speaks to the router no more
  }
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
