// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/gather.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <map>
#include <tuple>

#include "lk/base/json_text.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/cluster/gather_bounds.h"
#include "lk/cluster/router_error.h"

namespace lk {
namespace {

constexpr std::chrono::seconds kListTimeout{10};
constexpr std::chrono::seconds kChangeTimeout{300};    // an adapter may be large, and its probe wait
constexpr size_t kMostAnswerBytes = size_t{16} << 20;  // of one replica; a page of 10,000 names has 2 MiB

struct Answer {
  std::string url;  // of the replica: its number may be another's by the time of the merge
  Status failure;
  int status = 0;
  HttpHeaders headers;
  std::string body;
};

HttpResponse nobody() { return router_refusal(503, "no replica is ready", "no_replica"); }

HttpResponse overloaded() {
  return router_refusal(503, "the router asks replicas for too much at once, try again later", "overloaded");
}

bool is_good(const Answer& answer) { return answer.failure.ok() && answer.status < 300; }

HttpResponse answer_of(const FleetView& fleet, RoutedAs how, std::vector<Answer> answers);

// All methods on the reply's shard, but for what comes from replicas: that is each exchange's own until it has ended.
class Gathering : public std::enable_shared_from_this<Gathering> {
 public:
  Gathering(const RelayContext& context, RoutedAs how, HttpRequest request, std::shared_ptr<HttpReply> reply,
            std::string id)
      : context_(context), how_(how), request_(std::move(request)), reply_(std::move(reply)), id_(std::move(id)) {
    payer_ = entry_of(request_).payer;
    weight_ = entry_of(request_).weight;
  }
  ~Gathering() { context_.bounds.give_back(payer_, has_place_, held_bytes_); }

  void start() {
    const bool changes = how_ == RoutedAs::kEverywhere;  // these are the limiter's, and few
    has_place_ = !changes && context_.bounds.enter(payer_, weight_);
    if (!changes && !has_place_) return respond(overloaded());
    const std::vector<int> replicas = asked();
    answers_.resize(replicas.size());
    missing_ = replicas.size();
    if (replicas.empty()) return respond(nobody());
    reply_->on_close([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->leave();
    });
    for (size_t k = 0; k < replicas.size(); ++k) {
      answers_[k].url = context_.fleet.url(replicas[k]);
      exchanges_.push_back(ask(k, changes ? kChangeTimeout : kListTimeout));
    }
  }

 private:
  std::vector<int> asked() const {
    using Life = FleetView::Life;
    // Whoever is ready answers for all. What is this or that replica's own, such as a pin, is said to each.
    const bool of_one = how_ == RoutedAs::kEverywhere && context_.options.shared_adapters && request_.method != "PATCH";
    std::vector<int> replicas;
    const auto now = std::chrono::steady_clock::now();
    for (const int i : context_.fleet.numbers()) {
      const Life life = context_.fleet.life(i, now);
      if (life == Life::kReady || (!of_one && (life == Life::kStarting || life == Life::kDraining)))
        replicas.push_back(i);
    }
    if (of_one && replicas.size() > 1) replicas.resize(1);
    return replicas;
  }

  // Returns the exchange's number.
  int64_t ask(size_t k, std::chrono::seconds timeout) {
    ClientRequest copy{.method = request_.method,
                       .url = answers_[k].url + request_.target,
                       .headers = headers_to_replica(request_, id_)};
    copy.body = request_.body;
    copy.timeout = timeout;
    ClientCallbacks callbacks;
    callbacks.on_head = [self = shared_from_this(), k](int status, const HttpHeaders& headers) {
      self->answers_[k].status = status;
      self->answers_[k].headers = headers;
    };
    callbacks.on_data = [self = shared_from_this(), k](std::string_view bytes) { self->keep(k, bytes); };
    callbacks.on_done = [self = shared_from_this(), k](const Status& status) {
      if (self->answers_[k].failure.ok()) self->answers_[k].failure = status;
      self->context_.post(self->reply_->shard(), [self, k] { self->ended(k); });
    };
    return context_.client.send(std::move(copy), std::move(callbacks));
  }

  // A part that did not fit must not leave a hole: the whole answer counts as failed. On the client's thread.
  void keep(size_t k, std::string_view bytes) {
    Answer& answer = answers_[k];
    if (!answer.failure.ok()) return;
    const auto size = static_cast<int64_t>(bytes.size());
    if (answer.body.size() + bytes.size() > kMostAnswerBytes)
      answer.failure = data_loss("its answer is larger than {} bytes", kMostAnswerBytes);
    else if (!context_.bounds.hold(payer_, weight_, size))
      answer.failure = resource_exhausted("the router holds too many answers");
    if (answer.failure.ok()) {
      held_bytes_ += size;
      answer.body += bytes;
      return;
    }
    answer.body = {};
    context_.post(reply_->shard(), [self = shared_from_this(), k] {
      if (!self->over_ && !self->context_.closed) self->context_.client.cancel(self->exchanges_[k]);
    });
  }

  void ended(size_t k) {
    --missing_;
    if (over_) return;
    // Others may still be writing to theirs.
    if (how_ == RoutedAs::kWhoKnows && is_good(answers_[k])) {
      std::vector<Answer> first;
      first.push_back(std::move(answers_[k]));
      return conclude(std::move(first));
    }
    if (missing_ == 0) conclude(std::move(answers_));
  }

  void conclude(std::vector<Answer> answers) {
    stop();
    if (context_.closed) return;
    const auto all = std::make_shared<std::vector<Answer>>(std::move(answers));
    const auto later = [self = shared_from_this()](HttpResponse response) {
      const auto made = std::make_shared<HttpResponse>(std::move(response));
      self->context_.post(self->reply_->shard(), [self, made] { self->respond(std::move(*made)); });
    };
    const bool taken = context_.work(
        entry_of(request_),
        [self = shared_from_this(), all, later] {
          if (!self->left_) later(answer_of(self->context_.fleet, self->how_, std::move(*all)));
        },
        [later] { later(overloaded()); });
    if (!taken) respond(overloaded());
  }

  // Nobody waits for what has not come yet.
  void stop() {
    over_ = true;
    if (context_.closed || missing_ == 0) return;  // nothing happens to one that was done
    for (const int64_t exchange : exchanges_) context_.client.cancel(exchange);
  }

  // A list is nobody's any more; a change goes on, as one that a replica was asked for directly does.
  void leave() {
    left_ = true;
    if (how_ != RoutedAs::kEverywhere && !over_) stop();
    entry_of(request_).finish(0);
  }

  void respond(HttpResponse response) {
    over_ = true;
    if (left_) return;
    entry_of(request_).finish(0);
    if (std::ranges::find(response.headers, "x-request-id", &HttpHeaders::value_type::first) == response.headers.end())
      response.headers.emplace_back("x-request-id", id_);
    if (response.body.size() > kHttpPartBytes) {
      response.parts = split_into_parts(response.body);
      response.body.clear();
    }
    reply_->respond(std::move(response));
  }

  const RelayContext& context_;
  const RoutedAs how_;
  const HttpRequest request_;
  const std::shared_ptr<HttpReply> reply_;
  const std::string id_;
  std::string payer_;
  double weight_ = 1;
  std::vector<int64_t> exchanges_;  // of the HttpClient
  std::vector<Answer> answers_;     // each is its exchange's until that has ended
  size_t missing_ = 0;
  bool has_place_ = false, over_ = false;
  std::atomic<bool> left_{false};
  std::atomic<int64_t> held_bytes_{0};
};

HttpResponse response_of(Answer answer) {
  HttpResponse response{.status = answer.status, .body = std::move(answer.body)};
  for (const auto& [name, value] : answer.headers) {
    if (name == "content-type") response.content_type = value;
    if (name == "retry-after" || name == "www-authenticate" || name == "x-request-id")
      response.headers.emplace_back(name, value);
  }
  return response;
}

HttpResponse unreachable(const Answer& answer) {
  return router_refusal(502, fmt::format("{} could not be asked: {}", answer.url, answer.failure.message()),
                        "replica_unreachable");
}

// So many replicas of all had part in an answer.
void say_count(HttpResponse& response, const FleetView& fleet, int64_t count, size_t asked) {
  const auto all = std::max(fleet.listed(), static_cast<int>(asked));
  response.headers.emplace_back(kReplicasHeader, fmt::format("{}/{}", count, all));
}

namespace json = boost::json;

// The first answer that was asked for. Else who could not be asked, since it may have what others do not; else a
// refusal: that it is nowhere only where nobody says anything else.
HttpResponse first_of(std::vector<Answer> answers) {
  const auto good = std::ranges::find_if(answers, is_good);
  if (good != answers.end()) return response_of(std::move(*good));
  for (const Answer& answer : answers)
    if (!answer.failure.ok()) return unreachable(answer);
  const auto refusal = std::ranges::find_if(answers, [](const Answer& answer) { return answer.status != 404; });
  if (refusal != answers.end()) return response_of(std::move(*refusal));
  return answers.empty() ? nobody() : response_of(std::move(answers.front()));
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

// The lists of all replicas as one, and how many replicas' they are. A page has as many entries as the longest of
// theirs: each replica gave its first ones, so that none of the first of all is missing.
HttpResponse merge_lists(const FleetView& fleet, std::vector<Answer> answers, const char* key,
                         const std::function<void(json::object& entry, const std::string& url)>& prepare,
                         const Merge& merge) {
  json::object merged;
  std::map<Place, json::object> entries;
  size_t longest = 0;  // of the pages
  int64_t count = 0;   // of lists
  bool has_more = false;
  for (const Answer& answer : answers) {
    if (!is_good(answer)) continue;
    boost::system::error_code error;
    json::value page = json::parse(answer.body, error);
    if (error || !page.is_object()) continue;
    json::value* data = page.get_object().if_contains("data");
    if (data == nullptr || !data->is_array()) continue;
    json::array list = std::move(data->get_array());
    if (count++ == 0) merged = page.get_object();
    const json::value* more = page.get_object().if_contains("has_more");
    has_more |= more != nullptr && more->is_bool() && more->get_bool();
    longest = std::max(longest, list.size());
    for (json::value& value : list) {
      if (!value.is_object()) continue;
      json::object& entry = value.get_object();
      const json::value* id = entry.if_contains(key);
      if (id == nullptr || !(id->is_string() || id->is_null())) continue;
      prepare(entry, answer.url);
      const auto [known, is_new] = entries.emplace(place_of(entry, key), entry);
      if (!is_new) merge(known->second, entry);
    }
  }
  // All refused alike (a wrong key), or nobody could be asked.
  if (count == 0) return first_of(std::move(answers));
  json::array data;
  for (auto& [place, entry] : entries) {
    if (has_more && data.size() == longest) break;
    data.push_back(std::move(entry));
  }
  if (merged.contains("first_id")) merged["first_id"] = data.empty() ? nullptr : data.front().at(key);
  if (merged.contains("last_id")) merged["last_id"] = data.empty() ? nullptr : data.back().at(key);
  if (merged.contains("has_more")) merged["has_more"] = has_more;
  merged["data"] = std::move(data);
  HttpResponse response{.body = json_text(merged)};
  say_count(response, fleet, count, answers.size());
  return response;
}

void add(json::object& sum, const json::object& entry, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const json::value* more = entry.if_contains(name);
    json::value* so_far = sum.if_contains(name);
    if (more == nullptr || so_far == nullptr || !more->is_int64() || !so_far->is_int64()) continue;
    *so_far = so_far->get_int64() + more->get_int64();
  }
}

HttpResponse merge_models(const FleetView& fleet, std::vector<Answer> answers) {
  return merge_lists(
      fleet, std::move(answers), "id", [](json::object&, const std::string&) {},
      [](json::object&, const json::object&) {});
}

// Each adapter once, with the replicas that have it and where they keep it; its requests are those of all.
HttpResponse merge_adapters(const FleetView& fleet, std::vector<Answer> answers) {
  return merge_lists(
      fleet, std::move(answers), "id",
      [](json::object& entry, const std::string& url) {
        const json::value* tier = entry.if_contains("tier");
        entry["replicas"] = json::array{json::object{{"url", url}, {"tier", tier == nullptr ? json::value() : *tier}}};
      },
      [](json::object& known, const json::object& entry) {
        add(known, entry, {"running", "waiting", "requests"});
        json::array& replicas = known.at("replicas").as_array();
        replicas.push_back(entry.at("replicas").as_array().front());
        if (replicas.back().at("tier") == "device") known["tier"] = "device";
      });
}

HttpResponse merge_usage(const FleetView& fleet, std::vector<Answer> answers) {
  return merge_lists(
      fleet, std::move(answers), "key", [](json::object&, const std::string&) {},
      [](json::object& known, const json::object& entry) {
        add(known, entry, {"requests", "prompt_tokens", "cached_tokens", "output_tokens"});
      });
}

// The first refusal, or the first answer when all agree, and how many of all did.
HttpResponse agreement_of(const FleetView& fleet, std::vector<Answer> answers) {
  if (answers.empty()) return nobody();
  const int64_t count = std::ranges::count_if(answers, is_good);
  const size_t asked = answers.size();
  const auto refusal = std::ranges::find_if_not(answers, is_good);
  HttpResponse response = refusal == answers.end() ? response_of(std::move(answers.front()))
                          : refusal->failure.ok()  ? response_of(std::move(*refusal))
                                                   : unreachable(*refusal);
  say_count(response, fleet, count, asked);
  return response;
}

HttpResponse answer_of(const FleetView& fleet, RoutedAs how, std::vector<Answer> answers) {
  for (const Answer& answer : answers)
    if (answer.failure.code() == StatusCode::kResourceExhausted) return overloaded();
  switch (how) {
    case RoutedAs::kModelList:
      return merge_models(fleet, std::move(answers));
    case RoutedAs::kAdapterList:
      return merge_adapters(fleet, std::move(answers));
    case RoutedAs::kUsageList:
      return merge_usage(fleet, std::move(answers));
    case RoutedAs::kEverywhere:
      return agreement_of(fleet, std::move(answers));
    default: {
      const int64_t count = std::ranges::count_if(answers, [](const Answer& answer) { return answer.failure.ok(); });
      const size_t asked = answers.size();
      HttpResponse response = first_of(std::move(answers));
      // One that was not asked, or did not answer, may have it.
      if (response.status >= 300) say_count(response, fleet, count, asked);
      return response;
    }
  }
}

}  // namespace

bool GatherBounds::enter(const std::string& account, double weight) {
  std::lock_guard lock(mutex_);
  return places_.try_take(account, weight, 1);
}

bool GatherBounds::hold(const std::string& account, double weight, int64_t bytes) {
  std::lock_guard lock(mutex_);
  return bytes_.try_take(account, weight, bytes);
}

void GatherBounds::give_back(const std::string& account, bool place, int64_t bytes) {
  std::lock_guard lock(mutex_);
  places_.give_back(account, place ? 1 : 0);
  bytes_.give_back(account, bytes);
}

void gather(const RelayContext& context, RoutedAs how, HttpRequest request, std::shared_ptr<HttpReply> reply,
            std::string id) {
  std::make_shared<Gathering>(context, how, std::move(request), std::move(reply), std::move(id))->start();
}

}  // namespace lk
