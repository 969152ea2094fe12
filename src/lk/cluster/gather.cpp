// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/gather.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <map>
#include <mutex>

#include "lk/base/json_text.h"
#include "lk/cluster/router_error.h"

namespace lk {
namespace {

constexpr std::chrono::seconds kListTimeout{10};
constexpr std::chrono::seconds kChangeTimeout{300};    // an adapter may be large, and its probe wait
constexpr size_t kMostAnswerBytes = size_t{16} << 20;  // of one replica; a page of 10,000 names has 2 MiB

struct Answer {
  int replica = 0;
  Status failure;
  int status = 0;
  HttpHeaders headers;
  std::string body;
};

// Asks all replicas that live; `done` on the reply's shard, with the answers in the replicas' order.
class Gathering : public std::enable_shared_from_this<Gathering> {
 public:
  using Done = std::function<void(std::vector<Answer> answers)>;
  Gathering(const RelayContext& context, std::shared_ptr<HttpReply> reply, Done done)
      : context_(context), reply_(std::move(reply)), shard_(reply_->shard()), done_(std::move(done)) {}

  void start(const HttpRequest& request, std::chrono::seconds timeout) {
    std::vector<int> replicas;
    const auto now = std::chrono::steady_clock::now();
    for (int i = 0; i < context_.fleet.size(); ++i)
      if (const auto life = context_.fleet.life(i, now);
          life == FleetView::Life::kReady || life == FleetView::Life::kStarting || life == FleetView::Life::kDraining)
        replicas.push_back(i);
    answers_.resize(replicas.size());
    missing_ = replicas.size();
    if (replicas.empty()) return done_({});
    for (size_t k = 0; k < replicas.size(); ++k) {
      answers_[k].replica = replicas[k];
      ClientRequest copy{.method = request.method, .url = context_.fleet.url(replicas[k]) + request.target};
      for (const auto& [name, value] : request.headers)
        if (name == "authorization" || name == "x-api-key" || name == "x-request-id" || name == "content-type")
          copy.headers.emplace_back(name, value);
      copy.body = request.body;
      copy.timeout = timeout;
      ClientCallbacks callbacks;
      callbacks.on_head = [self = shared_from_this(), k](int status, const HttpHeaders& headers) {
        self->answers_[k].status = status;
        self->answers_[k].headers = headers;
      };
      callbacks.on_data = [self = shared_from_this(), k](std::string_view bytes) {
        std::string& body = self->answers_[k].body;
        if (body.size() + bytes.size() <= kMostAnswerBytes) body += bytes;
      };
      callbacks.on_done = [self = shared_from_this(), k](const Status& status) {
        self->answers_[k].failure = status;
        if (self->missing_.fetch_sub(1) > 1) return;
        self->context_.post(self->shard_, [self] { self->done_(std::move(self->answers_)); });
      };
      context_.client.send(std::move(copy), std::move(callbacks));
    }
  }

 private:
  const RelayContext& context_;
  const std::shared_ptr<HttpReply> reply_;
  const int shard_;
  const Done done_;
  std::vector<Answer> answers_;  // each is its exchange's until that is done
  std::atomic<size_t> missing_{0};
};

HttpResponse nobody() { return router_refusal(503, "no replica is ready", "no_replica"); }

HttpResponse response_of(Answer answer) {
  HttpResponse response{.status = answer.status, .body = std::move(answer.body)};
  for (const auto& [name, value] : answer.headers) {
    if (name == "content-type") response.content_type = value;
    if (name == "retry-after" || name == "www-authenticate" || name == "x-request-id")
      response.headers.emplace_back(name, value);
  }
  return response;
}

}  // namespace

namespace {

bool is_adapter(const boost::json::object& model) {
  const boost::json::value* parent = model.if_contains("parent");
  return parent != nullptr && !parent->is_null();
}

HttpResponse merge_models(std::vector<Answer> answers) {
  boost::json::object merged;
  std::map<std::pair<bool, std::string>, boost::json::value> models;  // by id, the base model first
  size_t longest = 0;                                                 // of the pages
  bool any = false, has_more = false;
  for (const Answer& answer : answers) {
    if (!answer.failure.ok() || answer.status != 200) continue;
    boost::system::error_code error;
    boost::json::value page = boost::json::parse(answer.body, error);
    if (error || !page.is_object()) continue;
    const boost::json::value* data = page.get_object().if_contains("data");
    if (data == nullptr || !data->is_array()) continue;
    if (!std::exchange(any, true)) merged = page.get_object();
    const boost::json::value* more = page.get_object().if_contains("has_more");
    has_more |= more != nullptr && more->is_bool() && more->get_bool();
    longest = std::max(longest, data->get_array().size());
    for (const boost::json::value& model : data->get_array())
      if (const auto* id = model.is_object() ? model.get_object().if_contains("id") : nullptr; id && id->is_string())
        models.emplace(std::pair(is_adapter(model.get_object()), std::string(id->get_string())), model);
  }
  // All refused alike (a wrong key), or nobody could be asked.
  if (!any) {
    for (Answer& answer : answers)
      if (answer.failure.ok()) return response_of(std::move(answer));
    return nobody();
  }
  // A page of the union: where pages were cut, names behind the shortest cut may be missing from some.
  boost::json::array data;
  for (auto& [id, model] : models) {
    if (has_more && data.size() == longest) break;
    data.push_back(std::move(model));
  }
  if (merged.contains("first_id")) merged["first_id"] = data.empty() ? nullptr : data.front().at("id");
  if (merged.contains("last_id")) merged["last_id"] = data.empty() ? nullptr : data.back().at("id");
  if (merged.contains("has_more")) merged["has_more"] = has_more;
  merged["data"] = std::move(data);
  return {.body = json_text(merged)};
}

}  // namespace

void gather_models(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply) {
  auto gathering = std::make_shared<Gathering>(context, reply, [&context, reply](std::vector<Answer> answers) {
    const auto all = std::make_shared<std::vector<Answer>>(std::move(answers));
    context.work([&context, reply, all] {
      const auto response = std::make_shared<HttpResponse>(merge_models(std::move(*all)));
      context.post(reply->shard(), [reply, response] { reply->respond(std::move(*response)); });
    });
  });
  gathering->start(request, kListTimeout);
}

void broadcast(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply) {
  auto gathering = std::make_shared<Gathering>(context, reply, [&context, reply](std::vector<Answer> answers) {
    if (answers.empty()) return reply->respond(nobody());
    const auto agreed =
        std::ranges::count_if(answers, [](const Answer& answer) { return answer.failure.ok() && answer.status < 300; });
    const std::string count = fmt::format("{}/{}", agreed, context.fleet.size());
    for (Answer& answer : answers) {
      if (answer.failure.ok() && answer.status < 300) continue;
      HttpResponse response =
          answer.failure.ok() ? response_of(std::move(answer))
                              : router_refusal(502,
                                               fmt::format("{} could not be asked: {}",
                                                           context.fleet.url(answer.replica), answer.failure.message()),
                                               "replica_unreachable");
      response.headers.emplace_back("x-lorikeet-replicas", count);
      return reply->respond(std::move(response));
    }
    HttpResponse response = response_of(std::move(answers.front()));
    response.headers.emplace_back("x-lorikeet-replicas", count);
    reply->respond(std::move(response));
  });
  gathering->start(request, kChangeTimeout);
}

}  // namespace lk
