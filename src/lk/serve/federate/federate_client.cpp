// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/federate/federate_client.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"
#include "lk/base/sha256.h"
#include "lk/net/pending_answer.h"
#include "lk/registry/adapter_record.h"
#include "lk/serve/federate/federate_paths.h"
#include "lk/serve/http/file_part.h"

namespace lk {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr int64_t kWaitSeconds = 25;    // of a poll: less than proxies and the server's idle time
constexpr auto kTimeout = 120s;         // of an exchange without large bodies; the end of a round may be in it
constexpr int64_t kSlowest = 16 << 10;  // bytes a second that a large body's time is reckoned with
constexpr size_t kMostAnswer = size_t{4} << 20;
constexpr size_t kMostMessage = 4000;
constexpr size_t kMostUpdate = size_t{1} << 40;

struct Task {
  bool done = false;
  int64_t number = 0, round = 0, bytes = 0;
  std::string sha256;
};

Result<std::string> file_sha256(const std::string& path, int64_t* bytes) {
  Sha256 sha;
  LK_ASSIGN_OR_RETURN(const MmapFile file, MmapFile::open(path));
  sha.update(file.bytes().data(), file.bytes().size());
  *bytes = std::ssize(file.bytes());
  return to_hex(sha.finish());
}

int64_t size_of(const std::string& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(bytes);
}

Status append(const std::string& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const bool ok = fd >= 0 && write_all(fd, bytes) == bytes.size();
  const int error = errno;
  if (fd >= 0) ::close(fd);
  return ok ? Status() : io_error("cannot write {}: {}", path, std::strerror(error));
}

class Client {
 public:
  Client(const FederateClientOptions& options, const AskStop& stop) : options_(options), stop_(stop) {}

  Status run() {
    LK_RETURN_IF_ERROR(make_directories(options_.state));
    LK_ASSIGN_OR_RETURN(http_, HttpClient::create({.tls_ca = options_.tls_ca}));
    LK_ASSIGN_OR_RETURN(base_digest_, base_files_digest(options_.base, stop_));
    LK_RETURN_IF_ERROR(join());
    // A turn that came to nothing is followed by a pause, longer each time: a server whose answers lead nowhere (a
    // task without its file, a poll that does not wait) must not be asked without end.
    auto fruitful = Clock::now();
    for (auto pause = options_.pause;;) {
      const auto begun = Clock::now();
      const int64_t before = after_;
      LK_ASSIGN_OR_RETURN(const Task task, next_task());
      if (task.done) return Status();
      if (task.number > 0) LK_RETURN_IF_ERROR(take_part(task));
      const bool waited = task.number == 0 && Clock::now() - begun >= options_.pause;
      if (waited || after_ > before) {
        pause = options_.pause, fruitful = Clock::now();
        continue;
      }
      if (Clock::now() + pause > fruitful + options_.patience)
        return unavailable("{}: its answers lead nowhere", options_.server);
      LK_RETURN_IF_ERROR(wait(pause));
      pause = std::min(2 * pause, 16 * options_.pause);
    }
  }

 private:
  std::string path(const Task& task, const char* what) const {
    return join_path(options_.state, fmt::format("{}-{}.safetensors", what, task.sha256.substr(0, 16)));
  }
  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  Status wait(std::chrono::milliseconds pause) const { return wait_unless_stopped(pause, stop_); }

  // What the server said is wrong; what it is not asked about (a proxy's page) in its first words.
  static std::string message_of(const ClientAnswer& answer) {
    const Result<json::object> object = parse_json_object(answer.body, "the answer");
    if (object.ok())
      if (const json::value* error = object->if_contains("error"); error && error->is_object())
        if (const json::value* text = error->get_object().if_contains("message"); text && text->is_string())
          return std::string(text->get_string());
    return fmt::format("status {}", answer.status);
  }
  static std::string code_of(const ClientAnswer& answer) {
    const Result<json::object> object = parse_json_object(answer.body, "the answer");
    if (object.ok())
      if (const json::value* error = object->if_contains("error"); error && error->is_object())
        if (const json::value* text = error->get_object().if_contains("code"); text && text->is_string())
          return std::string(text->get_string());
    return "";
  }
  static bool may_pass(int status) { return status == 408 || status == 429 || status >= 500; }

  // Asked again while the server is away or says that it cannot now, for as long as patience lasts.
  Result<ClientAnswer> ask(const char* method, const std::string& target, const std::string& body = "",
                           HttpHeaders headers = {}) {
    headers.emplace_back("authorization", "Bearer " + options_.key);
    const auto timeout = kTimeout + std::chrono::seconds(std::ssize(body) / kSlowest);
    std::optional<Clock::time_point> end;
    for (auto pause = options_.pause;; pause = std::min(2 * pause, 16 * options_.pause)) {
      LK_RETURN_IF_ERROR(check_stop(stop_));
      ClientRequest request{.method = method, .url = options_.server + target, .headers = headers, .body = body};
      request.timeout = timeout;
      PendingAnswer pending(*http_, std::move(request), kMostAnswer + 4096);
      Result<ClientAnswer> answer = pending.wait(stop_);
      LK_RETURN_IF_ERROR(check_stop(stop_));
      if (answer.ok() && !may_pass(answer->status)) {
        if (answer->status == 401 || answer->status == 403)
          return permission_denied("{}: {}", options_.server, message_of(*answer));
        return answer;
      }
      if (!answer.ok() && answer.status().code() == StatusCode::kInvalidArgument) return answer.status();
      const std::string why = answer.ok() ? message_of(*answer) : answer.status().message();
      if (!end) end = Clock::now() + options_.patience;
      if (Clock::now() + pause > *end) return unavailable("{}: {}", options_.server, why);
      log("retry", why);
      LK_RETURN_IF_ERROR(wait(pause));
    }
  }

  Status join() {
    LK_ASSIGN_OR_RETURN(ClientAnswer answer, post_join(-1));
    LK_ASSIGN_OR_RETURN(const json::object object, parse_json_object(answer.body, options_.server));
    std::string run;
    JsonFields fields(object, options_.server);
    fields.read_string("client", client_, 1, 200);
    fields.read_string("run", run, 1);
    LK_RETURN_IF_ERROR(fields.status());
    LK_ASSIGN_OR_RETURN(const FederatedConfig config, parse_given_run(run, options_.server));
    const std::string digest = run_digest_of(config);
    if (!run_digest_.empty() && digest != run_digest_)
      return failed_precondition("{}: the run is another than the one that was joined; start again to take part",
                                 options_.server);
    run_digest_ = digest;
    const DType act = config.dtype == TrainDtype::kF32 ? DType::kF32 : DType::kBF16;
    if (!base_ || act != act_) {
      base_.reset();
      LK_ASSIGN_OR_RETURN(base_, options_.open_base(act));
      act_ = act;
    }
    LK_ASSIGN_OR_RETURN(const int64_t examples, count_examples(config, *base_, client_, options_.data, stop_));
    LK_RETURN_IF_ERROR(post_join(examples).status());
    log("joined", fmt::format("as {}, with {} examples: {} rounds of {} steps", client_, examples, config.rounds,
                              config.train.steps));
    return Status();
  }
  Result<ClientAnswer> post_join(int64_t examples) {
    json::object body{{"base_digest", base_digest_}};
    if (examples >= 0) body["num_examples"] = examples;
    LK_ASSIGN_OR_RETURN(ClientAnswer answer, ask("POST", std::string(kFederateJoin), json_text(body)));
    if (answer.status != 200) return failed_precondition("{}: {}", options_.server, message_of(answer));
    return answer;
  }

  // A task of number 0: ask again.
  Result<Task> next_task() {
    LK_ASSIGN_OR_RETURN(const ClientAnswer answer,
                        ask("GET", fmt::format("{}?after={}&wait={}", kFederateTask, after_, kWaitSeconds)));
    Task task;
    if (answer.status == 204) return task;
    if (answer.status == 409) {  // another server stands there now, or one that has lost its state
      after_ = 0;
      LK_RETURN_IF_ERROR(join());
      return task;
    }
    if (answer.status != 200) return failed_precondition("{}: {}", options_.server, message_of(answer));
    LK_ASSIGN_OR_RETURN(const json::object object, parse_json_object(answer.body, options_.server));
    JsonFields fields(object, options_.server);
    fields.read_bool("done", task.done);
    fields.read_int("number", task.number, 1, INT64_MAX);
    fields.read_int("round", task.round, 1, INT64_MAX);
    fields.read_int("bytes", task.bytes, 1, INT64_MAX);
    fields.read_string("sha256", task.sha256);
    LK_RETURN_IF_ERROR(fields.status());
    if (!task.done && (task.number == 0 || task.round == 0 || task.bytes == 0 || !is_sha256(task.sha256)))
      return data_loss("{}: a task that is none", options_.server);
    if (!task.done && task.number <= after_) return data_loss("{}: a task that is over", options_.server);
    return task;
  }

  // A round's file is no longer than the base's weights and an adapter in f32.
  int64_t most_task_bytes() const {
    int64_t elements = 0;
    for (const auto& [name, view] : base_->weights->checkpoint->tensors()) elements += view.num_elements();
    return 12 * elements + (int64_t{64} << 20);
  }

  // False: the task is another by now.
  Result<bool> fetch(const Task& task) {
    if (task.bytes > most_task_bytes())
      return data_loss("{}: a round of {} bytes, more than this base can need", options_.server, task.bytes);
    const std::string whole = path(task, "round"), part = whole + ".part";
    int64_t have = 0;
    if (file_exists(whole)) {
      LK_ASSIGN_OR_RETURN(const std::string digest, file_sha256(whole, &have));
      if (digest == task.sha256) return true;
    }
    for (int attempt = 0; attempt < 2; ++attempt) {
      have = size_of(part);
      while (have < task.bytes) {
        const int64_t wanted = std::min(kFilePartBytes, task.bytes - have);
        LK_ASSIGN_OR_RETURN(const ClientAnswer answer,
                            ask("GET", std::string(kFederateBlob) + task.sha256, "",
                                {{"range", fmt::format("bytes={}-{}", have, have + wanted - 1)}}));
        if (answer.status == 404 || answer.status == 409) return false;
        if (answer.status != 206 || answer.body.empty() || std::ssize(answer.body) > wanted)
          return data_loss("{}: another part than was asked for: {}", options_.server, message_of(answer));
        LK_RETURN_IF_ERROR(append(part, answer.body));
        have += std::ssize(answer.body);
      }
      LK_ASSIGN_OR_RETURN(const std::string digest, file_sha256(part, &have));
      std::error_code error;
      if (digest == task.sha256 && have == task.bytes) {
        std::filesystem::rename(part, whole, error);
        return error ? Result<bool>(io_error("cannot write {}: {}", whole, error.message())) : Result<bool>(true);
      }
      std::filesystem::remove(part, error);  // what an earlier kill left may be anything
    }
    return data_loss("{}: the round's file is another than its digest says", options_.server);
  }

  Status train(const Task& task) {
    const std::string sent = path(task, "update");
    if (read_update(sent, INT64_MAX).ok()) return Status();
    LK_ASSIGN_OR_RETURN(const RoundFile round, read_round(path(task, "round"), base_->weights->config));
    if (round.run_digest != run_digest_)
      return failed_precondition("the round is of another run than the one that was joined");
    if (round.client != client_) return data_loss("the round is for {}, and this is {}", round.client, client_);
    log("training", fmt::format("round {}", task.round));
    LK_ASSIGN_OR_RETURN(const UpdateFile update,
                        train_round(round, *base_, options_.data, options_.state, stop_, base_digest_));
    return write_update(update, round.config.wire, sent);
  }

  Status send(const Task& task) {
    LK_ASSIGN_OR_RETURN(const std::string bytes, read_file(path(task, "update"), kMostUpdate));
    LK_ASSIGN_OR_RETURN(const ClientAnswer answer, ask("PUT", fmt::format("{}{}", kFederateUpdates, task.round), bytes,
                                                       {{"content-type", "application/octet-stream"}}));
    if (answer.status == 409 && code_of(answer) == "not_joined") return Status();  // the next question says so again
    after_ = task.number;
    log(answer.status == 200 ? "sent" : "refused",
        fmt::format("round {}{}", task.round, answer.status == 200 ? "" : ": " + message_of(answer)));
    forget(task);
    return Status();
  }

  void forget(const Task& task) const {
    for (const char* what : {"round", "update"}) std::remove(path(task, what).c_str());
  }

  // What is said of this machine's files names none of them.
  std::string without_paths(std::string text) const {
    for (const auto& [path, name] : {std::pair(options_.data, "the records"), std::pair(options_.state, "the state"),
                                     std::pair(options_.base, "the base")}) {
      if (path.empty()) continue;
      for (size_t at = text.find(path); at != std::string::npos; at = text.find(path, at + std::strlen(name)))
        text.replace(at, path.size(), name);
    }
    // And those that the three lead to by another way.
    for (size_t at = text.find('/'); at != std::string::npos; at = text.find('/', at + 1)) {
      const size_t begin = text.find_last_of(" \"'(", at) + 1, end = text.find_first_of(" :\"'),", at);
      text.replace(begin, std::min(end, text.size()) - begin, "a file");
      at = begin;
    }
    return text;
  }

  // What keeps this client from training ends it, and the server does not wait for it.
  Status take_part(const Task& task) {
    const Result<bool> fetched = fetch(task);
    if (fetched.ok() && !*fetched) return Status();
    Status status = fetched.status();
    if (status.ok()) status = train(task);
    if (status.ok()) return send(task);
    const bool is_network = status.code() == StatusCode::kUnavailable ||
                            status.code() == StatusCode::kPermissionDenied || status.code() == StatusCode::kCancelled;
    if (!is_network)
      (void)ask("POST", fmt::format("{}{}", kFederateUpdates, task.round),
                json_text(json::object{{"error", without_paths(status.message())}}));
    return status;
  }

  const FederateClientOptions& options_;
  const AskStop& stop_;
  std::shared_ptr<const TrainBase> base_;
  DType act_ = DType::kF32;
  std::unique_ptr<HttpClient> http_;
  std::string base_digest_, client_, run_digest_;
  int64_t after_ = 0;  // number of the last task that is over
};

}  // namespace

Status run_federate_client(const FederateClientOptions& options, const AskStop& stop) {
  // The server's words may be in it, and it is for a terminal.
  const Status status = Client(options, stop).run();
  return Status(status.code(), clean_text(status.message(), kMostMessage));
}

}  // namespace lk
