// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/gather.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <tuple>

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

  // `of_one`: whoever is ready answers for all.
  void start(const HttpRequest& request, const std::string& id, std::chrono::seconds timeout, bool of_one) {
    std::vector<int> replicas;
    const auto now = std::chrono::steady_clock::now();
    for (int i = 0; i < context_.fleet.size(); ++i)
      if (const auto life = context_.fleet.life(i, now);
          life == FleetView::Life::kReady || life == FleetView::Life::kStarting || life == FleetView::Life::kDraining)
        replicas.push_back(i);
    if (of_one) {
      const auto ready =
          std::ranges::find_if(replicas, [&](int i) { return context_.fleet.life(i, now) == FleetView::Life::kReady; });
      replicas = ready == replicas.end() ? std::vector<int>() : std::vector<int>{*ready};
    }
    answers_.resize(replicas.size());
    missing_ = replicas.size();
    if (replicas.empty()) return done_({});
    for (size_t k = 0; k < replicas.size(); ++k) {
      answers_[k].replica = replicas[k];
      ClientRequest copy{.method = request.method,
                         .url = context_.fleet.url(replicas[k]) + request.target,
                         .headers = headers_to_replica(request, id)};
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

namespace json = boost::json;

bool is_good(const Answer& answer) { return answer.failure.ok() && answer.status < 300; }

// The first answer that was asked for, else the first refusal, else that nobody could be asked.
HttpResponse first_of(std::vector<Answer> answers) {
  const auto good = std::ranges::find_if(answers, is_good);
  const auto any = std::ranges::find_if(answers, [](const Answer& answer) { return answer.failure.ok(); });
  if (good != answers.end()) return response_of(std::move(*good));
  return any != answers.end() ? response_of(std::move(*any)) : nobody();
}

// Entries of lists by what they are sorted by: the base model first, then names, then versions.
using Place = std::tuple<bool, std::string, int64_t, std::string>;
Place place_of(const json::object& entry, const char* key) {
  const auto text = [&](const char* name) {
    const json::value* value = entry.if_contains(name);
    return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  const json::value *parent = entry.if_contains("parent"), *version = entry.if_contains("version");
  const bool has_version = version != nullptr && version->is_int64();
  return {parent != nullptr && !parent->is_null(), has_version ? text("name") : text(key),
          has_version ? version->get_int64() : 0, text(key)};
}
// `known`: the same entry of a replica before.
using Merge = std::function<void(json::object& known, const json::object& entry)>;

// The lists of all replicas as one. Where pages were cut, names behind the shortest cut may be missing from some: it is
// cut there, too.
HttpResponse merge_lists(std::vector<Answer> answers, const char* key,
                         const std::function<void(json::object& entry, int replica)>& prepare, const Merge& merge) {
  json::object merged;
  std::map<Place, json::object> entries;
  size_t longest = 0;  // of the pages
  bool any = false, has_more = false;
  for (const Answer& answer : answers) {
    if (!is_good(answer)) continue;
    boost::system::error_code error;
    json::value page = json::parse(answer.body, error);
    if (error || !page.is_object()) continue;
    json::value* data = page.get_object().if_contains("data");
    if (data == nullptr || !data->is_array()) continue;
    json::array list = std::move(data->get_array());
    if (!std::exchange(any, true)) merged = page.get_object();
    const json::value* more = page.get_object().if_contains("has_more");
    has_more |= more != nullptr && more->is_bool() && more->get_bool();
    longest = std::max(longest, list.size());
    for (json::value& value : list) {
      if (!value.is_object()) continue;
      json::object& entry = value.get_object();
      const json::value* id = entry.if_contains(key);
      if (id == nullptr || !(id->is_string() || id->is_null())) continue;
      prepare(entry, answer.replica);
      const auto [known, is_new] = entries.emplace(place_of(entry, key), entry);
      if (!is_new) merge(known->second, entry);
    }
  }
  // All refused alike (a wrong key), or nobody could be asked.
  if (!any) return first_of(std::move(answers));
  json::array data;
  for (auto& [place, entry] : entries) {
    if (has_more && data.size() == longest) break;
    data.push_back(std::move(entry));
  }
  if (merged.contains("first_id")) merged["first_id"] = data.empty() ? nullptr : data.front().at(key);
  if (merged.contains("last_id")) merged["last_id"] = data.empty() ? nullptr : data.back().at(key);
  if (merged.contains("has_more")) merged["has_more"] = has_more;
  merged["data"] = std::move(data);
  return {.body = json_text(merged)};
}

void add(json::object& sum, const json::object& entry, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const json::value* more = entry.if_contains(name);
    json::value* so_far = sum.if_contains(name);
    if (more == nullptr || so_far == nullptr || !more->is_int64() || !so_far->is_int64()) continue;
    *so_far = so_far->get_int64() + more->get_int64();
  }
}

HttpResponse merge_models(std::vector<Answer> answers) {
  return merge_lists(
      std::move(answers), "id", [](json::object&, int) {}, [](json::object&, const json::object&) {});
}

// Each adapter once, with the replicas that have it and where they keep it; its requests are those of all.
HttpResponse merge_adapters(const FleetView& fleet, std::vector<Answer> answers) {
  return merge_lists(
      std::move(answers), "id",
      [&](json::object& entry, int replica) {
        const json::value* tier = entry.if_contains("tier");
        entry["replicas"] =
            json::array{json::object{{"url", fleet.url(replica)}, {"tier", tier == nullptr ? json::value() : *tier}}};
      },
      [](json::object& known, const json::object& entry) {
        add(known, entry, {"running", "waiting", "requests"});
        json::array& replicas = known.at("replicas").as_array();
        replicas.push_back(entry.at("replicas").as_array().front());
        if (replicas.back().at("tier") == "device") known["tier"] = "device";
      });
}

HttpResponse merge_usage(std::vector<Answer> answers) {
  return merge_lists(
      std::move(answers), "key", [](json::object&, int) {},
      [](json::object& known, const json::object& entry) {
        add(known, entry, {"requests", "prompt_tokens", "cached_tokens", "output_tokens"});
      });
}

// The first refusal, or the first answer when all agree, and how many of all did.
HttpResponse agreement_of(const FleetView& fleet, std::vector<Answer> answers) {
  if (answers.empty()) return nobody();
  const std::string count = fmt::format("{}/{}", std::ranges::count_if(answers, is_good), fleet.listed());
  const auto refusal = std::ranges::find_if_not(answers, is_good);
  HttpResponse response =
      refusal == answers.end() ? response_of(std::move(answers.front()))
      : refusal->failure.ok()
          ? response_of(std::move(*refusal))
          : router_refusal(
                502, fmt::format("{} could not be asked: {}", fleet.url(refusal->replica), refusal->failure.message()),
                "replica_unreachable");
  response.headers.emplace_back("x-lorikeet-replicas", count);
  return response;
}

HttpResponse answer_of(const FleetView& fleet, RoutedAs how, std::vector<Answer> answers) {
  switch (how) {
    case RoutedAs::kModelList:
      return merge_models(std::move(answers));
    case RoutedAs::kAdapterList:
      return merge_adapters(fleet, std::move(answers));
    case RoutedAs::kUsageList:
      return merge_usage(std::move(answers));
    case RoutedAs::kEverywhere:
      return agreement_of(fleet, std::move(answers));
    default:
      return first_of(std::move(answers));
  }
}

}  // namespace

void gather(const RelayContext& context, RoutedAs how, HttpRequest request, std::shared_ptr<HttpReply> reply,
            std::string id) {
  auto gathering = std::make_shared<Gathering>(
      context, reply, [&context, reply, how, id, admission = request.admission](std::vector<Answer> answers) {
        const auto all = std::make_shared<std::vector<Answer>>(std::move(answers));
        context.work([&context, reply, how, id, all, admission] {
          const auto response = std::make_shared<HttpResponse>(answer_of(context.fleet, how, std::move(*all)));
          if (std::ranges::find(response->headers, "x-request-id", &HttpHeaders::value_type::first) ==
              response->headers.end())
            response->headers.emplace_back("x-request-id", id);
          context.post(reply->shard(), [reply, response, admission] {
            static_cast<RouterEntry&>(*admission).finish(0);
            if (response->body.size() > kHttpPartBytes) {
              response->parts = split_into_parts(response->body);
              response->body.clear();
            }
            reply->respond(std::move(*response));
          });
        });
      });
  const bool changes = how == RoutedAs::kEverywhere;
  // What is this or that replica's own, such as a pin, is said to each.
  const bool of_one = changes && context.options.shared_adapters && request.method != "PATCH";
  gathering->start(request, id, changes ? kChangeTimeout : kListTimeout, of_one);
}

}  // namespace lk
