// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/federate/federate_door.h"

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <charconv>
#include <map>
#include <mutex>
#include <set>

#include "lk/base/guarded.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/base/plain_text.h"
#include "lk/serve/access/access_control.h"
#include "lk/serve/access/state_thread.h"
#include "lk/serve/federate/federate_paths.h"
#include "lk/serve/http/authorize.h"
#include "lk/serve/http/file_part.h"
#include "lk/serve/http/query_value.h"
#include "lk/serve/http/refusals.h"
#include "lk/serve/http/work_queue.h"

namespace lk {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kUpdatesAtOnce = 64;
constexpr int64_t kMaxSmallBody = 64 << 10;  // of what is no update
constexpr std::chrono::milliseconds kTick{100};
constexpr std::chrono::milliseconds kAccessInterval{1000};
constexpr std::chrono::milliseconds kStatePatience{2000};
constexpr int64_t kMostWaitSeconds = 60;
constexpr int64_t kMostTasks = 100'000;            // about as many as there may be clients
constexpr std::chrono::minutes kTaskPatience{30};  // the end of a round of a large model holds up the others
constexpr size_t kMostReasonBytes = 500;

ApiError conflict(std::string message, std::string code) {
  return {.status = 409, .message = std::move(message), .code = std::move(code)};
}

// How a client learns what became of its update.
ApiError refusal_of(const Status& status) {
  switch (status.code()) {
    case StatusCode::kNotFound:
    case StatusCode::kFailedPrecondition:
      return conflict(status.message(), "stale_update");
    case StatusCode::kAlreadyExists:
      return conflict(status.message(), "second_update");
    case StatusCode::kResourceExhausted:
      return {.status = 413, .message = status.message(), .code = "request_too_large"};
    case StatusCode::kInvalidArgument:
    case StatusCode::kDataLoss:
    case StatusCode::kUnsupported:
      return {.status = 422, .message = status.message(), .code = "bad_update"};
    case StatusCode::kIoError:
      return {.status = 507,
              .message = "the server cannot write: it is full, or its disk fails. Try again later",
              .type = "server_error",
              .code = "insufficient_storage",
              .retry_after_seconds = 5};
    default:
      return api_error(status);
  }
}

HttpResponse json_response(const json::object& object) { return {.body = json_text(object)}; }

std::optional<int64_t> number_of(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// For the ledger and the log.
std::string reason_of(std::string_view text) { return clean_text(text, kMostReasonBytes); }

enum class Action : uint8_t { kJoin, kTask, kBlob, kUpdate, kGiveUp, kStatus, kHealth };

struct Found {
  Action action;
  std::string parameter;
};

struct RouteRow {
  std::string_view method, path;
  bool has_parameter;
  Action action;
};
constexpr RouteRow kRows[] = {
    {"POST", kFederateJoin, false, Action::kJoin},     {"GET", kFederateTask, false, Action::kTask},
    {"GET", kFederateBlob, true, Action::kBlob},       {"PUT", kFederateUpdates, true, Action::kUpdate},
    {"POST", kFederateUpdates, true, Action::kGiveUp}, {"GET", kFederateStatus, false, Action::kStatus},
    {"GET", "/health", false, Action::kHealth},
};

ApiResult<Found> find_action(const HttpRequest& head) {
  bool path_exists = false;
  for (const RouteRow& row : kRows) {
    if (row.has_parameter ? !head.path.starts_with(row.path) : head.path != row.path) continue;
    path_exists = true;
    if (head.method == row.method) return Found{row.action, head.path.substr(row.path.size())};
  }
  if (!path_exists)
    return ApiError{
        .status = 404, .message = "the server of a federated run has no such endpoint", .code = "not_found"};
  return ApiError{
      .status = 405, .message = fmt::format("{} is not allowed here", head.method), .code = "method_not_allowed"};
}

// What of a body may be received, also of one that does not say how long it is.
class BodyLimit final : public HttpAdmission {
 public:
  BodyLimit(int64_t most, std::function<void()> refused) : most_(most), refused_(std::move(refused)) {}
  std::optional<HttpResponse> on_body(int64_t bytes) override {
    if (bytes <= most_) return std::nullopt;
    refused_();
    return error_response(too_large(most_));
  }
  static ApiError too_large(int64_t most) {
    return {
        .status = 413, .message = fmt::format("the body is larger than {} bytes", most), .code = "request_too_large"};
  }

 private:
  const int64_t most_;
  const std::function<void()> refused_;
};

class FederateDoorImpl final : public FederateDoor {
 public:
  FederateDoorImpl(const FederateDoorOptions& options, std::unique_ptr<Coordinator> coordinator,
                   std::unique_ptr<StateStore> keys)
      : options_(options),
        coordinator_(std::move(coordinator)),
        store_(std::move(keys)),
        desk_({.num_threads = 1, .thread_name = "lk-federate", .max_waiting = kMostTasks, .max_wait = kTaskPatience}) {}
  // Whoever may still post goes before what they post to.
  ~FederateDoorImpl() override {
    if (server_) server_->stop_accepting();
    if (state_) state_->stop();
    desk_.stop();
    waiting_.clear();
    server_.reset();
  }

  Status start();
  std::string address(int listener) const override { return server_->address(listener); }
  std::optional<Status> ended() const override {
    const std::lock_guard lock(mutex_);
    return ended_;
  }

 private:
  // One request, until it is answered.
  struct Asked {
    HttpRequest request;
    std::shared_ptr<HttpReply> reply;
    Found found;
    Principal who;
    int shard = 0;
    std::atomic<bool> gone = false;
    const std::string& client() const { return who.tenant->name; }
  };
  using AskedPtr = std::shared_ptr<Asked>;
  struct Poll {
    AskedPtr asked;
    int64_t after = 0;
    Clock::time_point until;
  };

  std::optional<HttpResponse> filter(HttpRequest& head);
  ApiResult<Principal> authorize(const HttpRequest& head, Action action) const;
  void handle(HttpRequest request, std::shared_ptr<HttpReply> reply);
  void answer(const AskedPtr& asked, HttpResponse response);
  void fail(const AskedPtr& asked, const ApiError& error) { answer(asked, error_response(error)); }

  // On the desk's thread.
  void work(const AskedPtr& asked);
  void join(const AskedPtr& asked);
  void task(const AskedPtr& asked);
  bool answer_task(const AskedPtr& asked, int64_t after);
  void blob(const AskedPtr& asked);
  void update(const AskedPtr& asked);
  void give_up(const AskedPtr& asked);
  void status(const AskedPtr& asked);
  // One line of a kind for each client in a round: clients can repeat what they do as they please.
  void log_once(const std::string& client, const Status& status, std::string_view event, const std::string& detail) {
    const int64_t round = coordinator_->server().round();
    if (logged_in_ != round) logged_.clear();
    logged_in_ = round;
    if (logged_.insert(fmt::format("{} {} {}", event, client, static_cast<int>(status.code()))).second)
      log(event, detail);
  }
  void advance();
  Status advance_round(Clock::time_point now);
  void refuse_large(const std::string& client, int64_t round, int64_t most);
  void wake();
  void look_at_keys();
  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  const FederateDoorOptions options_;
  std::unique_ptr<Coordinator> coordinator_;  // the desk's thread's alone, once start() is over
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<AccessControl> access_;
  std::string access_failure_;
  std::set<std::string, std::less<>> names_;
  std::atomic<int64_t> most_update_bytes_ = 0;
  std::map<std::string, Poll> waiting_;  // by client
  std::set<std::string> logged_;         // by log_once() in the round `logged_in_`
  int64_t logged_in_ = 0;
  std::set<std::string> told_;  // that the run is over
  Clock::time_point deadline_ = {};
  std::optional<Clock::time_point> over_since_;
  std::atomic<bool> tick_posted_ = false;
  mutable std::mutex mutex_;
  std::optional<Status> ended_;  // guarded by mutex_
  WorkQueue desk_;
  std::unique_ptr<StateThread> state_;
  Clock::time_point keys_seen_ = Clock::now();
  std::unique_ptr<HttpServer> server_;
};

Status FederateDoorImpl::start() {
  for (const ClientSpec& client : coordinator_->server().config().clients) names_.insert(client.name);
  most_update_bytes_ = coordinator_->max_update_bytes();
  LK_ASSIGN_OR_RETURN(access_, AccessControl::create({.require_keys = true}, store_.get()));
  store_->set_patience(kStatePatience);
  deadline_ = Clock::now() + options_.deadline;
  // An update's size follows from the round; what is longer is refused by its head.
  HttpServerOptions http{.listen = options_.listen,
                         .num_shards = options_.io_threads,
                         .limits = options_.limits,
                         .tls_cert = options_.tls_cert,
                         .tls_key = options_.tls_key};
  // Far above what any update takes: one that is too long is refused by filter(), so that the ledger has it. And as
  // many may be on their way at once.
  http.limits.max_body_bytes = kUpdatesAtOnce * std::max(kMaxSmallBody, coordinator_->max_update_bytes_of_run());
  http.limits.max_total_body_bytes = std::max(http.limits.max_total_body_bytes, http.limits.max_body_bytes);
  LK_ASSIGN_OR_RETURN(server_, HttpServer::open(
                                   http, [this](HttpRequest& head) { return filter(head); },
                                   [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
                                     handle(std::move(request), std::move(reply));
                                   }));
  const auto tick = [this] {
    look_at_keys();
    if (tick_posted_.exchange(true)) return;
    const auto run = [this] {
      tick_posted_ = false;
      advance();
    };
    if (!desk_.post({.run = run, .refuse = [this](const Status&) { tick_posted_ = false; }}).status.ok())
      tick_posted_ = false;
  };
  state_ = std::make_unique<StateThread>(tick, kTick);
  server_->accept();
  return Status();
}

// --- Heads: on a shard's thread

ApiResult<Principal> FederateDoorImpl::authorize(const HttpRequest& head, Action action) const {
  const bool is_status = action == Action::kStatus;
  ApiResult<Principal> who = authenticate(*access_->ring(), head, is_status ? Access::kAnyKey : Access::kFederate);
  if (!who.ok()) return who;
  if (is_status && (who.value->has(Scope::kMetrics) || who.value->has(Scope::kFederate))) return who;
  if (std::optional<ApiError> error = check_scope(*who.value, Access::kFederate)) return std::move(*error);
  if (!names_.contains(who.value->tenant->name))
    return ApiError{.status = 403,
                    .message = fmt::format("this key is of tenant \"{}\", and no client of this run has that name",
                                           who.value->tenant->name),
                    .type = "permission_error",
                    .code = "no_client"};
  return who;
}

std::optional<HttpResponse> FederateDoorImpl::filter(HttpRequest& head) {
  const ApiResult<Found> found = find_action(head);
  if (!found.ok()) return error_response(found.error);
  if (found.value->action == Action::kHealth) return std::nullopt;
  const ApiResult<Principal> who = authorize(head, found.value->action);
  if (!who.ok()) return error_response(who.error);
  const bool is_update = found.value->action == Action::kUpdate;
  const int64_t most = is_update ? most_update_bytes_.load() : kMaxSmallBody;
  const auto refused = [this, is_update, most, client = who.value->tenant->name, text = found.value->parameter] {
    const std::optional<int64_t> round = number_of(text);
    if (is_update && round) refuse_large(client, *round, most);
  };
  if (head.content_length > most) {
    refused();
    return error_response(BodyLimit::too_large(most));
  }
  head.admission = std::make_shared<BodyLimit>(most, refused);
  return std::nullopt;
}

void FederateDoorImpl::handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  const ApiResult<Found> found = find_action(request);
  if (!found.ok()) return reply->respond(error_response(found.error));
  if (found.value->action == Action::kHealth)
    return reply->respond(json_response({{"status", "ok"}, {"version", options_.version}}));
  ApiResult<Principal> who = authorize(request, found.value->action);
  if (!who.ok()) return reply->respond(error_response(who.error));
  const auto asked = std::make_shared<Asked>();
  asked->request = std::move(request);
  asked->request.admission.reset();
  asked->reply = std::move(reply);
  asked->found = std::move(*found.value);
  asked->who = std::move(*who.value);
  asked->shard = asked->reply->shard();
  asked->reply->charge("client " + asked->client());
  asked->reply->on_close([asked] { asked->gone = true; });
  const auto run = [this, asked] {
    if (asked->gone) return;
    const Status done = guarded("a request of a federated run", [&] { work(asked); });
    if (done.ok()) return;
    log("exception", done.message());
    fail(asked, api_error(done));
  };
  const auto refuse = [this, asked](const Status& reason) { fail(asked, api_error(reason)); };
  const WorkQueue::Posted posted = desk_.post({.tenant = asked->client(), .run = run, .refuse = refuse});
  if (!posted.status.ok()) asked->reply->respond(error_response(overloaded(5)));
}

void FederateDoorImpl::answer(const AskedPtr& asked, HttpResponse response) {
  if (asked->gone) return;
  server_->post(asked->shard, [asked, response = std::make_shared<HttpResponse>(std::move(response))] {
    if (!asked->gone) asked->reply->respond(std::move(*response));
    asked->gone = true;  // answered
  });
}

// --- Requests: on the desk's thread

void FederateDoorImpl::work(const AskedPtr& asked) {
  const Action action = asked->found.action;
  if (action != Action::kJoin && action != Action::kStatus && !coordinator_->joined().contains(asked->client()))
    return fail(asked, conflict("you have not joined this run", "not_joined"));
  switch (action) {
    case Action::kJoin:
      return join(asked);
    case Action::kTask:
      return task(asked);
    case Action::kBlob:
      return blob(asked);
    case Action::kUpdate:
      return update(asked);
    case Action::kGiveUp:
      return give_up(asked);
    default:
      return status(asked);
  }
}

void FederateDoorImpl::join(const AskedPtr& asked) {
  std::string digest;
  int64_t examples = -1;
  const Result<json::object> object = parse_json_object(asked->request.body, "the body");
  Status status = object.status();
  if (object.ok()) {
    JsonFields fields(*object, "the body");
    fields.read_string("base_digest", digest, 1, 200);
    fields.read_int("num_examples", examples, 0, int64_t{1} << 40);
    fields.refuse_unknown();
    status = fields.status();
  }
  if (!status.ok()) return fail(asked, api_error(status));
  if (status = coordinator_->check_base(asked->client(), digest); !status.ok())
    return fail(asked, conflict(status.message(), "other_base"));
  if (examples >= 0) status = coordinator_->join(asked->client(), examples);
  if (!status.ok()) return fail(asked, refusal_of(status));
  const FederatedConfig& config = coordinator_->server().config();
  answer(asked, json_response({{"client", asked->client()},
                               {"run", federated_identity(config)},
                               {"round", coordinator_->server().round()},
                               {"rounds", config.rounds}}));
  advance();
}

bool FederateDoorImpl::answer_task(const AskedPtr& asked, int64_t after) {
  if (coordinator_->done()) {
    answer(asked, json_response({{"done", true}}));
    told_.insert(asked->client());
    return true;
  }
  const Coordinator::Task* task = coordinator_->task_of(asked->client());
  if (task == nullptr || task->number <= after) return false;
  const double left = std::chrono::duration<double>(deadline_ - Clock::now()).count();
  answer(asked, json_response({{"number", task->number},
                               {"round", task->round},
                               {"sha256", task->sha256},
                               {"bytes", task->bytes},
                               {"seconds_left", std::max(left, 0.0)}}));
  return true;
}

void FederateDoorImpl::task(const AskedPtr& asked) {
  const auto read = [&](const char* name) {
    const std::optional<std::string> text = query_value(asked->request.query, name);
    return text ? number_of(*text) : std::optional<int64_t>(0);
  };
  const std::optional<int64_t> after = read("after"), wait = read("wait");
  if (!after || !wait)
    return fail(asked, {.status = 400, .message = "after and wait are numbers", .code = "invalid_query"});
  if (answer_task(asked, *after)) return;
  if (const auto before = waiting_.extract(asked->client())) answer(before.mapped().asked, {.status = 204});
  if (*wait == 0) return answer(asked, {.status = 204});
  const auto until = Clock::now() + std::chrono::seconds(std::min(*wait, kMostWaitSeconds));
  waiting_[asked->client()] = {.asked = asked, .after = *after, .until = until};
}

void FederateDoorImpl::blob(const AskedPtr& asked) {
  const Coordinator::Task* task = coordinator_->task_of(asked->client());
  if (task == nullptr || task->sha256 != asked->found.parameter)
    return fail(asked, {.status = 404, .message = "no such file for you", .code = "not_found"});
  ApiResult<HttpResponse> part = file_part(task->path, task->bytes, asked->request.header("range"));
  if (!part.ok()) return fail(asked, part.error);
  answer(asked, std::move(*part.value));
}

void FederateDoorImpl::update(const AskedPtr& asked) {
  const std::optional<int64_t> round = number_of(asked->found.parameter);
  if (!round) return fail(asked, {.status = 404, .message = "no such round", .code = "not_found"});
  const Status status = coordinator_->receive(asked->client(), *round, asked->request.body);
  std::string().swap(asked->request.body);
  if (status.ok())
    log_once(asked->client(), status, "update", fmt::format("{} in round {}", asked->client(), *round));
  else
    log_once(asked->client(), status, "update_refused", status.message());
  if (status.ok())
    answer(asked, json_response({{"round", *round}}));
  else
    fail(asked, refusal_of(status));
  advance();
}

void FederateDoorImpl::give_up(const AskedPtr& asked) {
  const std::optional<int64_t> round = number_of(asked->found.parameter);
  const Result<json::object> object = parse_json_object(asked->request.body, "the body");
  std::string reason;
  Status status = object.status();
  if (object.ok()) {
    JsonFields fields(*object, "the body");
    fields.read_string("error", reason);
    fields.refuse_unknown();
    status = fields.status();
  }
  if (!status.ok()) return fail(asked, api_error(status));
  if (round) status = coordinator_->give_up(asked->client(), *round, reason_of(reason));
  if (!round || !status.ok()) return fail(asked, refusal_of(round ? status : failed_precondition("no such round")));
  log_once(asked->client(), status, "client_failed", asked->client() + ": " + reason_of(reason));
  answer(asked, json_response({{"round", *round}}));
  advance();
}

void FederateDoorImpl::status(const AskedPtr& asked) {
  const Coordinator& c = *coordinator_;
  const Coordinator::Progress now = c.progress();
  json::object body{{"version", options_.version},
                    {"round", c.server().round()},
                    {"rounds", c.server().config().rounds},
                    {"done", c.done()},
                    {"in_work", c.in_work()},
                    {"quorum", c.server().config().quorum},
                    {"joined", c.joined().size()},
                    {"wait_for", c.wait_for()}};
  if (c.in_work())
    body["seconds_left"] = std::max(0.0, std::chrono::duration<double>(deadline_ - Clock::now()).count());
  const bool operators = asked->who.has(Scope::kMetrics);
  // The privacy of Poisson sampling rests on nobody knowing who is asked; how many are is a part of that.
  if (operators || !c.server().config().privacy.unseen()) {
    body["attempt"] = c.attempt();
    body["asked"] = now.asked;
    body["received"] = now.received;
    body["refused"] = now.refused;
    body["failed"] = now.failed;
  }
  if (operators) {
    body["missing"] = json::value_from(c.missing());
    json::object clients;
    for (const auto& [client, examples] : c.joined()) clients[client] = examples;
    body["clients"] = std::move(clients);
  }
  answer(asked, json_response(body));
}

void FederateDoorImpl::refuse_large(const std::string& client, int64_t round, int64_t most) {
  const auto run = [this, client, round, most] {
    const Status status = coordinator_->refuse(client, round, fmt::format("an update of more than {} bytes", most));
    log_once(client, status, "update_refused", status.ok() ? client + ": too large" : status.message());
    advance();
  };
  (void)desk_.post({.tenant = client, .run = run, .refuse = [](const Status&) {}});
}

// --- Rounds: on the desk's thread

void FederateDoorImpl::wake() {
  const Clock::time_point now = Clock::now();
  std::erase_if(waiting_, [&](const auto& item) {
    const Poll& poll = item.second;
    if (poll.asked->gone || answer_task(poll.asked, poll.after)) return true;
    if (now < poll.until) return false;
    answer(poll.asked, {.status = 204});
    return true;
  });
}

Status FederateDoorImpl::advance_round(Clock::time_point now) {
  Coordinator& c = *coordinator_;
  if (c.in_work() && (c.progress().complete() || now >= deadline_)) {
    LK_RETURN_IF_ERROR(c.end());
    most_update_bytes_ = c.max_update_bytes();
  }
  if (c.done() || c.in_work() || !c.can_begin()) return Status();
  LK_RETURN_IF_ERROR(c.begin());
  deadline_ = Clock::now() + options_.deadline;
  log("round", fmt::format("{} of {}, attempt {}: {} clients are asked", c.server().round(), c.server().config().rounds,
                           c.attempt(), c.progress().asked));
  return Status();
}

void FederateDoorImpl::advance() {
  if (ended()) return;
  const Clock::time_point now = Clock::now();
  Status status = guarded("the end of a round", [&] { return advance_round(now); });
  const auto everybody_knows = [&] {
    return std::ranges::all_of(coordinator_->joined(), [&](const auto& item) { return told_.contains(item.first); });
  };
  bool over = !status.ok();
  if (status.ok()) wake();
  if (status.ok() && coordinator_->done()) {
    if (!over_since_) over_since_ = now;
    over = everybody_knows() || now >= *over_since_ + options_.farewell;
  }
  if (!over) return;
  const std::lock_guard lock(mutex_);
  ended_ = std::move(status);
}

// On the state thread.
void FederateDoorImpl::look_at_keys() {
  if (Clock::now() < keys_seen_ + kAccessInterval) return;
  keys_seen_ = Clock::now();
  const Result<std::vector<AccessChange>> changes = guarded("a look at the keys", [&] { return access_->refresh(); });
  if (changes.ok())
    for (const AccessChange& change : *changes) log(change.action, change.target);
  const std::string failure = changes.ok() ? "" : changes.status().message();
  if (failure == access_failure_) return;
  access_failure_ = failure;
  log(changes.ok() ? "keys_readable" : "keys_not_readable", failure);
}

}  // namespace

Result<std::unique_ptr<FederateDoor>> FederateDoor::start(const FederateDoorOptions& options,
                                                          std::unique_ptr<Coordinator> coordinator,
                                                          std::unique_ptr<StateStore> keys) {
  auto door = std::make_unique<FederateDoorImpl>(options, std::move(coordinator), std::move(keys));
  LK_RETURN_IF_ERROR(door->start());
  return Result<std::unique_ptr<FederateDoor>>(std::move(door));
}

}  // namespace lk
