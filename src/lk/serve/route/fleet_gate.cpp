// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/route/fleet_gate.h"

#include <fmt/format.h>

#include <openssl/crypto.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <map>
#include <mutex>

#include "lk/base/guarded.h"
#include "lk/base/json_text.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/cluster/fleet_paths.h"
#include "lk/serve/access/principal_json.h"
#include "lk/serve/access/state_thread.h"
#include "lk/serve/access/tenant_limiter.h"
#include "lk/serve/http/access_api.h"
#include "lk/serve/http/authorize.h"
#include "lk/serve/http/browser_guard.h"
#include "lk/serve/http/console.h"
#include "lk/serve/http/refusals.h"
#include "lk/serve/http/work_queue.h"

namespace lk {
namespace {

// Bodies are kept until their answers have ended: another replica may be asked. Shared between tenants by weight; those
// whose keys are not judged here share as addresses.
constexpr int64_t kMaxHeldBytes = int64_t{256} << 20;
// Of requests that are no inference.
constexpr int64_t kMaxOtherBody = 64 << 10;
constexpr std::chrono::milliseconds kAccessInterval{1000};
constexpr std::chrono::milliseconds kStatePatience{2000};
// Lists of replicas that wait to be merged.
constexpr int64_t kMostTasks = 256;
constexpr std::chrono::seconds kTaskPatience{30};
constexpr int64_t kBytesPerToken = 4;  // of English text, and more than JSON around it has
// More answers than any server gives at once.
constexpr int64_t kMostChoices = 1 << 20;
constexpr int64_t kMostTokens = 1 << 22;  // likewise, and of one

const std::shared_ptr<const Tenant>& nobody() {
  static const auto tenant = std::make_shared<const Tenant>(Tenant{.name = ""});
  return tenant;
}

// Whose bytes wait for their reader where replicas judge keys: the key's, by its public part. What is long comes with
// keys that are some.
std::string account_of_key(const HttpRequest& head) {
  constexpr size_t kPublicPart = 15;  // "lk-" and twelve characters
  const std::string key = authorization_of(head);
  const size_t begin = key.find("lk-");
  return begin == std::string::npos ? "" : "key " + key.substr(begin, kPublicPart);
}

class Entry final : public RouterEntry {
 public:
  Entry(int64_t max_body, std::string path) : max_body_(max_body), path_(std::move(path)) {}
  std::optional<ApiError> hold(int64_t bytes) {
    if (bytes > max_body_)
      return ApiError{.status = 413,
                      .message = fmt::format("the body is larger than {} bytes", max_body_),
                      .code = "request_too_large"};
    if (!place.hold(bytes)) return overloaded(1, "the router holds too many large requests, try again later");
    declared_ = std::max(declared_, bytes);
    return std::nullopt;
  }
  std::optional<HttpResponse> on_body(int64_t bytes) override {
    if (bytes <= declared_) return std::nullopt;
    if (const std::optional<ApiError> error = hold(bytes)) return error_response(*error, dialect);
    return std::nullopt;
  }
  std::optional<HttpResponse> admit(const RequestFacts* facts, int64_t body_bytes, int64_t context) override {
    if (facts == nullptr || !infers) return std::nullopt;  // a replica says what is wrong with it
    if (facts->resumes)
      return error_response({.status = 403,
                             .message = "\"lorikeet_resume\" is for routers that send a key of scope fleet",
                             .type = "permission_error",
                             .param = "lorikeet_resume",
                             .code = "insufficient_scope"},
                            dialect);
    if (!is_charged) return std::nullopt;
    const int64_t choices = std::min(facts->num_answers(path_), kMostChoices);
    const int64_t most = std::clamp<int64_t>(context, 0, kMostTokens);
    const int64_t output = generates ? std::clamp<int64_t>(facts->output_limit(path_).value_or(most), 0, most) : 0;
    prompt_tokens_ = 1 + facts->prompt_bytes(path_, body_bytes) / kBytesPerToken;
    const TenantLimiter::Decision decision = place.admit(prompt_tokens_ + choices * output, choices);
    if (!decision.admitted) return error_response(rate_limited(decision), dialect);
    return std::nullopt;
  }
  void finish(int64_t used_tokens, bool client_left) override {
    place.finish(client_left ? std::max(used_tokens, prompt_tokens_) : used_tokens);
  }

  TenantLimiter::Place place;
  Principal who;
  bool infers = false;      // a replica's model reads its body
  bool is_charged = false;  // and computes

 private:
  const int64_t max_body_;
  const std::string path_;
  int64_t declared_ = 0;       // bytes that are held already
  int64_t prompt_tokens_ = 0;  // about so many, of what is charged
};

class FleetGateImpl final : public FleetGate {
 public:
  FleetGateImpl(const FleetGateOptions& options, std::unique_ptr<AccountStore> store)
      : options_(options),
        store_(std::move(store)),
        limiter_(kMaxHeldBytes),
        work_(
            {.num_threads = 1, .thread_name = "lk-route-lists", .max_waiting = kMostTasks, .max_wait = kTaskPatience}) {
  }

  Status start() {
    LK_ASSIGN_OR_RETURN(browser_, BrowserGuard::create({}));
    if (!options_.judges) return Status();
    AccessOptions access = options_.access;
    access.require_keys = true;  // who is told to judge keys opens to nobody without one
    LK_ASSIGN_OR_RETURN(access_, AccessControl::create(access, store_.get()));
    if (store_) {
      store_->set_patience(kStatePatience);
      store_->set_log([this](std::string_view what, std::string_view reason) { log(what, reason); });
      store_->on_failed_write([this](const Status& reason) {
        log("state_not_written", reason.message());
        return unavailable("the change could not be stored and is not in effect; the router's log says why");
      });
    }
    state_ = std::make_unique<StateThread>([this] { watch_access(); }, kAccessInterval);
    return Status();
  }
  void stop() override {
    if (state_) state_->stop();
    work_.stop();
  }

  bool work(const RouterEntry& entry, std::function<void()> run, std::function<void()> refuse) override {
    return work_
        .post({.tenant = entry.payer,
               .weight = entry.weight,
               .run = std::move(run),
               .refuse = [refuse = std::move(refuse)](const Status&) { refuse(); }})
        .status.ok();
  }

  bool open() const override { return !access_ && options_.fleet_key.empty(); }
  void set_share(int rank, int count) override { limiter_.set_share(rank, count); }

  std::optional<HttpResponse> judge(HttpRequest& head) override {
    if (std::optional<ApiError> error = let_in(head)) {
      {
        const std::lock_guard lock(mutex_);
        ++refused_[std::string(refusal_reason(error->status))];
      }
      HttpResponse response = error_response(*error, dialect_at(head.path));
      if (error->status == 405) response.headers.emplace_back("allow", allowed_methods(head.path));
      return response;
    }
    return std::nullopt;
  }

  void answer(HttpRequest request, std::shared_ptr<HttpReply> reply,
              std::function<void(std::function<void()> task)> post) override {
    std::string parameter;
    bool path_exists = false;
    if (const Route* route = find_route(request.method, request.path, &parameter, &path_exists);
        route && route->access == Access::kAdmin)
      return administrate(std::move(request), *route, parameter, std::move(reply), std::move(post));
    if (request.path == "/version")
      return reply->respond({.body = json_text(boost::json::object{{"version", options_.version}})});
    if (request.path == "/openapi.json") {
      static const std::string page = openapi_json(options_.version);
      return reply->respond({.body = page});
    }
    if (std::optional<HttpResponse> page = console_response(request)) return reply->respond(std::move(*page));
    reply->respond(error_response({.status = 404, .message = "no such page", .code = "not_found"}));
  }

  std::string metrics() const override {
    const std::map<std::string, TenantLimiter::Usage> tenants = limiter_.usage();
    std::string out;
    const auto each = [&](std::string_view name, std::string_view type, std::string_view help, auto member) {
      out +=
          fmt::format("# HELP lorikeet_route_tenant_{0} {1}\n# TYPE lorikeet_route_tenant_{0} {2}\n", name, help, type);
      for (const auto& [tenant, usage] : tenants)
        if (!tenant.empty())
          out += fmt::format("lorikeet_route_tenant_{}{{tenant=\"{}\"}} {}\n", name, tenant, usage.*member);
    };
    out +=
        "# HELP lorikeet_route_door_refusals_total Requests refused before their body was read, by reason.\n"
        "# TYPE lorikeet_route_door_refusals_total counter\n";
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [reason, count] : refused_)
        out += fmt::format("lorikeet_route_door_refusals_total{{reason=\"{}\"}} {}\n", reason, count);
    }
    using Usage = TenantLimiter::Usage;
    each("in_flight", "gauge", "Answers in flight, of tenants whose keys are judged here.", &Usage::in_flight);
    each("requests_total", "counter", "Answers that were let in.", &Usage::requests);
    each("refused_total", "counter", "Requests refused for the tenant's limits.", &Usage::refused);
    each("tokens_total", "counter", "Tokens of prompts and outputs that were charged.", &Usage::used_tokens);
    return out;
  }

 private:
  bool brings_fleet_key(const HttpRequest& head) const {
    const std::string given = authorization_of(head), wanted = "Bearer " + options_.fleet_key;
    return !options_.fleet_key.empty() && given.size() == wanted.size() &&
           CRYPTO_memcmp(given.data(), wanted.data(), wanted.size()) == 0;
  }

  ApiResult<Principal> authorize(const HttpRequest& head, Access access, bool is_own) const {
    const Principal everybody{.tenant = nobody(), .scopes = kAllScopes};
    if (open()) {
      if (std::optional<ApiError> foreign = browser_.check(head, options_.insecure)) return std::move(*foreign);
      return everybody;
    }
    if (access == Access::kOpen) return Principal{.tenant = nobody(), .scopes = 0};
    if (is_own && access == Access::kMetrics && brings_fleet_key(head)) return everybody;
    if (access_) return authenticate(*access_->ring(), head, access);
    if (is_own)
      return api_error(unauthenticated("this is for who has the fleet's key: send \"Authorization: Bearer lk-...\""));
    if (authorization_of(head).empty())
      return api_error(unauthenticated("a valid API key is needed: send \"Authorization: Bearer lk-...\""));
    return everybody;
  }

  // Sets the head's admission, unless it is refused.
  std::optional<ApiError> let_in(HttpRequest& head) {
    if (!head.target.starts_with('/'))
      return ApiError{.status = 400, .message = "the target must be a path", .code = "invalid_target"};
    std::string parameter;
    bool path_exists = false;
    const Route* route = find_route(head.method, head.path, &parameter, &path_exists);
    const bool is_status = head.path == kFleetStatusPath && (head.method == "GET" || head.method == "HEAD");
    if (!route && path_exists)
      return ApiError{
          .status = 405, .message = fmt::format("{} is not allowed here", head.method), .code = "method_not_allowed"};
    if ((!route && !is_status) || (route && route->access == Access::kFleet))
      return ApiError{.status = 404, .message = "the router has no such endpoint", .code = "not_found"};
    const Access access = is_status ? Access::kMetrics : route->access;
    const RoutedAs how = is_status ? RoutedAs::kOwn : route->routed;
    const ApiResult<Principal> found = authorize(head, access, how == RoutedAs::kOwn);
    if (!found.ok()) return found.error;
    const Principal& who = *found.value;

    auto entry = std::make_shared<Entry>(access == Access::kInfer ? options_.max_body_bytes : kMaxOtherBody, head.path);
    entry->how = how;
    entry->dialect = dialect_of(route);
    entry->weight = who.tenant->weight;
    entry->who = who;
    if (!options_.fleet_key.empty()) entry->identity.emplace_back(kFleetKeyHeader, options_.fleet_key);
    if (!access_) entry->account = account_of_key(head);
    if (!who.tenant->name.empty()) {
      std::string text = format_principal(who);
      if (text.size() > kMaxPrincipalBytes)
        return ApiError{.status = 403,
                        .message =
                            "the list of adapters that this tenant may use is too long for a router, which "
                            "tells replicas of it in a request's head: use patterns (sql*)",
                        .type = "permission_error",
                        .code = "tenant_too_large"};
      entry->is_known = true;
      entry->account = "tenant " + who.tenant->name;
      entry->identity.emplace_back(kPrincipalHeader, std::move(text));
    }
    entry->payer = entry->account.empty() ? "peer " + head.peer_account : entry->account;
    if (route && route->cost != Cost::kNothing) {
      entry->infers = access == Access::kInfer;
      entry->is_charged = route->cost == Cost::kInference;
      entry->generates = route->generates;
      const TenantLimiter::Decision decision =
          limiter_.enter(who.tenant, entry->place, TenantLimiter::Clock::now(), entry->infers ? 1 : 0,
                         entry->is_known ? "" : "peer " + head.peer_account);
      if (!decision.admitted) return rate_limited(decision);
    }
    if (std::optional<ApiError> error = entry->hold(std::max<int64_t>(head.content_length, 0))) return error;
    head.admission = std::move(entry);
    return std::nullopt;
  }

  // A request about keys or tenants, which are the router's where it judges them.
  struct Administration {
    std::shared_ptr<HttpReply> reply;
    std::function<void(std::function<void()> task)> post;
    HttpRequest request;
    std::atomic<bool> gone{false};
    void answer(HttpResponse response) {
      if (!reply) return;
      request.admission.reset();
      std::exchange(reply, nullptr)->respond(std::move(response));
    }
  };
  void administrate(HttpRequest request, const Route& route, const std::string& parameter,
                    std::shared_ptr<HttpReply> reply, std::function<void(std::function<void()> task)> post) {
    if (!store_) return reply->respond(error_response(no_access_state("the router")));
    auto asked = std::make_shared<Administration>();
    asked->reply = std::move(reply);
    asked->post = std::move(post);
    asked->request = std::move(request);
    asked->reply->on_close([weak = std::weak_ptr(asked)] {
      const auto alive = weak.lock();
      if (!alive) return;
      alive->gone = true;
      alive->reply.reset();
    });
    ApiResult<AccessJob> job = read_access_job(*store_, asked->request.method, route.path, parameter,
                                               asked->request.body, [asked] { return asked->gone.load(); });
    if (!job.ok()) return asked->answer(error_response(job.error));
    const bool taken = state_->try_post([this, asked, job = std::move(*job.value)](const Status& turn) {
      const Principal who = static_cast<Entry&>(*asked->request.admission).who;
      const AccessAudit audit = [this, who](const char* action, std::string_view target, const Status& outcome) {
        log(action, fmt::format("{} by key {} of tenant {}: {}", target, who.key_id, who.tenant->name,
                                outcome.ok() ? "ok" : outcome.message()));
      };
      const Result<std::string> body =
          !turn.ok() ? Result<std::string>(turn) : guarded("a change", [&] { return job.run(audit); });
      if (job.changes && body.ok()) watch_access();
      HttpResponse response =
          body.ok() ? HttpResponse{.status = job.success, .headers = {{"cache-control", "no-store"}}, .body = *body}
                    : error_response(access_error(body.status(), ""));
      asked->post([this, asked, job, audit, response = std::move(response), made = body.ok()] {
        if (asked->gone && made && job.undo) {
          const auto undo = [this, job, audit](const Status&) {
            job.undo(audit);
            watch_access();
          };
          if (!state_->try_post(undo)) log("change_not_undone", "its client had left");
        }
        asked->answer(response);
      });
    });
    if (!taken) asked->answer(error_response(access_error(unavailable("other changes hold up the state file"), "")));
  }

  // State thread.
  void watch_access() {
    const Result<std::vector<AccessChange>> changes = guarded("a look at the keys", [&] { return access_->refresh(); });
    if (changes.ok()) {
      for (const AccessChange& change : *changes) log(change.action, change.target);
      if (!changes->empty())
        limiter_.retain([ring = access_->ring()](const std::string& tenant) { return ring->knows(tenant); });
    }
    if (changes.status().message() == access_failure_) return;
    access_failure_ = changes.status().message();
    log(changes.ok() ? "keys_readable" : "keys_not_readable", access_failure_);
  }

  void log(std::string_view event, std::string_view detail) const {
    if (options_.log) options_.log(event, detail);
  }

  const FleetGateOptions options_;
  const std::unique_ptr<AccountStore> store_;
  TenantLimiter limiter_;
  WorkQueue work_;
  BrowserGuard browser_;
  std::unique_ptr<AccessControl> access_;
  mutable std::mutex mutex_;
  std::map<std::string, int64_t> refused_;  // by reason; guarded by mutex_
  std::string access_failure_;              // that was logged last; state thread
  std::unique_ptr<StateThread> state_;
};

}  // namespace

Result<std::unique_ptr<FleetGate>> FleetGate::create(const FleetGateOptions& options,
                                                     std::unique_ptr<AccountStore> store) {
  auto gate = std::make_unique<FleetGateImpl>(options, std::move(store));
  LK_RETURN_IF_ERROR(gate->start());
  return Result<std::unique_ptr<FleetGate>>(std::move(gate));
}

}  // namespace lk
