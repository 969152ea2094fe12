// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/kubernetes_client.h"

#include <optional>

#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/base/json_text.h"
#include "lk/net/pending_answer.h"
#include "lk/registry/line_stream.h"

namespace lk {
namespace {

constexpr size_t kMostAnswerBytes = size_t{64} << 20, kMostTokenBytes = 64 << 10;

Status refusal(int status, std::string_view body) {
  std::string message(body.substr(0, 200));
  if (const Result<boost::json::object> error = parse_json_object(body, "it"); error.ok())
    if (const auto* text = error->if_contains("message"); text && text->is_string()) message = text->get_string();
  switch (status) {
    case 404:
      return not_found("Kubernetes: {}", message);
    case 409:
      return already_exists("Kubernetes: {}", message);
    case 410:
      return failed_precondition("Kubernetes: {}", message);
    case 401:
    case 403:
      return permission_denied("Kubernetes answered {}: {}; see the roles in its chart", status, message);
    case 400:
    case 413:
    case 422:
      return invalid_argument("Kubernetes answered {}: {}", status, message);
    default:
      return unavailable("Kubernetes answered {}: {}", status, message);
  }
}

}  // namespace

Result<std::unique_ptr<KubernetesClient>> KubernetesClient::create(const Options& options) {
  std::unique_ptr<KubernetesClient> self(new KubernetesClient(options));
  LK_ASSIGN_OR_RETURN(self->http_, HttpClient::create({.tls_ca = options.tls_ca, .connect_timeout = options.timeout}));
  return Result<std::unique_ptr<KubernetesClient>>(std::move(self));
}

ClientRequest KubernetesClient::request(const char* method, const std::string& path,
                                        std::chrono::milliseconds timeout) {
  ClientRequest request{.method = method, .url = options_.url + path, .timeout = timeout};
  request.headers.emplace_back("accept", "application/json");
  if (options_.token_file.empty()) return request;
  Result<std::string> token = read_file(options_.token_file, kMostTokenBytes);
  std::lock_guard lock(mutex_);
  // Between two of them there may be none for a moment.
  if (token.ok() && !token->empty()) token_ = token->substr(0, token->find_last_not_of(" \r\n") + 1);
  if (!token_.empty()) request.headers.emplace_back("authorization", "Bearer " + token_);
  return request;
}

Result<boost::json::object> KubernetesClient::call(const char* method, const std::string& path,
                                                   const boost::json::object* body) {
  ClientRequest asked = request(method, path, options_.timeout);
  if (body != nullptr) {
    asked.headers.emplace_back("content-type", "application/json");
    asked.body = json_text(*body);
  }
  std::optional<PendingAnswer> pending;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return cancelled("the registry is closed");
    pending.emplace(*http_, std::move(asked), kMostAnswerBytes);
    waiting_.insert(pending->id());
  }
  const Result<ClientAnswer> answer = pending->wait();
  {
    std::lock_guard lock(mutex_);
    waiting_.erase(pending->id());
    if (stopped_) return cancelled("the registry is closed");
  }
  if (!answer.ok()) return unavailable("{}: {}", options_.url, answer.status().message());
  if (answer->status >= 300) return refusal(answer->status, answer->body);
  Result<boost::json::object> object = parse_json_object(answer->body, options_.url);
  if (!object.ok()) return unavailable("{}", object.status().message());
  return object;
}

int64_t KubernetesClient::open(const std::string& path, std::chrono::milliseconds longest,
                               std::function<void(std::string_view)> on_event,
                               std::function<void(const Status&)> on_end) {
  return open_lines(*http_, request("GET", path, longest),
                    {.on_line = std::move(on_event),
                     .on_end = [on_end = std::move(on_end)](const Status& ended, int status, std::string_view body) {
                       on_end(ended.ok() && status != 200 ? refusal(status, body) : ended);
                     }});
}

void KubernetesClient::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  for (const int64_t id : waiting_) http_->cancel(id);
}

}  // namespace lk
