// SPDX-License-Identifier: Apache-2.0
// lorikeet serve: the OpenAI-compatible server.
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "answer_flags.h"
#include "commands.h"
#include "config.h"
#include "fleet_flags.h"
#include "help.h"
#include "hub_names.h"
#include "listen_flags.h"
#include "lk/base/file.h"
#include "lk/base/names.h"
#include "lk/base/sd_notify.h"
#include "lk/lora/adapter.h"
#include "lk/lora/adapter_config.h"
#include "lk/serve/adapters/directory_watcher.h"
#include "lk/serve/adapters/path_guard.h"
#include "lk/serve/http/browser_guard.h"
#include "lk/serve/http/heap_trimmer.h"
#include "lk/serve/http/server.h"

namespace lk::apps {
namespace {

struct ServeFlags {
  ModelFlags model;
  MemberFlags fleet;
  ListenFlags network;
  AnswerFlags answers;
  std::string admin, state, log_level = "info", log_format = "auto", log_file;
  std::vector<std::string> lora_roots;
  bool no_state = false;
  int kernel_nice = 3;
  double watch_seconds = 2, drain_grace = 5, drain_timeout = 120;
  ServerOptions server;

  void add_to(CLI::App& command);
  // Everything that can be refused before the model is read. With `dry` nothing is created or changed, and what comes
  // after is looked at, too, as far as it can be without reading weights.
  struct Prepared {
    ServerOptions options;
    std::unique_ptr<StateStore> store;
  };
  Result<Prepared> prepare(bool dry) const;
  Status check() const;
  Result<ServerOptions> options() const;
  std::string state_path() const { return state.empty() ? default_state_path() : state; }
};

void ServeFlags::add_to(CLI::App& command) {
  model.add_to(command, true);
  answers.add_to(command);
  const char* adapters = "Adapters";
  command
      .add_option(
          "--lora-root", lora_roots,
          "clients may load adapters from beneath this directory (or --lora-dir); {tenant} in it stands for the "
          "name of the key's tenant; repeatable")
      ->group(adapters);
  command.add_option("--watch-interval", watch_seconds, "seconds between looks at --lora-dir")
      ->check(CLI::Range(0.05, 3600.0))
      ->capture_default_str()
      ->group(adapters);
  network.add_to(command);
  command
      .add_option("--admin", admin,
                  "ADDRESS:PORT or unix:PATH: adapter management, status and metrics answer there only")
      ->group("Network");
  command.add_option("--kernel-nice", kernel_nice, "how far kernel threads stand back for connections (nice value)")
      ->check(CLI::Range(0, 19))
      ->capture_default_str()
      ->group("Machine");
  command.add_option("--worker-threads", server.worker_threads, "threads for parsing and tokenizing")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group("Network");
  command
      .add_option("--sse-ping", server.sse_ping_seconds,
                  "seconds of silence after which a stream gets a comment, so that nobody takes it for dead; 0 = never")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str()
      ->group("Network");
  fleet.add_to(command);
  fleet.registry.add_keys_to(command, "Fleet");
  const char* security = "Security";
  command.add_option("--state", state, "file of keys, tenants and loaded adapters; default: as `lorikeet keys`")
      ->group(security);
  command.add_flag("--no-state", no_state, "no keys, and nothing survives a restart")->group(security);
  command
      .add_option("--api-key-file", server.access.key_file,
                  "file with one key of your own, for completions; also as $LORIKEET_API_KEY")
      ->group(security);
  command
      .add_flag("--require-keys", server.access.require_keys, "refuse everybody while there is no API key, also here")
      ->group(security);
  command.add_flag("--insecure", server.insecure, "allow listening beyond loopback without any API key")
      ->group(security);
  command
      .add_option("--allow-origin", server.allowed_origins,
                  "web pages of this origin (https://app.example.org, or *) may use the server; repeatable")
      ->group(security);
  command.add_flag("--public-metrics", server.public_metrics, "/metrics and /v1/status without a key")->group(security);
  const char* overload = "Overload";
  command.add_option("--max-queue", server.engine.max_queue_requests, "most waiting requests; beyond it 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(overload);
  command
      .add_option("--max-queue-tokens", server.engine.max_queue_tokens,
                  "most tokens (prompt + max_tokens) that wait; 0 = max-queue * context / 4")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(overload);
  command.add_option("--max-wait", server.engine.max_wait_seconds, "longest predicted wait in seconds; beyond it 503")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str()
      ->group(overload);
  command
      .add_option("--request-timeout", server.default_timeout_seconds,
                  "seconds, for requests without x-request-timeout")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str()
      ->group(overload);
  const char* operations = "Operations";
  command
      .add_option("--drain-grace", drain_grace, "seconds from SIGTERM (and /ready 503) until nothing new is accepted")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str()
      ->group(operations);
  command.add_option("--drain-timeout", drain_timeout, "seconds to finish what is in flight")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group(operations);
  command
      .add_option("--stuck-after", server.stuck_seconds,
                  "seconds without a finished step until /live fails and systemd is told no more")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str()
      ->group(operations);
  command.add_option("--log-level", log_level, "least severe level to log")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str()
      ->group(operations);
  command.add_option("--log-format", log_format, "auto = text on a terminal, JSON lines otherwise")
      ->check(CLI::IsMember({"auto", "json", "text"}))
      ->capture_default_str()
      ->group(operations);
  command.add_option("--log-file", log_file, "appended to; default: standard error")->group(operations);
}

// What most operators turn, by group: the rest is under --help-all.
constexpr const char* kServeHelp =
    "lora context served-model-name tool-call-parser reasoning-parser "
    "threads tensor-parallel memory "
    "max-running max-loras scheduling-policy slo-first-token merging exact "
    "lora-dir lora-root host-memory "
    "host port unix-socket admin tls-cert tls-key max-body max-answer "
    "state no-state insecure public-metrics require-keys api-key-file allow-origin "
    "fleet advertise "
    "max-queue max-wait max-choices request-timeout "
    "drain-grace drain-timeout log-level log-format log-file "
    "config print-config check-config";

// Whether a file could be made there; with `directories` these, too.
Status check_creatable(const std::string& path, std::string_view what, bool directories) {
  std::filesystem::path directory = std::filesystem::absolute(path).parent_path();
  while (directories && !file_exists(directory.string()) && directory.has_relative_path())
    directory = directory.parent_path();
  if (!is_directory(directory.string())) return io_error("{} {}: {} is no directory", what, path, directory.string());
  if (::access(directory.c_str(), W_OK | X_OK) != 0)
    return io_error("{} {}: {}: {}", what, path, directory.string(), std::strerror(errno));
  return Status();
}

Result<ServeFlags::Prepared> ServeFlags::prepare(bool dry) const {
  Prepared prepared;
  LK_ASSIGN_OR_RETURN(prepared.options, options());
  if (!no_state) {
    const std::string path = state_path();
    prepared.options.adapters.conversion_cache = path + "-converted";
    if (dry && !file_exists(path)) {
      LK_RETURN_IF_ERROR(check_creatable(path, "state file", true));
    } else {
      LK_ASSIGN_OR_RETURN(prepared.store, StateStore::open(path));
      LK_RETURN_IF_ERROR(prepared.store->adapters().status());
      LK_RETURN_IF_ERROR(prepared.store->aliases().status());
    }
  }
  if (!dry && fleet.registry.has_keys()) {
    LK_ASSIGN_OR_RETURN(prepared.options.accounts, fleet.registry.open_accounts());
  }
  // Also before a start: it is soon done, the model is not. An address that is taken may be by the server that is being
  // checked for.
  const Status status = Server::check(prepared.options, prepared.store.get());
  if (!status.ok() && !(dry && status.code() == StatusCode::kAlreadyExists)) return status;
  LK_RETURN_IF_ERROR(answers.plan_memory(model, prepared.options));
  return prepared;
}

// The rest of what `serve` does before it answers, without weights: their files are looked at, not read.
Status ServeFlags::check() const {
  LK_ASSIGN_OR_RETURN(const Prepared prepared, prepare(true));
  if (!log_file.empty()) {
    if (!file_exists(log_file))
      LK_RETURN_IF_ERROR(check_creatable(log_file, "log", false));
    else if (::access(log_file.c_str(), W_OK) != 0)
      return io_error("log {}: {}", log_file, std::strerror(errno));
  }
  LK_ASSIGN_OR_RETURN(const ModelConfig config, TextEngine::read_config(model.model, model.dummy));
  LK_ASSIGN_OR_RETURN(const auto text_model, TextModel::load(model.model, config, model.context));
  LK_ASSIGN_OR_RETURN(const auto loras, model.parse_loras());
  for (const auto& [name, directory] : loras) {
    const std::string context = fmt::format("--lora {}={}", name, directory);
    LK_RETURN_IF_ERROR(check_adapter_name("adapter name", name).with_context(context));
    if (answers.is_base(model, name)) return already_exists("{}: \"{}\" is the base model", context, name);
    if (!is_directory(directory)) return not_found("{}: not a directory", context);
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(join_path(directory, "adapter_config.json")));
    LK_RETURN_IF_ERROR(parse_adapter_config(text, context).status());
    if (!file_exists(join_path(directory, "adapter_model.safetensors")))
      return not_found("{}: no adapter_model.safetensors", context);
    LK_ASSIGN_OR_RETURN(const std::optional<int64_t> own_vocab_size, read_own_vocab_size(directory, config));
    LK_RETURN_IF_ERROR(text_model->load_side(directory, own_vocab_size).status().with_context(context));
  }
  return Status();
}

// A root may have "{tenant}" as one of its directories: each tenant loads from beneath its own.
Result<std::string> canonical_root(const std::string& root, bool may_be_of_tenants) {
  const size_t at = root.find('{');
  if (at == std::string::npos) {
    if (!is_directory(root)) return not_found("{} is not a directory", root);
    std::error_code error;
    return std::filesystem::canonical(root, error).string();
  }
  const size_t end = at + kTenantDirectory.size();
  const bool is_tenants = root.compare(at, kTenantDirectory.size(), kTenantDirectory) == 0 && at > 0 &&
                          root[at - 1] == '/' && (end == root.size() || root[end] == '/') &&
                          root.find('{', end) == std::string::npos;
  if (!is_tenants || !may_be_of_tenants)
    return invalid_argument(
        "{}: \"{}\" may stand for one whole directory in the path of a --lora-root, as in /srv/adapters/{{tenant}}",
        root, kTenantDirectory);
  LK_ASSIGN_OR_RETURN(const std::string above, canonical_root(root.substr(0, at), false));
  return fmt::format("{}/{}", above, root.substr(at));
}

Result<ServerOptions> ServeFlags::options() const {
  ServerOptions filled = server;
  LK_RETURN_IF_ERROR(answers.fill(model, filled));
  LK_ASSIGN_OR_RETURN(filled.listen, network.listen());
  LK_ASSIGN_OR_RETURN(filled.limits, network.http_limits());
  filled.tls_cert = network.tls_cert;
  filled.tls_key = network.tls_key;
  filled.io_threads = network.io_threads;
  const bool tls = filled.listen[0].tls;
  if (!admin.empty()) filled.admin = HttpListen{.address = admin, .tls = tls && !admin.starts_with("unix:")};
  LK_ASSIGN_OR_RETURN(filled.fleet, fleet.options(network.host, no_state ? "" : state_path()));
  filled.access.require_keys |= fleet.registry.has_keys();
  for (const auto* roots : {&lora_roots, &answers.lora_dirs})
    for (const std::string& root : *roots) {
      LK_ASSIGN_OR_RETURN(const std::string found, canonical_root(root, roots == &lora_roots));
      filled.adapters.roots.push_back(found);
    }
  LK_RETURN_IF_ERROR(BrowserGuard::create(filled.allowed_origins).status().with_context("--allow-origin"));
  filled.engine.nice = kernel_nice;
  if (const char* key = std::getenv("LORIKEET_API_KEY"); key != nullptr) filled.access.key_text = key;
  if (filled.insecure && filled.access.require_keys)
    return invalid_argument("--insecure lets everybody in, --require-keys nobody without a key: give one of them");
  return filled;
}

// What is stored for the base that is served.
struct Stored {
  std::vector<StoredAdapter> adapters;
  std::vector<StateStore::Alias> aliases;
  int64_t num_of_other_bases = 0;
};

Result<Stored> read_stored(const std::string& base, StateStore& store) {
  LK_RETURN_IF_ERROR(store.use_base(base));
  Stored stored;
  LK_ASSIGN_OR_RETURN(stored.adapters, store.adapters());
  LK_ASSIGN_OR_RETURN(stored.aliases, store.aliases());
  LK_ASSIGN_OR_RETURN(stored.num_of_other_bases, store.num_of_other_bases());
  return stored;
}

Status load_adapters(const ServeFlags& flags, Server& server, std::unique_ptr<DirectoryWatcher>& watcher,
                     const Stored& stored) {
  AdapterRegistry& registry = server.adapters();
  for (const std::string& warning : server.engine().text().base().warnings)
    server.log().write(LogLevel::kWarning, "model_warning", {{"reason", warning}});
  LK_RETURN_IF_ERROR(load_loras(flags.model, server));
  if (!flags.answers.lora_dirs.empty()) {
    const auto interval = std::chrono::milliseconds(static_cast<int64_t>(flags.watch_seconds * 1e3));
    LK_ASSIGN_OR_RETURN(watcher, DirectoryWatcher::start(registry, server.log(),
                                                         {.directories = flags.answers.lora_dirs,
                                                          .interval = interval,
                                                          .max_eager = flags.answers.lora_eager}));
  }
  // What clients had loaded before the restart. Something that is gone, changed or no longer allowed costs a log line,
  // not the start: it stays known, and is tried again.
  const bool load_now = std::ssize(stored.adapters) <= flags.answers.lora_eager;
  for (const StoredAdapter& adapter : stored.adapters) registry.restore(adapter, load_now || adapter.pinned);
  registry.load_restored();
  for (const StateStore::Alias& alias : stored.aliases) {
    const std::string target = alias.version > 0 ? fmt::format("{}@{}", alias.name, alias.version) : alias.name;
    if (const Status status = registry.set_alias(alias.alias, target); !status.ok())
      server.log().write(LogLevel::kWarning, "alias_not_restored",
                         {{"alias", alias.alias}, {"reason", status.message()}});
  }
  return Status();
}

void print_banner(const ServeFlags& flags, const ServerOptions& options, Server& server) {
  std::string address = server.address(0);
  const std::string url = fmt::format("{}://{}", options.tls_cert.empty() ? "http" : "https", address);
  const int64_t num_adapters = server.adapters().counts().names;
  fmt::print(stderr, "\nLorikeet {} serves {} with {} adapter{} on {}\n", options.version, options.adapters.base_name,
             num_adapters, num_adapters == 1 ? "" : "s", url);
  if (flags.model.ranks > 1)
    fmt::print(stderr, "  ranks    {} in this process, each with its part of the model\n", flags.model.ranks);
  if (options.admin) fmt::print(stderr, "  admin    {}\n", server.address(static_cast<int>(options.listen.size())));
  if (options.console) {
    // Where status and adapters are, too; a browser cannot open a unix socket.
    const std::string admin = options.admin ? server.address(static_cast<int>(options.listen.size())) : "";
    const bool apart = options.admin && !admin.starts_with("unix:");
    fmt::print(stderr, "  console  {}/\n",
               apart ? fmt::format("{}://{}", options.admin->tls ? "https" : "http", admin) : url);
  }
  fmt::print(stderr, "  metrics  {}/metrics\n",
             options.admin ? server.address(static_cast<int>(options.listen.size())) : url);
  const AdapterRegistry::NamePage first = server.adapters().list_names("", 1);
  const std::string name = first.entries.empty() ? options.adapters.base_name : first.entries[0].name;
  const bool chat = server.engine().text().base().templates != nullptr;
  if (chat)
    fmt::print(stderr,
               "\n  curl {}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{{\"model\": \"{}\", "
               "\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\n",
               url, name);
  else if (server.engine().text().tokenizer())
    fmt::print(stderr,
               "\n  curl {}/v1/completions -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", \"prompt\": "
               "\"Hello\"}}'\n\n",
               url, name);
  else
    fmt::print(stderr,
               "\n  curl {}/v1/completions -H 'Content-Type: application/json' -d '{{\"model\": \"{}\", \"prompt\": "
               "[1, 2, 3]}}'\n\n",
               url, name);
}

// From now on routers find it, as soon as the registry answers.
Status join_fleet(const ServeFlags& flags, const std::string& base, Server& server) {
  if (!flags.fleet.registry.given()) return Status();
  LK_ASSIGN_OR_RETURN(Member member, flags.fleet.member(server.address(0), !flags.network.tls_cert.empty()));
  member.base = base;
  member.model = server.adapters().base_name();
  member.version = LK_VERSION;
  server.join_fleet(member);
  server.log().write(LogLevel::kInfo, "fleet_joined",
                     {{"fleet", flags.fleet.registry.url}, {"replica", member.id}, {"url", member.url}});
  return Status();
}

// Waits for SIGINT or SIGTERM; SIGHUP reloads keys and the TLS certificate. The signals are blocked in every thread and
// taken here.
int wait_for_shutdown(Server& server, DirectoryWatcher* watcher, const sigset_t& signals, double stuck_seconds) {
  const auto watchdog = watchdog_timeout();
  // Log lines are in their file within a second; the service manager wants to hear twice in its time.
  std::chrono::nanoseconds interval = std::chrono::milliseconds(500);
  if (watchdog) interval = std::min<std::chrono::nanoseconds>(interval, *watchdog / 2);
  const timespec timeout{.tv_sec = 0, .tv_nsec = interval.count()};
  for (;;) {
    const int signal = ::sigtimedwait(&signals, nullptr, &timeout);
    server.housekeep();
    if (signal == SIGINT || signal == SIGTERM) return signal;
    if (signal == SIGHUP) {
      (void)notify_reloading();
      if (const Status log = server.log().reopen(); !log.ok())
        server.log().write(LogLevel::kError, "log_not_reopened", {{"reason", log.message()}});
      if (watcher) watcher->accept_empty();
      const Status status = server.reload_keys();
      if (status.ok())
        server.log().write(LogLevel::kInfo, "keys_reloaded");
      else
        server.log().write(LogLevel::kError, "keys_not_reloaded", {{"reason", status.message()}});
      if (const Status tls = server.reload_tls(); !tls.ok())
        server.log().write(LogLevel::kError, "certificate_not_reloaded", {{"reason", tls.message()}});
      (void)notify_service_manager("READY=1");
    }
    // One that is stuck says nothing more, and is restarted.
    if (watchdog && server.engine().stalled_seconds() <= stuck_seconds) (void)notify_service_manager("WATCHDOG=1");
  }
}

int run(const ServeFlags& flags) {
  keep_heap_small();
  // Before any thread exists, so that all inherit it.
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGXFSZ, SIG_IGN);  // a file at its limit is an error of that write, as a full disk is

  Result<ServeFlags::Prepared> prepared = flags.prepare(false);
  if (!prepared.ok()) return fail(prepared.status());
  const ServerOptions& options = prepared->options;
  const bool text_log =
      flags.log_format == "text" || (flags.log_format == "auto" && flags.log_file.empty() && stderr_is_terminal());
  Result<std::unique_ptr<Log>> log = Log::create({.level = parse_log_level(flags.log_level).value(),
                                                  .format = text_log ? Log::Format::kText : Log::Format::kJson,
                                                  .file = flags.log_file});
  if (!log.ok()) return fail(log.status());
  raise_file_limit(options.limits.max_connections);

  Result<std::unique_ptr<TextEngine>> engine = open_engine(flags.model, options.memory, flags.kernel_nice);
  if (!engine.ok()) return fail(engine.status());
  Result<std::string> base = std::string();
  if (prepared->store || flags.fleet.registry.given()) base = digest_of_base(flags.model, **engine);
  if (!base.ok()) return fail(base.status());
  Result<Stored> stored = Stored();
  if (prepared->store) stored = read_stored(*base, *prepared->store);
  if (!stored.ok()) return fail(stored.status());
  Result<std::unique_ptr<Server>> started =
      Server::start(options, std::move(engine).value(), std::move(prepared->store), std::move(log).value());
  if (!started.ok()) return fail(started.status());
  Server& server = **started;
  if (stored->num_of_other_bases > 0)
    server.log().write(LogLevel::kInfo, "adapters_of_other_bases",
                       {{"adapters", stored->num_of_other_bases},
                        {"reason", "they were loaded for another base model, and stay stored for when it comes back"}});
  std::unique_ptr<DirectoryWatcher> watcher;
  if (const Status status = load_adapters(flags, server, watcher, *stored); !status.ok()) return fail(status);
  if (const Status status = join_fleet(flags, *base, server); !status.ok()) return fail(status);
  server.set_ready(true);
  server.log().write(LogLevel::kInfo, "ready",
                     {{"address", server.address(0)},
                      {"admin", options.admin ? server.address(static_cast<int>(options.listen.size())) : ""},
                      {"adapters", server.adapters().versions().size()}});
  print_banner(flags, options, server);
  (void)notify_service_manager("READY=1");

  const int signal = wait_for_shutdown(server, watcher.get(), signals, options.stuck_seconds);
  (void)notify_service_manager("STOPPING=1");
  watch_interrupts();  // the next signal ends the program at once
  ::signal(SIGHUP, SIG_IGN);
  ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  interrupted = 1;
  watcher.reset();
  // Somebody at a terminal does not want to wait for load balancers to notice.
  const double grace = signal == SIGINT ? 0 : flags.drain_grace;
  server.begin_drain(std::chrono::milliseconds(static_cast<int64_t>(grace * 1e3)));
  server.leave_fleet();
  const bool clean = server.finish_drain(std::chrono::milliseconds(static_cast<int64_t>(flags.drain_timeout * 1e3)));
  server.log().write(LogLevel::kInfo, "stopped", {{"clean", clean}});
  return 0;
}

}  // namespace

void add_serve(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "Serve the model and its adapters over HTTP (OpenAI's API)");
  flags->add_to(*command);
  add_config_options(*command, [flags]() -> Status {
    LK_RETURN_IF_ERROR(flags->model.fetch(Fetch::kCachedOnly));
    return flags->check();
  });
  show_in_help(*command, options_named(kServeHelp));
  command->callback([flags, &exit_code] {
    // What is wrong with other options is said before anything is downloaded.
    Status status = flags->options().status();
    if (status.ok()) status = flags->model.fetch(Fetch::kFetch);
    exit_code = status.ok() ? run(*flags) : fail(status);
  });
}

}  // namespace lk::apps
