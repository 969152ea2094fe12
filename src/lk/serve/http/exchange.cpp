// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/exchange.h"

#include "lk/base/guarded.h"
#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

constexpr int kClientLeft = 499;  // as in nginx's logs: nobody gets it

}  // namespace

// Overload and limits come in thousands: the metrics count them, a line for each would be part of the overload.
LogLevel level_of_status(int status) {
  if (status == 429 || status == 503) return LogLevel::kDebug;
  return status >= 500 ? LogLevel::kWarning : LogLevel::kInfo;
}

// One line per request, at its end: streams tell what they took only then.
void Exchange::record(int status, const char* outcome) {
  if (std::exchange(recorded_, true)) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - arrival).count();
  const std::string& tenant = principal.tenant ? principal.tenant->name : "";
  const std::string_view path = route ? route->path : "other";
  server->metrics_->http_request(path, status, seconds);
  if (status >= 400 && status != kClientLeft) server->metrics_->request_refused(refusal_reason(status), tenant);
  if (!computed_) {
    server->log_->write(level_of_status(status), "request",
                        {{"id", id},
                         {"method", request.method},
                         {"route", path},
                         {"status", status},
                         {"outcome", outcome},
                         {"ms", seconds * 1e3},
                         {"tenant", tenant},
                         {"key", principal.key_id},
                         {"peer", request.peer}});
    return;
  }
  server->log_->write(level_of_status(status), "request",
                      {{"id", id},
                       {"method", request.method},
                       {"route", path},
                       {"status", status},
                       {"outcome", outcome},
                       {"stream", streaming_},
                       {"adapter", computed_->adapter},
                       {"finish", computed_->finish},
                       {"choices", computed_->usage.requests},
                       {"prompt_tokens", computed_->usage.prompt_tokens},
                       {"cached_tokens", computed_->usage.cached_tokens},
                       {"output_tokens", computed_->usage.output_tokens},
                       {"ms", seconds * 1e3},
                       {"tenant", tenant},
                       {"key", principal.key_id},
                       {"peer", request.peer}});
}

void Exchange::count(std::string_view adapter, const KeyUsage& usage, const char* finish) {
  if (!computed_) computed_.emplace(Computed{.adapter = std::string(adapter), .usage = {}, .finish = finish});
  computed_->usage.add(usage);
  computed_->finish = finish;
}

Exchange::~Exchange() {
  if (route != nullptr) record(streaming_ ? 200 : kClientLeft, "client_left");
}

void Exchange::respond(int status, std::string body, std::string_view content_type, HttpHeaders headers) {
  respond({.status = status,
           .headers = std::move(headers),
           .content_type = std::string(content_type),
           .body = std::move(body)});
}

void Exchange::respond(HttpResponse response) {
  if (!reply) return;
  place = {};  // who has the answer may ask the next
  record(response.status, response.status < 400 ? "ok" : "error");
  add_request_id(response.headers, id, dialect_of(route));
  server->browser_.add_headers(request, response.headers);
  std::exchange(reply, nullptr)->respond(std::move(response));
}

void Exchange::send(int status, std::string body, std::string_view content_type, HttpHeaders headers) {
  const auto response = std::make_shared<HttpResponse>();
  response->status = status;
  response->headers = std::move(headers);
  response->content_type = content_type;
  if (body.size() > kHttpPartBytes)
    response->parts = split_into_parts(body);
  else
    response->body = std::move(body);
  post([self = shared_from_this(), response] { self->respond(std::move(*response)); });
}

void Exchange::fail(const ApiError& error, HttpHeaders headers) {
  if (!reply) return;
  place = {};
  if (streaming_) {  // its head is gone already
    reply->write(AnswerFormatter::error_events(error, dialect_of(route)));
    return end_stream("error");
  }
  record(error.status, "error");
  if (error.status >= 500 && error.status != 503)
    server->log_->write(LogLevel::kError, "internal_error", {{"id", id}, {"reason", error.message}});
  HttpResponse response = error_response(error, dialect_of(route));
  for (auto& header : headers) response.headers.push_back(std::move(header));
  add_request_id(response.headers, id, dialect_of(route));
  server->browser_.add_headers(request, response.headers);
  std::exchange(reply, nullptr)->respond(std::move(response));
}

void Exchange::begin_stream(HttpHeaders headers) {
  streaming_ = true;
  add_request_id(headers, id, dialect_of(route));
  headers.emplace_back("cache-control", "no-cache");
  server->browser_.add_headers(request, headers);
  reply->begin_stream(200, std::move(headers), "text/event-stream; charset=utf-8");
}

void Exchange::end_stream(const char* outcome) {
  if (!reply) return;
  record(200, outcome);
  std::exchange(reply, nullptr)->end();
}

void Exchange::leave() {
  gone = true;
  server->workers_->withdraw(work);
  server->compilers_->withdraw(compile);
  server->formatters_->withdraw(format);
  if (on_gone) on_gone();
  reply.reset();  // what is still written goes nowhere
}

void Exchange::post(std::function<void()> task) {
  server->http_->post(shard, [self = shared_from_this(), task = std::move(task)] { self->run("an answer", task); });
}

void Exchange::run(std::string_view what, const std::function<void()>& task) {
  if (const Status status = guarded(what, task); !status.ok()) break_down(status);
}

void Exchange::break_down(const Status& reason) {
  server->log_->write(LogLevel::kError, "exception", {{"id", id}, {"reason", reason.message()}});
  if (on_gone) on_gone();  // nothing more is wanted
  if (streaming_) {
    record(200, "error");
    reply.reset();  // half an answer must not look whole
  } else {
    fail(api_error(reason, id));
  }
}

void Exchange::refuse(ApiError error) {
  post([self = shared_from_this(), error = std::move(error)] { self->fail(error); });
}

}  // namespace lk
