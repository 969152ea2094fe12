// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/simulation.h"

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/federated/exchange.h"
#include "lk/lora_tools/save.h"

namespace lk {
namespace {
namespace json = boost::json;

json::object eval_json(const std::vector<std::vector<EvalResult>>& models, double& all) {
  json::object files;
  double loss = 0, tokens = 0;
  for (size_t file = 0; file < models[0].size(); ++file) {
    double sum = 0, accuracy = 0;
    for (const auto& model : models) sum += model[file].loss, accuracy += model[file].accuracy;
    const auto n = static_cast<double>(models.size());
    const auto weight = static_cast<double>(models[0][file].loss_tokens);
    files[std::filesystem::path(models[0][file].file).stem().string()] =
        json::object{{"loss", sum / n}, {"accuracy", accuracy / n}, {"loss_tokens", models[0][file].loss_tokens}};
    loss += weight * sum / n;
    tokens += weight;
  }
  all = loss / tokens;
  return files;
}

}  // namespace

Simulation::Simulation(const FederatedConfig& config, const TrainBase& base, std::string directory,
                       SimulationHooks hooks)
    : config_(config),
      base_(base),
      hooks_(std::move(hooks)),
      files_(config, std::move(directory), hooks_.fault, NoiseSource::kSimulated) {}

Result<std::unique_ptr<Simulation>> Simulation::create(const FederatedConfig& config, const TrainBase& base,
                                                       const std::string& directory, SimulationHooks hooks,
                                                       const AskStop& stop) {
  std::unique_ptr<Simulation> simulation(new Simulation(config, base, directory, std::move(hooks)));
  LK_RETURN_IF_ERROR(simulation->open(stop));
  return simulation;
}

// --- Opening

Status Simulation::open(const AskStop& stop) {
  const ModelConfig& model = base_.weights->config;
  LK_ASSIGN_OR_RETURN(server_, FederatedServer::create(config_, model, *base_.weights->checkpoint));
  LK_ASSIGN_OR_RETURN(training_, LocalTraining::create(config_, base_, stop));
  for (const ClientSpec& client : config_.clients)
    if (training_->num_examples(client.name) >= config_.min_examples) eligible_.push_back(client.name);
  if (std::ssize(eligible_) < config_.quorum)
    return invalid_argument("{} of {} clients have clients.min_examples = {} examples, fewer than the quorum of {}",
                            eligible_.size(), config_.clients.size(), config_.min_examples, config_.quorum);
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes,
                      files_.open(*server_, model, base_.directory, training_->digests(), stop));
  for (const std::string& text : notes) note(text);
  return Status();
}

// --- Rounds

RoundBase Simulation::below() {
  const FederatedState& state = server_->state();
  RoundBase below{.overlay = &state.overlay, .sparse = &state.sparse};
  if (!state.sparse.empty()) below.mask = &server_->mask();
  return below;
}

Status Simulation::ledger(const std::string& event, const std::string& client, const std::string& reason) {
  return files_.ledger(server_->round(), event, client, reason);
}

// Updates of one attempt: of the sampled clients, those that arrived and are right.
Result<std::vector<ClientUpdate>> Simulation::collect(int64_t attempt, const AskStop& stop) {
  std::vector<ClientTask> tasks;
  for (const std::string& client : server_->sample(eligible_, attempt)) {
    tasks.push_back({client, server_->task_of(client)});
    LK_RETURN_IF_ERROR(ledger("sampled", client, ""));
  }
  LK_ASSIGN_OR_RETURN(std::vector<ClientResult> results, training_->train(tasks, below(), stop));
  std::map<std::string, ClientUpdate> received;
  round_loss_ = 0, round_tokens_ = 0;
  double examples = 0;
  for (ClientResult& result : results) {
    if (!result.failure.ok()) {
      LK_RETURN_IF_ERROR(ledger("failed", result.client, result.failure.message()));
      continue;
    }
    std::vector<ClientUpdate> arrived;
    if (hooks_.deliver)
      arrived = hooks_.deliver(result.update, attempt);
    else
      arrived.push_back(std::move(result.update));
    bool taken = false;
    for (ClientUpdate& update : arrived) {
      const std::string client = update.client;
      Status status = server_->check(update);
      update.num_examples = std::min(update.num_examples, training_->num_examples(result.client));
      if (const auto first = received.find(client); status.ok() && first != received.end()) {
        // Sent again is no harm; a second one that differs is not the client's word.
        if (first->second.tensors == update.tensors) continue;
        status = already_exists("{}: a second update, with other values", client);
      }
      LK_RETURN_IF_ERROR(ledger(status.ok() ? "received" : "refused", client, status.message()));
      if (!status.ok()) continue;
      received[client] = std::move(update);
      taken = true;
    }
    if (arrived.empty()) LK_RETURN_IF_ERROR(ledger("vanished", result.client, ""));
    if (!taken) continue;
    const auto weight = static_cast<double>(training_->num_examples(result.client));
    round_loss_ += weight * result.loss;
    round_tokens_ += result.tokens;
    examples += weight;
  }
  if (examples > 0) round_loss_ /= examples;
  std::vector<ClientUpdate> updates;
  for (auto& [client, update] : received) updates.push_back(std::move(update));
  return updates;
}

Status Simulation::run(const AskStop& stop) {
  if (server_->state().history.empty() && !config_.eval_path.empty()) {
    LK_ASSIGN_OR_RETURN(const auto models, evaluate(stop));
    double all = 0;
    json::object line{{"round", 0}, {"eval", eval_json(models, all)}};
    line["eval_loss"] = all;
    server_->add_history(json_text(line));
    if (hooks_.on_round) hooks_.on_round(server_->state().history.back());
  }
  while (!server_->done()) {
    std::vector<ClientUpdate> updates;
    for (int64_t attempt = 0; attempt <= config_.retries; ++attempt) {
      LK_RETURN_IF_ERROR(check_stop(stop));
      LK_ASSIGN_OR_RETURN(updates, collect(attempt, stop));
      if (std::ssize(updates) >= config_.quorum) break;
      LK_RETURN_IF_ERROR(ledger("no quorum", "", fmt::format("{} of {}", updates.size(), config_.quorum)));
      note(fmt::format("round {}: {} updates, quorum {}", server_->round(), updates.size(), config_.quorum));
    }
    if (std::ssize(updates) < config_.quorum)
      return failed_precondition(
          "round {}: no quorum of {} in {} attempts; see ledger.jsonl. The rounds before it are kept", server_->round(),
          config_.quorum, config_.retries + 1);
    int64_t down = 0;
    for (const ClientUpdate& update : updates) down += server_->download_bytes(server_->task_of(update.client));
    int64_t up = 0;
    for (const ClientUpdate& update : updates) up += server_->upload_bytes(server_->task_of(update.client));
    const auto on_dropped = [&](const std::string& client, const std::string& reason) {
      return ledger("dropped", client, reason);
    };
    LK_ASSIGN_OR_RETURN(const std::optional<RoundReport> report,
                        server_->close_what_can_be(std::move(updates), on_dropped));
    if (!report)
      return failed_precondition("round {}: no quorum of {} among updates whose sum is finite; see ledger.jsonl",
                                 server_->round(), config_.quorum);
    LK_RETURN_IF_ERROR(finish_round(*report, up, down, stop));
  }
  return config_.rule.name == FederatedRule::kFedSa ? save_personal() : Status();
}

// FedSA has no common model: each client's own is evaluated.
Result<std::vector<std::vector<EvalResult>>> Simulation::evaluate(const AskStop& stop) {
  std::vector<std::string> whose{config_.clients[0].name};
  if (config_.rule.name == FederatedRule::kFedSa) {
    whose.clear();
    for (const ClientSpec& client : config_.clients) whose.push_back(client.name);
  }
  std::vector<std::vector<EvalResult>> models;
  for (const std::string& client : whose) {
    LocalTask task = server_->task_of(client);
    if (config_.rule.name == FederatedRule::kFlex) task.start = server_->state().global;  // in all its ranks
    task.sparse = server_->state().global.empty() && !server_->state().sparse.empty();
    LK_ASSIGN_OR_RETURN(std::vector<EvalResult> results, training_->evaluate(task, below(), stop));
    models.push_back(std::move(results));
  }
  return models;
}

Status Simulation::finish_round(const RoundReport& report, int64_t up_bytes, int64_t down_bytes, const AskStop& stop) {
  json::object line = json::parse(round_line(report)).as_object();
  line["train_loss"] = round_loss_;
  line["train_tokens"] = round_tokens_;
  line["upload_bytes"] = up_bytes;
  line["download_bytes"] = down_bytes;
  if (!config_.eval_path.empty() && (report.round % config_.eval_every == 0 || server_->done())) {
    LK_ASSIGN_OR_RETURN(const auto models, evaluate(stop));
    double all = 0;
    line["eval"] = eval_json(models, all);
    line["eval_loss"] = all;
  }
  server_->add_history(json_text(line));
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes, files_.save(*server_, base_.weights->config));
  for (const std::string& text : notes) note(text);
  if (hooks_.on_round) hooks_.on_round(server_->state().history.back());
  return Status();
}

// --- What is kept

Status Simulation::save_personal() {
  for (const auto& [client, own] : server_->state().personal)
    LK_RETURN_IF_ERROR(save_adapter(*server_->personal_adapter(client), base_.weights->config,
                                    join_path(files_.path("personal"), client), {.base_model_name = config_.base}));
  return Status();
}

}  // namespace lk
