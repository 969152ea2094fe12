// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/coordinator.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"
#include "lk/base/sha256.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kClientsFile = "clients.json";
constexpr const char* kRoundFile = "round.json";
constexpr size_t kMostReasonBytes = 1000;
constexpr size_t kMostUpdateBytes = size_t{1} << 40;

std::string sha256_of(std::string_view bytes) {
  Sha256 sha;
  sha.update(bytes.data(), bytes.size());
  return to_hex(sha.finish());
}

// Of this machine: the client did nothing wrong, and may send it again.
bool is_ours(StatusCode code) { return code == StatusCode::kIoError || code == StatusCode::kInternal; }

// What goes to the other side names no path of this machine.
Status without_path(const Status& status, const std::string& path, std::string_view name) {
  std::string text = status.message();
  for (size_t at = text.find(path); at != std::string::npos; at = text.find(path, at + name.size()))
    text.replace(at, path.size(), name);
  return Status(status.code(), std::move(text));
}

}  // namespace

// A ledger that cannot be written is this machine's fault, whatever keeps it from it.
Status Coordinator::ledger(const char* event, const std::string& client, const std::string& reason) {
  const Status status = files_.ledger(server_->round(), event, client, clean_text(reason, kMostReasonBytes));
  return status.ok() ? status : Status(StatusCode::kIoError, status.message());
}

Status Coordinator::ledger_once(const char* event, const std::string& client, const Status& why) {
  if (said_in_ != server_->round()) said_.clear();
  said_in_ = server_->round();
  if (!said_.insert(fmt::format("{} {} {}", event, client, static_cast<int>(why.code()))).second) return Status();
  return ledger(event, client, why.message());
}

Result<std::unique_ptr<Coordinator>> Coordinator::create(const FederatedConfig& config, const ModelConfig& model,
                                                         const TensorStore& base, const std::string& directory,
                                                         int64_t wait_for, Hooks hooks, const AskStop& stop) {
  std::unique_ptr<Coordinator> self(new Coordinator(config, directory, std::move(hooks)));
  LK_RETURN_IF_ERROR(self->open(model, base, wait_for, stop));
  return self;
}

Status Coordinator::open(const ModelConfig& model, const TensorStore& base, int64_t wait_for, const AskStop& stop) {
  model_ = model;
  LK_ASSIGN_OR_RETURN(server_, FederatedServer::create(config_, model, base));
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes, files_.open(*server_, model, config_.base, {}, stop));
  for (const std::string& text : notes) note(text);
  const auto clients = std::ssize(config_.clients);
  wait_for_ = wait_for == 0 ? clients : wait_for;
  if (wait_for_ > clients || wait_for_ < config_.quorum)
    return invalid_argument("{} clients are to be waited for: there are {}, and the quorum is {}", wait_for_, clients,
                            config_.quorum);
  max_update_bytes_ = lk::max_update_bytes(*server_);
  LK_RETURN_IF_ERROR(read_joined());
  return resume();
}

bool Coordinator::has_client(std::string_view name) const {
  return std::ranges::find(config_.clients, name, &ClientSpec::name) != config_.clients.end();
}

// Values of a mask come first, factors later; either may be the larger.
int64_t Coordinator::max_update_bytes_of_run() const {
  int64_t rank = config_.adapter.rank, bytes = int64_t{1} << 20;
  for (const auto& [pattern, other] : config_.ranks) rank = std::max(rank, other);
  for (const ModuleId module : server_->modules())
    bytes += 4 * rank * (in_dim(*module.proj(), model_) + out_dim(*module.proj(), model_)) + 1024;
  return std::max(bytes, max_update_bytes_);
}

// --- Clients

Status Coordinator::read_joined() {
  const std::string path = files_.path(kClientsFile);
  if (!file_exists(path)) return Status();
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(path));
  for (const auto& [name, examples] : object) {
    const std::optional<int64_t> count = json_integer(examples);
    if (!count || !has_client(name)) return data_loss("{}: the file is damaged at {}", path, std::string_view(name));
    joined_[name] = *count;
  }
  std::vector<RunDirectory::Happened> happened;
  for (const auto& [client, examples] : joined_) happened.push_back({"joined", client});
  return files_.complete_ledger({}, happened);
}

Status Coordinator::check_base(const std::string& client, const std::string& base_digest) const {
  if (base_digest == files_.base_digest()) return Status();
  return failed_precondition(
      "{}: your base has the digest {}, this run's has {}: the same files must lie on both sides", client, base_digest,
      files_.base_digest());
}

Status Coordinator::join(const std::string& client, int64_t num_examples) {
  const auto known = joined_.find(client);
  if (known != joined_.end() && known->second == num_examples) return Status();
  std::map<std::string, int64_t> now = joined_;
  now[client] = num_examples;
  json::object object;
  for (const auto& [name, examples] : now) object[name] = examples;
  LK_RETURN_IF_ERROR(before("join"));
  if (const Status written = write_file_atomic(files_.path(kClientsFile), json_text(object) + "\n"); !written.ok())
    return io_error("{}", written.message());
  joined_ = std::move(now);
  return ledger_once("joined", client, Status());
}

// --- The round in work

std::string Coordinator::update_path(const std::string& client) const {
  return join_path(open_path("updates"), client + ".safetensors");
}

Status Coordinator::begin() {
  std::vector<std::string> eligible;
  for (const auto& [client, examples] : joined_)
    if (examples >= config_.min_examples) eligible.push_back(client);
  if (std::ssize(eligible) < config_.quorum)
    return invalid_argument("{} of {} clients have clients.min_examples = {} examples, fewer than the quorum of {}",
                            eligible.size(), joined_.size(), config_.min_examples, config_.quorum);
  LK_RETURN_IF_ERROR(make_directories(open_path("")));
  const std::vector<std::string> clients = server_->sample(eligible, attempt_);
  LK_RETURN_IF_ERROR(before("sample"));
  LK_RETURN_IF_ERROR(write_round_file(&clients));
  for (const std::string& client : clients) LK_RETURN_IF_ERROR(ledger("sampled", client));
  LK_RETURN_IF_ERROR(write_tasks(clients));
  // Poisson sampling may draw nobody: then nothing is to be waited for, and noise alone is released.
  return clients.empty() ? end() : Status();
}

Status Coordinator::write_round_file(const std::vector<std::string>* clients) const {
  json::object object{{"round", server_->round()}, {"attempt", attempt_}};
  if (clients != nullptr) object["clients"] = json::value_from(*clients);
  return write_file_atomic(open_path(kRoundFile), json_text(object) + "\n");
}

Status Coordinator::write_tasks(const std::vector<std::string>& clients) {
  LK_RETURN_IF_ERROR(make_directories(open_path("tasks")));
  LK_RETURN_IF_ERROR(make_directories(open_path("updates")));
  std::map<std::string, Asked> asked;
  for (const std::string& client : clients) {
    Task task{.round = server_->round(), .path = join_path(open_path("tasks"), client + ".safetensors")};
    task.number = task.round * (config_.retries + 1) + attempt_;
    LK_RETURN_IF_ERROR(before("task"));
    LK_RETURN_IF_ERROR(write_round(*server_, client, files_.base_digest(), task.path));
    LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(task.path, kMostUpdateBytes));
    task.bytes = std::ssize(bytes);
    task.sha256 = sha256_of(bytes);
    asked[client] = {.task = std::move(task)};
  }
  asked_ = std::move(asked);
  in_work_ = true;
  return Status();
}

// What a kill left of the round in work. The tasks are written again, with the same bytes; updates are checked again.
Status Coordinator::resume() {
  const std::string path = open_path(kRoundFile);
  if (!file_exists(path)) return Status();
  LK_ASSIGN_OR_RETURN(const json::object object, load_json_object(path));
  int64_t round = 0, attempt = 0;
  std::vector<std::string> clients;
  JsonFields fields(object, path);
  fields.read_int("round", round, 1, INT64_MAX);
  fields.read_int("attempt", attempt, 0, 1 << 20);
  fields.read_strings("clients", clients);
  LK_RETURN_IF_ERROR(fields.status());
  if (round != server_->round() || done()) {  // it was over
    close_open();
    return Status();
  }
  attempt_ = attempt;
  if (!fields.has("clients")) return Status();
  LK_RETURN_IF_ERROR(write_tasks(clients));
  for (auto& [client, asked] : asked_) {
    if (!file_exists(update_path(client))) continue;
    const Result<ClientUpdate> update = accept(client, round, update_path(client));
    if (!update.ok()) {
      note("not used: " + update.status().message());
      continue;
    }
    LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(update_path(client), kMostUpdateBytes));
    asked.answer = Answer::kReceived;
    asked.sha256 = sha256_of(bytes);
  }
  std::vector<RunDirectory::Happened> happened;
  for (const std::string& client : clients) happened.push_back({"sampled", client});
  for (const auto& [client, asked] : asked_)
    if (asked.answer == Answer::kReceived) happened.push_back({"received", client});
  LK_RETURN_IF_ERROR(files_.complete_ledger(round, happened));
  const Progress now = progress();
  note(fmt::format("round {}, attempt {}: goes on with {} of {} updates", round, attempt, now.received, now.asked));
  return ledger("resumed", "", fmt::format("{} of {} updates", now.received, now.asked));
}

// What cannot be removed is of a round that is over, and means nothing.
void Coordinator::close_open() {
  asked_.clear();
  in_work_ = false;
  std::error_code error;
  for (const char* name : {kRoundFile, "tasks", "updates"}) std::filesystem::remove_all(open_path(name), error);
}

const Coordinator::Task* Coordinator::task_of(const std::string& client) const {
  const auto found = asked_.find(client);
  return found == asked_.end() || found->second.answer != Answer::kNone ? nullptr : &found->second.task;
}

Result<ClientUpdate> Coordinator::accept(const std::string& client, int64_t round, const std::string& path) {
  Result<UpdateFile> read = read_update(path, max_update_bytes_);
  if (!read.ok()) return without_path(read.status(), path, client + ": the update");
  UpdateFile& file = *read;
  if (file.update.client != client || file.update.round != round)
    return invalid_argument("{}: the update says that it is of {} in round {}", client, printable(file.update.client),
                            file.update.round);
  LK_RETURN_IF_ERROR(check_update(*server_, files_.base_digest(), file));
  // What it weighs was said when it joined, before it knew of whom it would be beside.
  if (const auto known = joined_.find(client); known != joined_.end())
    file.update.num_examples = std::min(file.update.num_examples, std::max<int64_t>(known->second, 1));
  return std::move(file.update);
}

Status Coordinator::store(const std::string& client, int64_t round, std::string_view bytes) {
  const std::string part = open_path("updates/" + client + ".part");
  LK_RETURN_IF_ERROR(before("write update"));
  if (const Status written = write_file_atomic(part, bytes); !written.ok()) return io_error("{}", written.message());
  if (const Result<ClientUpdate> update = accept(client, round, part); !update.ok()) {
    std::remove(part.c_str());
    return update.status();
  }
  LK_RETURN_IF_ERROR(before("take update"));
  std::error_code error;
  std::filesystem::rename(part, update_path(client), error);
  return error ? io_error("cannot write {}: {}", update_path(client), error.message()) : Status();
}

Status Coordinator::receive(const std::string& client, int64_t round, std::string_view bytes) {
  const auto found = asked_.find(client);
  if (round != server_->round() || found == asked_.end()) {
    // What a client sends that had not heard of its success may be of a round that is over.
    const Status status = round != server_->round()
                              ? failed_precondition("{}: the update is of round {}, and this is round {}", client,
                                                    round, server_->round())
                              : not_found("{}: you were not asked in this round", client);
    LK_RETURN_IF_ERROR(ledger_once("refused", client, status));
    return status;
  }
  Asked& asked = found->second;
  const std::string digest = sha256_of(bytes);
  if (asked.answer == Answer::kReceived) {
    if (asked.sha256 == digest) return Status();
    const Status status = already_exists("{}: a second update, with other values", client);
    LK_RETURN_IF_ERROR(ledger_once("refused", client, status));
    return status;
  }
  const Status status = std::ssize(bytes) > max_update_bytes_
                            ? resource_exhausted("{}: an update of {} bytes, at most {} are taken", client,
                                                 bytes.size(), max_update_bytes_)
                            : store(client, round, bytes);
  if (is_ours(status.code())) return status;
  asked.answer = status.ok() ? Answer::kReceived : Answer::kRefused;
  asked.sha256 = digest;
  LK_RETURN_IF_ERROR(ledger_once(status.ok() ? "received" : "refused", client, status));
  return status;
}

Status Coordinator::give_up(const std::string& client, int64_t round, const std::string& reason) {
  return take_no(client, round, Answer::kFailed, reason);
}

Status Coordinator::refuse(const std::string& client, int64_t round, const std::string& reason) {
  return take_no(client, round, Answer::kRefused, reason);
}

Status Coordinator::take_no(const std::string& client, int64_t round, Answer answer, const std::string& reason) {
  const auto found = asked_.find(client);
  if (round != server_->round() || found == asked_.end())
    return failed_precondition("{}: that is of round {}, and this is round {}", client, round, server_->round());
  if (found->second.answer == Answer::kReceived) return already_exists("{}: your update has arrived", client);
  found->second.answer = answer;
  return ledger_once(answer == Answer::kFailed ? "failed" : "refused", client,
                     answer == Answer::kFailed ? Status(StatusCode::kCancelled, reason)
                                               : Status(StatusCode::kResourceExhausted, reason));
}

Coordinator::Progress Coordinator::progress() const {
  Progress now{.asked = std::ssize(asked_)};
  for (const auto& [client, asked] : asked_) {
    now.received += asked.answer == Answer::kReceived ? 1 : 0;
    now.refused += asked.answer == Answer::kRefused ? 1 : 0;
    now.failed += asked.answer == Answer::kFailed ? 1 : 0;
  }
  return now;
}

std::vector<std::string> Coordinator::missing() const {
  std::vector<std::string> clients;
  for (const auto& [client, asked] : asked_)
    if (asked.answer == Answer::kNone) clients.push_back(client);
  return clients;
}

Status Coordinator::end() {
  for (const std::string& client : missing()) LK_RETURN_IF_ERROR(ledger("vanished", client));
  std::vector<ClientUpdate> updates;
  for (const auto& [client, asked] : asked_) {
    if (asked.answer != Answer::kReceived) continue;
    Result<ClientUpdate> update = accept(client, server_->round(), update_path(client));
    if (update.ok()) {
      updates.push_back(std::move(*update));
    } else {
      if (is_ours(update.status().code())) return update.status();
      LK_RETURN_IF_ERROR(ledger("dropped", client, update.status().message()));
    }
  }
  int64_t left = std::ssize(updates);
  const auto on_dropped = [&](const std::string& client, const std::string& reason) {
    --left;
    note(fmt::format("round {}: without {}: {}", server_->round(), client, reason));
    return ledger("dropped", client, reason);
  };
  LK_ASSIGN_OR_RETURN(const std::optional<RoundReport> report,
                      server_->close_what_can_be(std::move(updates), on_dropped));
  if (!report) {
    const std::string count = fmt::format("{} of {}", left, config_.quorum);
    LK_RETURN_IF_ERROR(ledger("no quorum", "", count));
    note(fmt::format("round {}: no quorum, {} updates", server_->round(), count));
    close_open();
    if (++attempt_ <= config_.retries) return write_round_file(nullptr);
    attempt_ = 0;
    return failed_precondition(
        "round {}: no quorum of {} in {} attempts; see ledger.jsonl. The rounds before it are kept", server_->round(),
        config_.quorum, config_.retries + 1);
  }
  server_->add_history(round_line(*report));
  LK_RETURN_IF_ERROR(before("save"));
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> notes, files_.save(*server_, model_));
  for (const std::string& text : notes) note(text);
  if (hooks_.on_round) hooks_.on_round(server_->state().history.back());
  LK_RETURN_IF_ERROR(before("close"));
  attempt_ = 0;
  max_update_bytes_ = done() ? max_update_bytes_ : lk::max_update_bytes(*server_);
  close_open();
  return Status();
}

}  // namespace lk
