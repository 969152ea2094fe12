// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/http_relay.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <ctime>
#include <random>

#include "lk/base/json_text.h"
#include "lk/base/rng.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/cluster/router_error.h"

namespace lk {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr const char* kEventStream = "text/event-stream; charset=utf-8";
constexpr size_t kMostBodyBytes = size_t{64} << 20;  // of an answer that is not streamed
constexpr double kBytesPerToken = 4;                 // of English text; for placement only
constexpr size_t kLongestName = 1024;
constexpr auto kFullFor = 200ms;  // a replica that answered 503 is asked last

// Headers that belong to one connection, or that the router says itself.
bool is_passed_on(std::string_view name) {
  static constexpr std::string_view kOwn[] = {"connection",
                                              "keep-alive",
                                              "transfer-encoding",
                                              "content-length",
                                              "content-type",
                                              "host",
                                              "te",
                                              "upgrade",
                                              "expect",
                                              "date",
                                              "server",
                                              "proxy-connection",
                                              "accept-encoding"};
  return std::ranges::find(kOwn, name) == std::end(kOwn) && !name.starts_with(kFleetHeaders);
}

// What clients say that replicas shall not hear: names and addresses that only the router knows, and what it has judged
// at the door. To a replica the router is the origin, and a key that was judged goes no further.
bool is_only_for_routers(std::string_view name, bool is_known) {
  static constexpr std::string_view kNames[] = {"origin",          "cookie",    "forwarded",
                                                "x-forwarded-for", "x-real-ip", "x-request-id"};
  return std::ranges::find(kNames, name) != std::end(kNames) ||
         (is_known && (name == "authorization" || name == "x-api-key"));
}

HttpHeaders passed_on(const HttpHeaders& headers) {
  HttpHeaders kept;
  std::ranges::copy_if(headers, std::back_inserter(kept),
                       [](const auto& header) { return is_passed_on(header.first); });
  return kept;
}

std::string_view header_of(const HttpHeaders& headers, std::string_view name) {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

const char* name_of(Relay::Why why, bool in_mid_answer) {
  switch (why) {
    case Relay::Why::kSilent:
      return "hedged";
    case Relay::Why::kDrains:
      return "moved";
    case Relay::Why::kPlanned:
      return "planned";
    default:
      return in_mid_answer ? "continued" : "retried";
  }
}

// Of an answer whose request names none. Not made of the request's id, which a client may have chosen, and twice.
uint64_t fresh_seed() {
  thread_local std::random_device source;
  return (uint64_t{source()} << 32 | source()) >> 11;  // 53 bits: exact in JSON
}

}  // namespace

RouterEntry& entry_of(const HttpRequest& request) { return static_cast<RouterEntry&>(*request.admission); }

HttpHeaders headers_to_replica(const HttpRequest& request, const std::string& id) {
  const RouterEntry& entry = entry_of(request);
  HttpHeaders headers = passed_on(request.headers);
  std::erase_if(headers, [&](const auto& header) { return is_only_for_routers(header.first, entry.is_known); });
  headers.insert(headers.end(), entry.identity.begin(), entry.identity.end());
  if (const std::string_view type = request.header("content-type"); !type.empty())
    headers.emplace_back("content-type", type);
  headers.emplace_back("x-request-id", id);
  headers.emplace_back("x-forwarded-for", request.peer);
  return headers;
}

HttpRelay::HttpRelay(const RelayContext& context, HttpRequest request, std::shared_ptr<HttpReply> reply, std::string id)
    : context_(context),
      request_(std::move(request)),
      reply_(std::move(reply)),
      id_(std::move(id)),
      created_(std::time(nullptr)),
      seed_(fresh_seed()),
      facts_(request_.method == "POST" ? read_request_facts(request_.body) : std::nullopt),
      streams_(facts_ && facts_->stream && entry_of(request_).generates),
      relay_(context.fleet, *this, {.streams = streams_, .exact_only = context.options.exact_only}) {
  ++context_.counters.in_flight;
}

void HttpRelay::start() {
  std::optional<HttpResponse> refusal =
      entry_of(request_).admit(facts_ ? &*facts_ : nullptr, std::ssize(request_.body), context_.fleet.context());
  if (refusal) {
    relay_.close();
    settle();
    refusal->headers.emplace_back("x-request-id", id_);
    return reply_->respond(std::move(*refusal));
  }
  ++context_.counters.requests;
  if (streams_) ++context_.counters.streams;
  RoutedRequest routed;
  if (facts_) {
    // No name is longer that anybody has: what is, is refused where it arrives.
    if (facts_->model.size() <= kLongestName && !context_.fleet.is_base(facts_->model)) routed.adapter = facts_->model;
    const double predicted = context_.fleet.predicted_output(routed.adapter);
    const std::optional<int64_t> limit = facts_->output_limit(request_.path);
    const double most = limit ? static_cast<double>(std::max<int64_t>(0, *limit)) : predicted;
    routed.predicted_output = std::min(predicted, most) * static_cast<double>(std::clamp<int64_t>(facts_->n, 1, 1024));
  }
  routed.prompt_tokens = static_cast<double>(request_.body.size()) / kBytesPerToken;
  reply_->on_close([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->relay_.close();
    self->settle(true);
  });
  relay_.start(routed, Clock::now());
}

void HttpRelay::send(const Relay::Source& source, Relay::Why why) {
  if (why != Relay::Why::kFirst)
    context_.moves.add({.time = std::time(nullptr),
                        .why = name_of(why, source.resumes),
                        .request = id_,
                        .adapter = facts_ ? facts_->model.substr(0, kLongestName) : "",
                        .from = context_.fleet.url(last_replica_),
                        .to = context_.fleet.url(source.replica),
                        .tokens = relay_.log().num_tokens()});
  last_replica_ = source.replica;
  const auto exchange = std::make_shared<Exchange>();
  exchanges_[source.id] = exchange;
  exchange->replica = source.replica;
  exchange->resumes = source.resumes;
  exchange->reader = std::make_unique<CommitReader>(
      [this, id = source.id](std::string_view events, const AnswerCommit& commit) {
        relay_.group(id, events, commit, Clock::now());
      },
      [this, weak = std::weak_ptr(exchange)] {
        if (const auto alive = weak.lock()) ping(*alive);
      });
  const auto on_shard = [self = shared_from_this(), shard = reply_->shard()](auto task) {
    self->context_.post(shard, [self, task = std::move(task)] { task(*self); });
  };
  ClientCallbacks callbacks;
  callbacks.on_head = [on_shard, id = source.id](int status, const HttpHeaders& headers) {
    on_shard([id, status, headers](HttpRelay& self) { self.on_head(id, status, headers); });
  };
  callbacks.on_data = [on_shard, id = source.id](std::string_view bytes) {
    on_shard([id, bytes = std::string(bytes)](HttpRelay& self) { self.on_data(id, bytes); });
  };
  callbacks.on_done = [on_shard, id = source.id](const Status& status) {
    on_shard([id, status](HttpRelay& self) { self.on_done(id, status); });
  };
  exchange->id = context_.client.send(to_replica(source), std::move(callbacks));
}

void HttpRelay::cancel(Relay::SourceId source) {
  const auto found = exchanges_.find(source);
  if (found == exchanges_.end()) return;
  context_.client.cancel(found->second->id);  // nothing happens to one that was done
  exchanges_.erase(found);
}

ClientRequest HttpRelay::to_replica(const Relay::Source& source) const {
  ClientRequest request{.method = request_.method,
                        .url = context_.fleet.url(source.replica) + request_.target,
                        .headers = headers_to_replica(request_, id_)};
  request.timeout = std::chrono::hours(24);
  if (!streams_) {
    request.body = request_.body;
    return request;
  }
  if (source.resumes) request.headers.emplace_back(kGoesOnHeader, "1");
  request.body = with_field(request_.body, *facts_, "lorikeet_resume",
                            fmt::format("{{\"id\":{},\"created\":{},\"seed\":{},\"digest\":\"{}\",\"choices\":{}}}",
                                        json_text(boost::json::string(id_)), created_, seed_, relay_.log().digest(),
                                        relay_.log().choices_json()));
  return request;
}

void HttpRelay::on_head(Relay::SourceId source, int status, const HttpHeaders& headers) {
  const auto found = exchanges_.find(source);
  if (found == exchanges_.end()) return;
  relay_.heard(source, Clock::now());
  found->second->status = status;
  found->second->headers = headers;
}

void HttpRelay::on_data(Relay::SourceId source, std::string_view bytes) {
  const auto found = exchanges_.find(source);
  if (found == exchanges_.end()) return;
  const std::shared_ptr<Exchange> exchange = found->second;
  relay_.heard(source, Clock::now());
  if (!streams_ || exchange->status != 200) {
    exchange->body += bytes;
    if (exchange->body.size() > kMostBodyBytes) lost(source, "the answer is too large for the router", true);
    return;
  }
  const int64_t mismatches = relay_.num_mismatches();
  const Status status = exchange->reader->push(bytes);
  if (const int64_t more = relay_.num_mismatches() - mismatches; more > 0) {
    context_.counters.mismatches += more;
    last_failure_ = "replicas gave different tokens for one place";
    context_.log("mismatch", fmt::format("request {}: {} does not go on with what was given", id_,
                                         context_.fleet.url(exchange->replica)));
  }
  if (!status.ok()) lost(source, status.message());
}

void HttpRelay::show(std::string_view events, const Relay::Source& source) {
  if (!std::exchange(streaming_, true))
    reply_->begin_stream(200, passed_on(exchanges_.at(source.id)->headers), kEventStream);
  last_events_.clear();
  if (!events.empty()) reply_->write(events);
}

// A replica keeps its stream alive while there is nothing to show: so does the router.
void HttpRelay::ping(const Exchange& exchange) {
  if (relay_.over()) return;
  if (!std::exchange(streaming_, true)) reply_->begin_stream(200, passed_on(exchange.headers), kEventStream);
  reply_->write(": ping\n\n");
}

void HttpRelay::lost(Relay::SourceId source, std::string_view reason, bool is_final) {
  const auto found = exchanges_.find(source);
  if (found == exchanges_.end()) return;
  last_failure_ = reason;
  context_.log("replica_lost",
               fmt::format("request {}: {}: {}", id_, context_.fleet.url(found->second->replica), reason));
  relay_.lost(source, Clock::now(), is_final);
}

void HttpRelay::on_done(Relay::SourceId source, const Status& status) {
  const auto found = exchanges_.find(source);
  if (found == exchanges_.end()) return;
  const std::shared_ptr<Exchange> exchange = found->second;
  if (!status.ok()) return lost(source, status.message());
  if (!streams_ || exchange->status != 200) return on_whole(source, *exchange);
  // A stream that was whole has ended with its last group.
  last_events_ = exchange->reader->rest();
  lost(source, "it ended the answer with an error", true);
}

// An answer in one piece: what was asked for, or why not.
void HttpRelay::on_whole(Relay::SourceId source, Exchange& exchange) {
  answer_ = HttpResponse{.status = exchange.status,
                         .headers = passed_on(exchange.headers),
                         .content_type = std::string(header_of(exchange.headers, "content-type")),
                         .body = std::move(exchange.body)};
  if (const std::string_view tokens = header_of(exchange.headers, kTokensHeader); !tokens.empty())
    if (int64_t told = 0; std::from_chars(tokens.data(), tokens.data() + tokens.size(), told).ec == std::errc())
      used_tokens_ = std::clamp<int64_t>(told, 0, most_tokens());
  const int status = exchange.status, replica = exchange.replica;
  const bool is_busy = status == 502 || status == 503 || status == 504;
  // Somebody else has it in memory.
  const bool others_know = status == 404 && facts_ && context_.fleet.others_know(replica, facts_->model);
  // A refusal is nobody's answer while others give one, or have begun it.
  const bool others_answer = status >= 400 && (exchange.resumes || streaming_ || relay_.num_sources() > 1);
  if (streaming_ && !relay_.begun() && status >= 400)  // its head is gone: what would be the answer is an event
    last_events_ = error_events(entry_of(request_).dialect, answer_->body);
  if (!is_busy && !others_know && !others_answer) return relay_.whole(source);
  if (is_busy) context_.fleet.refused(replica, Clock::now() + kFullFor);
  lost(source, fmt::format("it answered {}", status), status == 400);
}

// What a replica may say that an answer took.
int64_t HttpRelay::most_tokens() const {
  static constexpr int64_t kMostChoices = 1 << 20, kMostContext = 1 << 22;
  const int64_t answers = facts_ ? std::min(facts_->num_answers(request_.path), kMostChoices) : 1;
  return answers * std::clamp<int64_t>(context_.fleet.context(), 0, kMostContext);
}

// What it took, once: before who has the answer asks the next.
void HttpRelay::settle(bool client_left) {
  for (const AnswerLog::Choice& choice : relay_.log().choices())
    used_tokens_ +=
        std::ssize(choice.tokens) + (choice.prompt ? std::clamp<int64_t>(choice.prompt->tokens, 0, most_tokens()) : 0);
  entry_of(request_).finish(std::exchange(used_tokens_, 0), client_left);
}

void HttpRelay::finish() {
  settle();
  if (streaming_) return reply_->end();
  if (answer_->body.size() > kHttpPartBytes) {
    answer_->parts = split_into_parts(answer_->body);
    answer_->body.clear();
  }
  reply_->respond(std::move(*answer_));
}

void HttpRelay::give_up() {
  settle();
  if (streaming_ && last_events_.empty())
    last_events_ = error_events(entry_of(request_).dialect, 503,
                                {.message = "No replica could go on with this answer: " + last_failure_,
                                 .type = "server_error",
                                 .param = "",
                                 .code = "no_replica"},
                                relay_.log().choices().empty() ? 0 : relay_.log().choices()[0].events);
  if (!last_events_.empty()) {
    ++context_.counters.broken;
    // Without a token so far: an error that every replica gave.
    if (!std::exchange(streaming_, true)) reply_->begin_stream(200, {}, kEventStream);
    reply_->write(last_events_);
    return reply_->end();
  }
  ++context_.counters.refused;
  if (answer_) return reply_->respond(std::move(*answer_));
  std::string reason = "no replica is ready";
  if (!last_failure_.empty()) reason += "; the last one that was asked: " + last_failure_;
  HttpResponse refusal = router_refusal(503, reason, "no_replica", entry_of(request_).dialect);
  refusal.headers.emplace_back("x-request-id", id_);
  reply_->respond(std::move(refusal));
}

}  // namespace lk
