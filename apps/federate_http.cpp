// SPDX-License-Identifier: Apache-2.0
#include "federate_http.h"

#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <thread>

#include "commands.h"
#include "fleet_flags.h"
#include "listen_flags.h"
#include "lk/base/file.h"
#include "lk/base/plain_text.h"
#include "lk/io/checkpoint.h"
#include "lk/serve/federate/federate_client.h"
#include "lk/serve/federate/federate_door.h"
#include "training_base.h"

namespace lk::apps {
namespace {

// Of events, one line each, from any thread.
std::function<void(std::string_view, std::string_view)> make_log(const char* who) {
  auto mutex = std::make_shared<std::mutex>();
  return [mutex, who](std::string_view event, std::string_view detail) {
    const std::lock_guard lock(*mutex);
    // Texts of the other side are among them.
    fmt::print(stderr, "lorikeet federate {}: {}: {}\n", who, event, clean_text(detail, 2000));
  };
}

std::chrono::milliseconds seconds(double value) {
  return std::chrono::milliseconds(static_cast<int64_t>(value * 1000));
}

struct ServerFlags {
  std::string run, state, keys;
  ListenFlags network;
  int64_t wait_for = 0;
  double deadline = 3600;

  ServerFlags() {
    network.port = 8900;
    network.io_threads = 1;
  }
};

Status serve(const ServerFlags& flags) {
  LK_ASSIGN_OR_RETURN(const FederatedConfig config, load_federated_config(flags.run));
  const std::string keys = flags.keys.empty() ? default_state_path() : flags.keys;
  if (!file_exists(keys))
    return not_found("--keys {}: no such file; lorikeet keys create --tenant CLIENT --scope federate makes one", keys);
  LK_ASSIGN_OR_RETURN(std::unique_ptr<StateStore> store, StateStore::open(keys));
  LK_ASSIGN_OR_RETURN(const Checkpoint base, open_checkpoint(config.base));
  FederateDoorOptions options{.tls_cert = flags.network.tls_cert,
                              .tls_key = flags.network.tls_key,
                              .io_threads = flags.network.io_threads,
                              .deadline = seconds(flags.deadline),
                              .version = LK_VERSION,
                              .log = make_log("server")};
  LK_ASSIGN_OR_RETURN(options.listen, flags.network.listen());
  LK_ASSIGN_OR_RETURN(options.limits, flags.network.http_limits());
  Coordinator::Hooks hooks;
  hooks.on_round = [](const std::string& line) { fmt::print("{}\n", line), std::fflush(stdout); };
  hooks.on_note = [log = options.log](const std::string& text) { log("run", text); };
  LK_ASSIGN_OR_RETURN(std::unique_ptr<Coordinator> coordinator,
                      Coordinator::create(config, base.config, *base.weights, flags.state, flags.wait_for,
                                          std::move(hooks), [] { return interrupted != 0; }));
  raise_file_limit(options.limits.max_connections);
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<FederateDoor> door,
                      FederateDoor::start(options, std::move(coordinator), std::move(store)));
  fmt::print(stderr, "lorikeet federate server: {} clients, http{}://{}\n", config.clients.size(),
             options.listen[0].tls ? "s" : "", door->address(0));
  while (!interrupted) {
    if (const std::optional<Status> ended = door->ended()) return *ended;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return cancelled("interrupted");
}

}  // namespace

void add_federate_server(CLI::App& federate, int& exit_code) {
  auto flags = std::make_shared<ServerFlags>();
  CLI::App* sub = federate.add_subcommand("server", "Run a federation over HTTP: clients join, train, send");
  sub->add_option("RUN", flags->run, "YAML file of the run (docs/guide/federated.md)")->required();
  sub->add_option("--state", flags->state, "directory of the run; the same command goes on after an interruption")
      ->required();
  sub->add_option("--keys", flags->keys,
                  "file of keys (lorikeet keys --state): one of scope federate for each client, whose name is its "
                  "tenant; default as there");
  sub->add_option("--wait-for", flags->wait_for, "clients that must have joined before the first round; default: all")
      ->check(CLI::Range(1, 100'000));
  sub->add_option("--deadline", flags->deadline, "seconds for the updates of a round")
      ->check(CLI::Range(0.1, 1e7))
      ->capture_default_str();
  flags->network.add_to(*sub);
  sub->remove_option(sub->get_option("--max-body"));  // follows from the run
  sub->callback([flags, &exit_code] {
    watch_interrupts();
    const Status status = serve(*flags);
    if (status.ok()) return;
    exit_code = status.code() == StatusCode::kCancelled ? 130 : fail(status);
    if (exit_code == 130) fmt::print(stderr, "stopped; the same command goes on where it was\n");
  });
}

void HttpClientFlags::add_to(CLI::App& command) {
  command.add_option("--server", server, "http(s)://HOST:PORT of a `lorikeet federate server`");
  command.add_option("--key-file", key_file,
                     "with --server: file with this client's key of scope federate; also as $LORIKEET_FEDERATE_KEY");
  command.add_option("--server-ca", server_ca, "authorities (PEM) of an https server instead of the system's");
  command.add_option("--patience", patience, "with --server: seconds to go on asking one that does not answer")
      ->check(CLI::Range(0.0, 1e7))
      ->capture_default_str();
}

Status run_http_client(const HttpClientFlags& flags, const std::string& base, const std::string& data,
                       const std::string& state, int threads, const std::string& isa) {
  FederateClientOptions options{.server = flags.server,
                                .tls_ca = flags.server_ca,
                                .base = base,
                                .data = data,
                                .state = state,
                                .patience = seconds(flags.patience),
                                .log = make_log("client")};
  while (options.server.ends_with('/')) options.server.pop_back();
  LK_ASSIGN_OR_RETURN(options.key, read_key(flags.key_file, "LORIKEET_FEDERATE_KEY"));
  if (options.key.empty())
    return invalid_argument("--key-file is missing: the server's operator makes keys with lorikeet keys create");
  if (state.empty()) return invalid_argument("--state is missing: a directory for what outlasts an interruption");
  // The run says in what type it trains: asked for when it is known.
  options.open_base = [&](DType act) -> Result<std::shared_ptr<const TrainBase>> {
    const auto loaded = std::make_shared<TrainingBase>();
    LK_ASSIGN_OR_RETURN(*loaded, open_training_base(base, act, threads, isa));
    return std::shared_ptr<const TrainBase>(loaded, &loaded->base);
  };
  return run_federate_client(options, [] { return interrupted != 0; });
}

}  // namespace lk::apps
