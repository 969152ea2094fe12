// SPDX-License-Identifier: Apache-2.0
// lorikeet federate: one adapter from many clients' training.
#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <set>

#include "commands.h"
#include "federate_http.h"
#include "hub_names.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"
#include "lk/base/thread_pool.h"
#include "lk/federated/dirichlet.h"
#include "lk/federated/exchange.h"
#include "lk/federated/rules.h"
#include "lk/federated/run_directory.h"
#include "lk/federated/simulation.h"
#include "lk/io/checkpoint.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/lora_tools/save.h"
#include "training_base.h"

namespace lk::apps {
namespace {
namespace json = boost::json;

constexpr size_t kMostMessage = 4000;

// Of a directory, or of a name on the hub.
Result<Checkpoint> open_base(std::string written) {
  LK_RETURN_IF_ERROR(find_model(written));
  return open_checkpoint(written);
}

// --- aggregate

struct AggregateFlags {
  std::string base, out, rule = "fedavg", dtype = "f32";
  std::vector<std::string> adapters;
  std::vector<double> weights;
  std::optional<double> trim;
  RuleOptions options;
};

Result<std::vector<ClientFactors>> read_clients(const AggregateFlags& flags, const Checkpoint& base) {
  if (!flags.weights.empty() && flags.weights.size() != flags.adapters.size())
    return invalid_argument("--weights has {} numbers for {} adapters", flags.weights.size(), flags.adapters.size());
  std::vector<ClientFactors> clients;
  for (size_t index = 0; index < flags.adapters.size(); ++index) {
    std::string directory = flags.adapters[index];
    LK_RETURN_IF_ERROR(find_adapter(directory));
    LK_ASSIGN_OR_RETURN(const auto adapter, load_adapter(directory, directory, base.config, base.weights.get(),
                                                         {.num_threads = default_num_threads()}));
    warn(directory, adapter->warnings);
    LK_ASSIGN_OR_RETURN(ModuleFactors factors, factors_of(*adapter));
    clients.push_back({flags.adapters[index], flags.weights.empty() ? 1.0 : flags.weights[index], std::move(factors)});
  }
  return clients;
}

// The last part of each client's directory, with the one before it ("c1-latest") where that is not enough.
Result<std::vector<std::string>> names_of(const std::vector<ClientFactors>& clients) {
  for (const bool with_parent : {false, true}) {
    std::vector<std::string> names;
    for (const ClientFactors& client : clients) {
      std::filesystem::path path = std::filesystem::absolute(client.client).lexically_normal();
      if (!path.has_filename()) path = path.parent_path();  // "c1/"
      const std::string parent = path.parent_path().filename().string();
      names.push_back(with_parent ? parent + "-" + path.filename().string() : path.filename().string());
    }
    if (std::set<std::string>(names.begin(), names.end()).size() == names.size()) return names;
  }
  return invalid_argument(
      "the adapters' directories need different names: each client's result goes below one of its own");
}

// FedSA's result: the common A with each client's own B.
Status save_personal(const std::vector<ClientFactors>& clients, const ModuleFactors& global, const ModelConfig& config,
                     const std::string& out, const SaveOptions& save) {
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> names, names_of(clients));
  for (size_t index = 0; index < clients.size(); ++index) {
    ModuleFactors own = clients[index].factors;
    for (auto& [module, each] : own) each.factors.a = global.at(module).factors.a;
    const std::string& name = names[index];
    const std::string directory = join_path(out, name);
    LK_RETURN_IF_ERROR(save_new_adapter(*adapter_of(own, config, name), config, directory, save));
    fmt::print("wrote {}\n", directory);
  }
  return Status();
}

Status aggregate(AggregateFlags& flags) {
  RuleOptions& options = flags.options;
  options.rule =
      std::ranges::find_if(kFederatedRules, [&](const auto& item) { return item.second == flags.rule; })->first;
  if (options.rule == FederatedRule::kSlora)
    return invalid_argument("slora is a schedule of rounds: its second stage is fedavg, its first needs a run");
  if (options.max_rank > 0 && options.rule != FederatedRule::kFlex)
    return invalid_argument("--max-rank is for flex, which cuts the mean of the changes to it");
  if (options.residual_rank > 0 && options.rule != FederatedRule::kFedEx)
    return invalid_argument("--residual-rank is for fedex, which adds a residual to the means");
  if (flags.trim && options.rule != FederatedRule::kTrimmed) return invalid_argument("--trim is for trimmed");
  options.trim = flags.trim.value_or(options.trim);
  LK_ASSIGN_OR_RETURN(const Checkpoint base, open_base(flags.base));
  LK_ASSIGN_OR_RETURN(const std::vector<ClientFactors> clients, read_clients(flags, base));
  LK_ASSIGN_OR_RETURN(Aggregate result, aggregate_factors(clients, options));
  SaveOptions save{.dtype = flags.dtype == "bf16" ? DType::kBF16 : DType::kF32, .base_model_name = flags.base};
  fmt::print("{} of {} adapters: aggregation error {:.3g}", flags.rule, clients.size(), result.report.error);
  if (result.report.dropped > 0)
    fmt::print(", dropped {:.3g} % of the energy", 100 * result.report.dropped / result.report.energy);
  fmt::print("\n");
  if (options.rule == FederatedRule::kFedSa) return save_personal(clients, result.global, base.config, flags.out, save);
  if (!result.residual.empty()) {
    const WeightedFactors parts[] = {{&result.global, 1}, {&result.residual, 1}};
    result.global = stack_factors(parts);
  }
  const auto adapter = adapter_of(result.global, base.config, "aggregate");
  if (adapter->max_rank > max_servable_rank())
    return invalid_argument("the ranks add up to {}, and at most {} can be served: use flex with --max-rank",
                            adapter->max_rank, max_servable_rank());
  LK_RETURN_IF_ERROR(save_new_adapter(*adapter, base.config, flags.out, save));
  fmt::print("wrote {}: rank up to {}\n", flags.out, adapter->max_rank);
  return Status();
}

void add_aggregate(CLI::App& federate, int& exit_code) {
  auto flags = std::make_shared<AggregateFlags>();
  CLI::App* sub = federate.add_subcommand("aggregate", "Make one adapter of those that clients trained");
  sub->add_option("ADAPTERS", flags->adapters, "PEFT directories, or names on the hub, one per client")->required();
  sub->add_option("--base", flags->base, "base model directory, or its name on the hub")->required();
  sub->add_option("--out", flags->out, "directory to write; with fedsa, one adapter per client goes below it")
      ->required();
  std::vector<std::string> rules;
  for (const auto& [rule, name] : kFederatedRules)
    if (rule != FederatedRule::kSlora) rules.emplace_back(name);
  sub->add_option("--rule", flags->rule, "how they become one (docs/guide/federated.md)")
      ->check(CLI::IsMember(rules))
      ->capture_default_str();
  sub->add_option("--weights", flags->weights, "one number per adapter, e.g. its examples; default 1 each")
      ->delimiter(',');
  sub->add_option("--max-rank", flags->options.max_rank, "flex: of the result; default: the largest of a client")
      ->check(CLI::Range(int64_t{1}, max_servable_rank()));
  sub->add_option("--residual-rank", flags->options.residual_rank, "fedex: of what is added to the means; default: all")
      ->check(CLI::Range(int64_t{1}, max_servable_rank()));
  sub->add_option("--trim", flags->trim, "trimmed: share left out at each end, in [0, 0.5); default 0.2");
  sub->add_option("--dtype", flags->dtype, "of the written tensors")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  sub->callback([flags, &exit_code] {
    if (Status status = aggregate(*flags); !status.ok()) exit_code = fail(status);
  });
}

// --- split

struct SplitFlags {
  std::vector<std::string> files;
  std::string out;
  DirichletOptions options;
};

Status split(const SplitFlags& flags) {
  LK_ASSIGN_OR_RETURN(const DirichletSplit found, split_by_dirichlet(flags.files, flags.options));
  LK_RETURN_IF_ERROR(write_split(found, flags.out));
  for (size_t client = 0; client < found.clients.size(); ++client)
    fmt::print("{}: {} records ({})\n", client_file(client, found.clients.size()), found.clients[client].size(),
               fmt::join(found.counts[client], " "));
  return Status();
}

void add_split(CLI::App& federate, int& exit_code) {
  auto flags = std::make_shared<SplitFlags>();
  CLI::App* sub = federate.add_subcommand("split", "Deal records to clients, the more unevenly the smaller --alpha");
  sub->add_option("FILES", flags->files, "JSONL, one file per class (task, language, source)")->required();
  sub->add_option("--clients", flags->options.num_clients, "how many")->required()->check(CLI::Range(1, 100000));
  sub->add_option("--alpha", flags->options.alpha,
                  "of the Dirichlet distribution of each class over clients; inf = alike")
      ->capture_default_str();
  sub->add_option("--min-examples", flags->options.min_examples,
                  "of each client; draws are repeated until they have them")
      ->capture_default_str();
  sub->add_option("--seed", flags->options.seed, "of the draw")->capture_default_str();
  sub->add_option("--out", flags->out, "directory for client-00.jsonl and so on")->required();
  sub->callback([flags, &exit_code] {
    if (Status status = split(*flags); !status.ok()) exit_code = fail(status);
  });
}

// --- simulate

struct SimulateFlags {
  std::string file, out, isa = "auto";
  std::optional<int64_t> threads;
};

Status simulate(const SimulateFlags& flags) {
  LK_ASSIGN_OR_RETURN(FederatedConfig config, load_federated_config(flags.file));
  if (flags.threads) config.threads = *flags.threads;
  LK_ASSIGN_OR_RETURN(const TrainingBase loaded,
                      open_training_base(config.base, config.dtype == TrainDtype::kF32 ? DType::kF32 : DType::kBF16,
                                         static_cast<int>(config.threads), flags.isa));
  SimulationHooks hooks;
  hooks.on_round = [](const std::string& line) { fmt::print("{}\n", line), std::fflush(stdout); };
  hooks.on_note = [](const std::string& text) { fmt::print(stderr, "{}\n", text); };
  const auto stop = [] { return interrupted != 0; };
  LK_ASSIGN_OR_RETURN(const auto simulation,
                      Simulation::create(config, loaded.base, flags.out, std::move(hooks), stop));
  LK_RETURN_IF_ERROR(simulation->run(stop));
  fmt::print(stderr, "the adapter of the last round is {}\n", join_path(flags.out, "latest"));
  return Status();
}

void add_simulate_federated(CLI::App& federate, int& exit_code) {
  auto flags = std::make_shared<SimulateFlags>();
  CLI::App* sub = federate.add_subcommand("simulate", "Run all clients of a federated run on this machine");
  sub->add_option("RUN", flags->file, "YAML file of the run (docs/guide/federated.md)")->required();
  sub->add_option("--out", flags->out, "directory of the run; the same command goes on after an interruption")
      ->required();
  sub->add_option("--threads", flags->threads, "kernel threads; 0 = every core this process may use")
      ->check(CLI::Range(0, 1024));
  sub->add_option("--isa", flags->isa, "instruction set of the kernels")
      ->check(CLI::IsMember(isa_choices()))
      ->capture_default_str();
  sub->callback([flags, &exit_code] {
    watch_interrupts();
    const Status status = simulate(*flags);
    if (status.ok()) return;
    exit_code = status.code() == StatusCode::kCancelled ? 130 : fail(status);
    if (exit_code == 130) fmt::print(stderr, "stopped; the same command goes on after the last finished round\n");
  });
}

// --- round, client, close: by files

struct ExchangeFlags {
  std::string run, state, round, out, data, base, model, isa = "auto";
  std::vector<std::string> updates, failed, received;
  HttpClientFlags http;
  bool json = false;
  int64_t attempt = 0;
  std::optional<int64_t> threads;
};

struct OpenRun {
  FederatedConfig config;
  Checkpoint base;
  std::unique_ptr<FederatedServer> server;
  std::unique_ptr<RunDirectory> files;
};

Result<OpenRun> open_run(const ExchangeFlags& flags) {
  OpenRun run;
  LK_ASSIGN_OR_RETURN(run.config, load_federated_config(flags.run));
  std::string directory = run.config.base;
  LK_RETURN_IF_ERROR(find_model(directory));
  LK_ASSIGN_OR_RETURN(run.base, open_checkpoint(directory));
  LK_ASSIGN_OR_RETURN(run.server, FederatedServer::create(run.config, run.base.config, *run.base.weights));
  run.files = std::make_unique<RunDirectory>(run.config, flags.state);
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes,
                      run.files->open(*run.server, run.base.config, directory, {}));
  for (const std::string& text : notes) fmt::print(stderr, "{}\n", text);
  return run;
}

Status write_rounds(const ExchangeFlags& flags) {
  LK_ASSIGN_OR_RETURN(const OpenRun run, open_run(flags));
  if (run.server->exhausted() && !flags.json) {
    fmt::print("the run is over: another round could pass privacy.max_epsilon = {:.4g}\n",
               run.config.privacy.max_epsilon);
    return Status();
  }
  const bool done = run.server->done();
  if (done && !flags.json) return failed_precondition("all {} rounds are over", run.config.rounds);
  json::array sampled;
  std::vector<std::string> clients;
  for (const ClientSpec& client : run.config.clients) clients.push_back(client.name);
  if (!done) {
    LK_RETURN_IF_ERROR(make_directories(flags.out));
    for (const std::string& client : run.server->sample(clients, flags.attempt)) {
      const std::string path = join_path(flags.out, client + ".safetensors");
      LK_RETURN_IF_ERROR(write_round(*run.server, client, run.files->base_digest(), path));
      LK_RETURN_IF_ERROR(run.files->ledger(run.server->round(), "sampled", client));
      sampled.push_back({{"client", client}, {"file", path}});
      if (!flags.json) fmt::print("{}\n", path);
    }
  }
  if (flags.json)
    fmt::print("{}\n", json_text(json::object{{"done", done},
                                              {"round", run.server->round()},
                                              {"rounds", run.config.rounds},
                                              {"quorum", run.config.quorum},
                                              {"retries", run.config.retries},
                                              {"clients", json::value_from(clients)},
                                              {"max_update_bytes", done ? 0 : max_update_bytes(*run.server)},
                                              {"sampled", std::move(sampled)}}));
  else if (run.config.quorum == 0)
    fmt::print(stderr, "close the round when they have answered, or when nobody is asked\n");
  return Status();
}

Status run_client(const ExchangeFlags& flags) {
  if (flags.http.server.empty() == flags.round.empty())
    return invalid_argument("give --server URL, or --round and --out for one round by files");
  std::string base = flags.base;
  LK_RETURN_IF_ERROR(find_model(base));
  if (!flags.http.server.empty())
    return run_http_client(flags.http, base, flags.data, flags.state, static_cast<int>(flags.threads.value_or(0)),
                           flags.isa);
  if (flags.out.empty()) return invalid_argument("--out is missing: the file to write the update to");
  LK_ASSIGN_OR_RETURN(const Checkpoint checkpoint, open_checkpoint(base));
  LK_ASSIGN_OR_RETURN(const RoundFile round, read_round(flags.round, checkpoint.config));
  const DType act = round.config.dtype == TrainDtype::kF32 ? DType::kF32 : DType::kBF16;
  LK_ASSIGN_OR_RETURN(const TrainingBase loaded,
                      open_training_base(base, act, static_cast<int>(flags.threads.value_or(0)), flags.isa));
  LK_ASSIGN_OR_RETURN(const UpdateFile update,
                      train_round(round, loaded.base, flags.data, flags.state, [] { return interrupted != 0; }));
  LK_RETURN_IF_ERROR(write_update(update, round.config.wire, flags.out));
  fmt::print("{}: round {}, {} examples, loss {:.4f}, wrote {}\n", update.update.client, update.update.round,
             update.update.num_examples, update.loss, flags.out);
  return Status();
}

// What is wrong with an update is said, and the others count.
Result<std::vector<ClientUpdate>> read_updates(const ExchangeFlags& flags, const OpenRun& run) {
  FederatedServer& server = *run.server;
  std::map<std::string, ClientUpdate> received;
  for (const std::string& path : flags.updates) {
    Result<UpdateFile> file = read_update(path, max_update_bytes(server));
    Status status = file.ok() ? check_update(server, run.files->base_digest(), *file) : file.status();
    if (status.ok()) {
      const auto [first, fresh] = received.try_emplace(file->update.client, file->update);
      if (!fresh && first->second.tensors == file->update.tensors) continue;
      if (!fresh) status = already_exists("{}: a second update, with other values", file->update.client);
    }
    LK_RETURN_IF_ERROR(run.files->ledger(server.round(), status.ok() ? "received" : "refused",
                                         file.ok() ? printable(file->update.client) : "",
                                         clean_text(status.message(), kMostMessage)));
    if (!status.ok())
      fmt::print(stderr, "lorikeet: refused {}: {}\n", path, clean_text(status.message(), kMostMessage));
  }
  std::vector<ClientUpdate> updates;
  for (auto& [client, update] : received) updates.push_back(std::move(update));
  return updates;
}

// What there is of a round in work: by the run's updates, or in what somebody else made of them (--model).
Result<int64_t> collect(const ExchangeFlags& flags, const OpenRun& run, std::vector<ClientUpdate>& updates) {
  FederatedServer& server = *run.server;
  for (const std::string& text : flags.failed) {
    const size_t colon = std::min(text.find(':'), text.size());
    LK_RETURN_IF_ERROR(run.files->ledger(server.round(), "failed", text.substr(0, colon),
                                         text.substr(std::min(colon + 1, text.size()))));
  }
  for (const std::string& client : flags.received)
    LK_RETURN_IF_ERROR(run.files->ledger(server.round(), "received", client));
  LK_ASSIGN_OR_RETURN(updates, read_updates(flags, run));
  const int64_t count = std::ssize(updates) + std::ssize(flags.received);
  if (count < run.config.quorum)
    LK_RETURN_IF_ERROR(
        run.files->ledger(server.round(), "no quorum", "", fmt::format("{} of {}", count, run.config.quorum)));
  return count;
}

Status close_round(const ExchangeFlags& flags) {
  if (flags.model.empty() ? !flags.received.empty() : !flags.updates.empty() || flags.received.empty())
    return invalid_argument("give updates, or --model with --received of each client that is in it");
  LK_ASSIGN_OR_RETURN(const OpenRun run, open_run(flags));
  FederatedServer& server = *run.server;
  if (server.done()) return failed_precondition("all {} rounds are over", run.config.rounds);
  std::vector<ClientUpdate> updates;
  LK_ASSIGN_OR_RETURN(const int64_t count, collect(flags, run, updates));
  const auto print_json = [&](bool closed, int64_t round) {
    if (flags.json)
      fmt::print("{}\n", json_text(json::object{{"closed", closed}, {"round", round}, {"received", count}}));
  };
  if (count < run.config.quorum) {
    print_json(false, server.round());
    return failed_precondition("round {}: {} good updates, quorum {}; the round stays open", server.round(), count,
                               run.config.quorum);
  }
  RoundReport report;
  if (flags.model.empty()) {
    const auto on_dropped = [&](const std::string& client, const std::string& reason) {
      fmt::print(stderr, "lorikeet: without {}: {}\n", client, reason);
      return run.files->ledger(server.round(), "dropped", client, reason);
    };
    LK_ASSIGN_OR_RETURN(std::optional<RoundReport> closed, server.close_what_can_be(std::move(updates), on_dropped));
    if (!closed) {
      print_json(false, server.round());
      return failed_precondition("round {}: no quorum of {} among updates whose sum is finite; the round stays open",
                                 server.round(), run.config.quorum);
    }
    report = std::move(*closed);
  } else {
    LK_ASSIGN_OR_RETURN(ModuleFactors model, read_model(flags.model, server.state().global));
    LK_ASSIGN_OR_RETURN(report, server.adopt(std::move(model), flags.received));
  }
  server.add_history(round_line(report));
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes, run.files->save(server, run.base.config));
  for (const std::string& text : notes) fmt::print(stderr, "{}\n", text);
  print_json(true, report.round);
  if (!flags.json)
    fmt::print("round {} of {}: {} updates, {}; the adapter is {}\n", report.round, run.config.rounds,
               report.clients.size(),
               report.epsilon ? fmt::format("epsilon {:.3g}", *report.epsilon)
                              : fmt::format("aggregation error {:.3g}", report.aggregate.error),
               run.files->path("latest"));
  return Status();
}

void add_exchange(CLI::App& federate, int& exit_code) {
  const auto add = [&](const char* name, const char* help, Status (*run)(const ExchangeFlags&)) {
    auto flags = std::make_shared<ExchangeFlags>();
    CLI::App* sub = federate.add_subcommand(name, help);
    sub->callback([flags, run, &exit_code] {
      watch_interrupts();
      const Status status = run(*flags);
      if (status.ok()) return;
      // Files of the other side may say anything; a terminal must not obey it.
      const Status said(status.code(), clean_text(status.message(), kMostMessage));
      exit_code = status.code() == StatusCode::kCancelled ? 130 : fail(said);
    });
    return std::pair(sub, flags);
  };
  const char* kRun = "YAML file of the run (docs/guide/federated.md)";
  const char* kState = "directory of the run, on the server";
  {
    const auto [sub, flags] =
        add("round", "Write what the clients of the next round are given, one file each", write_rounds);
    sub->add_option("RUN", flags->run, kRun)->required();
    sub->add_option("--state", flags->state, kState)->required();
    sub->add_option("--out", flags->out, "directory for CLIENT.safetensors")->required();
    sub->add_option("--attempt", flags->attempt, "of the same round, with other clients when it is raised")
        ->check(CLI::Range(0, 1000))
        ->capture_default_str();
    sub->add_flag("--json", flags->json, "print what is asked of whom as JSON, also when all rounds are over");
  }
  {
    const auto [sub, flags] =
        add("client", "Train on a client's own records: rounds of a server, or one from file to file", run_client);
    flags->http.add_to(*sub);
    sub->add_option("--round", flags->round, "by files: what the server gave");
    sub->add_option("--data", flags->data, "the client's records, JSONL")->required();
    sub->add_option("--base", flags->base, "base model directory, or its name on the hub")->required();
    sub->add_option("--out", flags->out, "by files: file to write, the update");
    sub->add_option("--state", flags->state, "directory for what the client keeps; by files only fedsa needs it");
    sub->add_option("--threads", flags->threads, "kernel threads; 0 = every core this process may use")
        ->check(CLI::Range(0, 1024));
    sub->add_option("--isa", flags->isa, "instruction set of the kernels")
        ->check(CLI::IsMember(isa_choices()))
        ->capture_default_str();
  }
  {
    const auto [sub, flags] = add("close", "Make the next adapter of a round's updates", close_round);
    sub->add_option("RUN", flags->run, kRun)->required();
    sub->add_option("UPDATES", flags->updates, "files of clients; with Poisson sampling there may be none");
    sub->add_option("--state", flags->state, kState)->required();
    sub->add_option("--failed", flags->failed, "CLIENT:WHY of one that sent nothing, for the ledger; repeatable")
        ->allow_extra_args(false);
    sub->add_option("--model", flags->model,
                    "fedavg, ffa, rolora: the next adapter, by PEFT's names (safetensors), instead of updates: what "
                    "another program made of them");
    sub->add_option("--received", flags->received, "with --model: a client whose update is in it; repeatable")
        ->allow_extra_args(false);
    sub->add_flag("--json", flags->json, "print as JSON whether the round is over, also for want of updates");
  }
}

// --- inspect

struct InspectFlags {
  std::string base, directory;
};

Status inspect(const InspectFlags& flags) {
  LK_ASSIGN_OR_RETURN(const Checkpoint base, open_base(flags.base));
  CheckpointStore store(join_path(flags.directory, "rounds"), {});
  LK_ASSIGN_OR_RETURN(const auto newest, store.newest());
  if (!newest) return not_found("{} holds no finished round of a federated run", flags.directory);
  LK_ASSIGN_OR_RETURN(const FederatedState state, read_state(join_path(newest->path, kStateFile), base.config));
  const auto show = [](const char* what, const ModuleFactors& factors) -> Status {
    if (factors.empty()) return Status();
    int64_t rank = 0;
    for (const auto& [module, each] : factors) rank = std::max(rank, each.factors.rank);
    LK_ASSIGN_OR_RETURN(const double energy, energy_of(factors));
    fmt::print("{}: {} modules, rank up to {}, norm of the change {:.4g}\n", what, factors.size(), rank,
               std::sqrt(energy));
    return Status();
  };
  fmt::print("{}: {} rounds are over\n", flags.directory, state.round);
  LK_RETURN_IF_ERROR(show("global adapter", state.global));
  LK_RETURN_IF_ERROR(show("below adapters", state.overlay));
  if (!state.sparse.empty()) {
    double squares = 0;
    int64_t values = 0;
    for (const auto& [module, own] : state.sparse) {
      values += std::ssize(own);
      for (const float v : own) squares += static_cast<double>(v) * static_cast<double>(v);
    }
    fmt::print("sparse values: {} in {} modules, norm {:.4g}\n", values, state.sparse.size(), std::sqrt(squares));
  }
  if (!state.personal.empty()) fmt::print("clients with factors of their own: {}\n", state.personal.size());
  LK_ASSIGN_OR_RETURN(const FederatedConfig config, read_run_config(flags.directory));
  if (config.privacy.on()) {
    LK_ASSIGN_OR_RETURN(const PrivacySpent spent, read_privacy_spent(flags.directory));
    fmt::print("privacy: {}\n", privacy_text(config, spent));
  }
  for (const std::string& line : state.history) fmt::print("{}\n", line);
  return Status();
}

void add_inspect_federated(CLI::App& federate, int& exit_code) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* sub = federate.add_subcommand("inspect", "Show what a run's directory holds: norms, ranks, rounds");
  sub->add_option("DIR", flags->directory, "directory of the run")->required();
  sub->add_option("--base", flags->base, "base model directory, or its name on the hub")->required();
  sub->callback([flags, &exit_code] {
    if (Status status = inspect(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace

void add_federate(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("federate", "Federated LoRA: one adapter from many clients' training");
  command->require_subcommand(1);
  add_simulate_federated(*command, exit_code);
  add_exchange(*command, exit_code);
  add_federate_server(*command, exit_code);
  add_split(*command, exit_code);
  add_aggregate(*command, exit_code);
  add_inspect_federated(*command, exit_code);
}

}  // namespace lk::apps
