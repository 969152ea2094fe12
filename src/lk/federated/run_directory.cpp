// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/run_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/write_error.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"
#include "lk/train/train_base.h"

namespace lk {
namespace {
namespace json = boost::json;

constexpr const char* kRunFile = "run.json";

Status append_line(const std::string& path, const std::string& line) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const std::string text = line + "\n";
  bool ok = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  return ok ? Status()
            : Status(write_error_code(error), fmt::format("cannot write {}: {}", path, std::strerror(error)));
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
  if (!newest) return notes;
  for (const std::string& skipped : newest->skipped) notes.push_back("not used: " + skipped);
  LK_ASSIGN_OR_RETURN(FederatedState state, read_state(join_path(newest->path, kStateFile), model));
  LK_RETURN_IF_ERROR(server.restore(std::move(state)));
  notes.push_back(fmt::format("goes on after round {}", newest->step));
  LK_RETURN_IF_ERROR(write_metrics(server));
  return notes;
}

// The directory belongs to this run, or becomes its.
Status RunDirectory::check_run(const std::string& text) const {
  const std::string file = path(kRunFile);
  if (!file_exists(file)) return write_file_atomic(file, text);
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
  return append_line(path("ledger.jsonl"), json_text(line));
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
  const std::string link = path("latest"), fresh = link + ".new";
  std::error_code error;
  std::filesystem::remove(fresh, error);
  std::filesystem::create_symlink(fmt::format("rounds/checkpoint-{}", state.round), fresh, error);
  if (!error) std::filesystem::rename(fresh, link, error);
  if (error) notes.push_back(fmt::format("cannot link {}: {}", link, error.message()));
  LK_RETURN_IF_ERROR(ledger(state.round, "saved"));
  LK_RETURN_IF_ERROR(write_metrics(server));
  return notes;
}

Status RunDirectory::write_metrics(const FederatedServer& server) const {
  std::string text;
  for (const std::string& line : server.state().history) text += line + "\n";
  return write_file_atomic(path("metrics.jsonl"), text);
}

}  // namespace lk
