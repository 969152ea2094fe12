// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/run_directory.h"

#include <boost/json.hpp>
#include <chrono>
#include <filesystem>
#include <set>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/federated/ledger_file.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"
#include "lk/train/train_base.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kRunFile = "run.json";
constexpr const char* kNoQuorum = "no quorum";

// How often the client is asked that is asked most often, of a run whose draws are known beforehand.
int64_t most_asked(const FederatedServer& server) {
  const FederatedConfig& config = server.config();
  std::vector<std::string> clients;
  for (const ClientSpec& client : config.clients) clients.push_back(client.name);
  if (config.rounds * std::ssize(clients) > 10'000'000) return config.rounds;  // at most
  std::map<std::string, int64_t> asked;
  int64_t most = 0;
  for (int64_t round = 1; round <= config.rounds; ++round)
    for (const std::string& client : server.sample_of(round, clients, 0)) most = std::max(most, ++asked[client]);
  return most;
}

}  // namespace

std::string RunDirectory::path(std::string_view name) const { return join_path(directory_, name); }

Result<std::vector<std::string>> RunDirectory::open(FederatedServer& server, const ModelConfig& model,
                                                    const std::string& base_directory,
                                                    const std::map<std::string, std::string>& data,
                                                    const AskStop& stop) {
  LK_RETURN_IF_ERROR(store_.claim());
  LK_ASSIGN_OR_RETURN(base_digest_, base_files_digest(base_directory, stop));
  json::object digests;
  for (const auto& [client, own] : data) digests[client] = own;
  LK_RETURN_IF_ERROR(check_run(json_text(json::object{{"base_digest", base_digest_},
                                                      {"config", json::parse(federated_identity(config_))},
                                                      {"data", std::move(digests)}}) +
                               "\n"));
  std::vector<std::string> notes;
  LK_ASSIGN_OR_RETURN(const auto newest, store_.newest());
  if (!newest) {
    LK_RETURN_IF_ERROR(open_privacy(server, notes));
    return notes;
  }
  for (const std::string& skipped : newest->skipped) notes.push_back("not used: " + skipped);
  LK_ASSIGN_OR_RETURN(FederatedState state, read_state(join_path(newest->path, kStateFile), model));
  LK_RETURN_IF_ERROR(server.restore(std::move(state)));
  notes.push_back(fmt::format("goes on after round {}", newest->step));
  LK_RETURN_IF_ERROR(open_privacy(server, notes));
  // What follows a checkpoint may not have come to it.
  LK_RETURN_IF_ERROR(link_latest(newest->step, notes));
  LK_RETURN_IF_ERROR(complete_ledger(newest->step, {{"saved", ""}}));
  LK_RETURN_IF_ERROR(write_metrics(server));
  return notes;
}

Status RunDirectory::open_privacy(FederatedServer& server, std::vector<std::string>& notes) {
  const PrivacySpec& privacy = config_.privacy;
  if (!privacy.on()) return Status();
  const int64_t over = server.state().round;
  LK_ASSIGN_OR_RETURN(privacy_, PrivacyLedger::open(config_, directory_, noise_, over, fault_));
  server.set_privacy(privacy_);
  if (over > 0) {
    notes.push_back("privacy: " + privacy_text(config_, privacy_->spent()));
    return Status();
  }
  if (server.exhausted())
    return invalid_argument(
        "privacy.max_epsilon is {:.4g}, and one round costs {:.4g} already: more noise, or a larger budget",
        privacy.max_epsilon, epsilon_of(config_, {}, 1));
  const bool poisson = privacy.sampling == PrivacySampling::kPoisson;
  const int64_t releases = poisson ? config_.rounds : most_asked(server);
  notes.push_back(fmt::format("privacy: {} rounds will come to epsilon {:.3g} at delta {:.3g}{}{}", config_.rounds,
                              epsilon_of(config_, {}, releases), privacy.delta,
                              poisson ? "" : fmt::format(", for the client that is asked most, {} times", releases),
                              noise_ == NoiseSource::kSimulated
                                  ? "; here the noise is simulated from the run's seed and protects nobody"
                                  : ""));
  return Status();
}

// The directory belongs to this run, or becomes its.
Status RunDirectory::check_run(const std::string& text) const {
  const std::string file = path(kRunFile);
  if (!file_exists(file)) {
    LK_RETURN_IF_ERROR(before("write run.json"));
    return write_file_atomic(file, text);
  }
  LK_ASSIGN_OR_RETURN(const std::string saved, read_file(file));
  if (saved == text) return Status();
  LK_ASSIGN_OR_RETURN(const json::object before, parse_json_object(saved, file));
  const json::object now = json::parse(text).get_object();
  for (const auto& [key, what] : {std::pair("base_digest", "the base's files"), std::pair("data", "the clients' data"),
                                  std::pair("config", "the configuration")}) {
    const json::value* other = before.if_contains(key);
    if (other == nullptr || *other != now.at(key))
      return failed_precondition(
          "{}: the run in this directory was made with other values of {} ({}); name another "
          "directory, or go back to what it was made with",
          file, what, key);
  }
  return failed_precondition("{}: this is another run's directory", file);
}

Status RunDirectory::ledger(int64_t round, const std::string& event, const std::string& client,
                            const std::string& reason) {
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  json::object line{{"time", now}, {"round", round}, {"event", event}};
  if (!client.empty()) line["client"] = client;
  if (!reason.empty()) line["reason"] = reason;
  LK_RETURN_IF_ERROR(before("ledger " + event));
  return append_to_ledger(path(kLedgerFile), line);
}

Status RunDirectory::complete_ledger(std::optional<int64_t> round, const std::vector<Happened>& happened) {
  std::set<Happened> there;
  LK_RETURN_IF_ERROR(read_ledger(path(kLedgerFile), [&](const json::object& line) {
    const auto text = [&](const char* key) {
      const json::value* value = line.if_contains(key);
      return value && value->is_string() ? std::string(value->get_string()) : std::string();
    };
    const json::value* at = line.if_contains("round");
    if (round && (at == nullptr || !at->is_int64() || at->get_int64() != *round)) return;
    if (round && text("event") == kNoQuorum) return there.clear();
    there.insert({text("event"), text("client")});
  }));
  for (const Happened& what : happened)
    if (!there.contains(what)) LK_RETURN_IF_ERROR(ledger(round.value_or(0), what.event, what.client));
  return Status();
}

Status RunDirectory::link_latest(int64_t round, std::vector<std::string>& notes) const {
  LK_RETURN_IF_ERROR(before("link latest"));
  const std::string link = path("latest"), fresh = link + ".new";
  std::error_code error;
  std::filesystem::remove(fresh, error);
  std::filesystem::create_symlink(fmt::format("rounds/checkpoint-{}", round), fresh, error);
  if (!error) std::filesystem::rename(fresh, link, error);
  if (error) notes.push_back(fmt::format("cannot link {}: {}", link, error.message()));
  return Status();
}

Result<std::vector<std::string>> RunDirectory::save(FederatedServer& server, const ModelConfig& model) {
  const FederatedState& state = server.state();
  std::vector<std::string> notes;
  LK_ASSIGN_OR_RETURN(const FederatedServer::Published published, server.publish());
  if (published.dropped > 0)
    notes.push_back(fmt::format("round {}: the adapter on disk lacks {:.3g} % of the model's change", state.round,
                                100 * published.dropped));
  const std::vector<CheckpointPart> parts{
      {{kStateFile}, [&](const std::string& to) { return write_state(state, join_path(to, kStateFile)); }},
      {{kAdapterConfigFile, kAdapterWeightsFile}, [&](const std::string& to) {
         return save_adapter(*published.adapter, model, to, {.base_model_name = config_.base});
       }}};
  LK_RETURN_IF_ERROR(store_.save(state.round, parts));
  LK_RETURN_IF_ERROR(link_latest(state.round, notes));
  LK_RETURN_IF_ERROR(ledger(state.round, "saved"));
  LK_RETURN_IF_ERROR(write_metrics(server));
  if (privacy_) {
    LK_RETURN_IF_ERROR(privacy_->forget(state.round));
    if (server.exhausted() && state.round < config_.rounds)
      notes.push_back(fmt::format(
          "privacy: the run ends after round {} of {}: another could pass max_epsilon = {:.4g}; {}", state.round,
          config_.rounds, config_.privacy.max_epsilon, privacy_text(config_, privacy_->spent())));
  }
  return notes;
}

Result<FederatedConfig> read_run_config(const std::string& directory) {
  const std::string file = join_path(directory, kRunFile);
  LK_ASSIGN_OR_RETURN(const json::object run, load_json_object(file));
  const json::value* saved = run.if_contains("config");
  if (saved == nullptr || !saved->is_object()) return data_loss("{}: it does not say what the run is", file);
  json::object config = saved->get_object();
  config["base"] = "base";
  LK_ASSIGN_OR_RETURN(FederatedConfig parsed, parse_federated_config(json_text(config), file));
  parsed.base.clear();
  return parsed;
}

Status RunDirectory::write_metrics(const FederatedServer& server) const {
  std::string text;
  for (const std::string& line : server.state().history) text += line + "\n";
  LK_RETURN_IF_ERROR(before("write metrics"));
  return write_file_atomic(path("metrics.jsonl"), text);
}

}  // namespace lk
