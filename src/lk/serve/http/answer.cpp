// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/answer.h"

#include <algorithm>
#include <ctime>

#include "lk/base/guarded.h"
#include "lk/cluster/fleet_headers.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/openai/answer_size.h"

namespace lk {
namespace {

// What an io thread writes itself takes it some 0.1 ms.
constexpr int64_t kLongAnswer = 32 << 10;

const char* id_prefix(Endpoint endpoint) {
  switch (endpoint) {
    case Endpoint::kChat:
      return "chatcmpl-";
    case Endpoint::kCompletion:
      return "cmpl-";
    case Endpoint::kResponses:
      return "resp_";
    case Endpoint::kMessages:
      return "msg_";
  }
  return "";
}

int64_t shown_bytes(const std::vector<Completion>& completions) {
  int64_t bytes = 0;
  for (const Completion& completion : completions) bytes += shown_bytes(completion);
  return bytes;
}

}  // namespace

// --- Answer

Answer::~Answer() { release(); }

void Answer::close() {
  std::lock_guard lock(mutex_);
  closed_ = Clock::now();
  for (const RequestId id : ids_) server().engine().cancel(id);
}

void Answer::submit(Sequences sequences, AdapterRegistry::Resolved model, TenantId tenant, Clock::time_point deadline,
                    bool wants_prompt) {
  place_ = std::move(exchange_->place);
  model_ = std::move(model);
  completions_.resize(sequences.size());
  last_token_.resize(sequences.size());
  if (model_.adapter && model_.adapter->version > 0)
    exchange_->post(
        [self = shared_from_this(), name = fmt::format("{}@{}", model_.adapter->name, model_.adapter->version)] {
          self->adapter_header_ = name;  // before the first event, which comes the same way
        });
  const AdapterId adapter = model_.adapter ? model_.adapter->id() : kBaseModel;
  num_requests_ =
      static_cast<size_t>(std::ranges::count_if(sequences, [](const auto& sequence) { return sequence != nullptr; }));
  if (model_.adapter) model_.adapter->requests.fetch_add(static_cast<int64_t>(num_requests_));
  server().count_stream(1);
  std::lock_guard lock(mutex_);
  for (size_t choice = 0; choice < sequences.size(); ++choice) {
    std::unique_ptr<ServedSequence>& sequence = sequences[choice];
    if (!sequence) continue;
    max_tokens_ = sequence->asked.max_tokens;
    sequence->asked.adapter = adapter;
    sequence->asked.tenant = tenant;
    sequence->asked.expires = to_micros(deadline);
    sequence->lease = model_.adapter;
    sequence->sink = shared_from_this();
    sequence->choice = static_cast<int>(choice);
    sequence->wants_prompt = wants_prompt;
    sequence->timing.arrival = exchange_->arrival;
    ids_.push_back(server().engine().submit(std::move(sequence)));
  }
  if (closed_ != Clock::time_point())
    for (const RequestId id : ids_) server().engine().cancel(id);
  // A router lost another replica between the last token and the end.
  if (num_requests_ == 0) exchange_->post([self = shared_from_this()] { self->finish_all(); });
}

void Answer::on_event(StreamEvent& event) {
  walled([&] { show(event); });
  if (event.ended) finish(*event.ended);
}

void Answer::walled(const std::function<void()>& part) {
  const Status status = guarded("an answer", part);
  if (status.ok()) return;
  server().log().write(LogLevel::kError, "exception", {{"id", exchange_->id}, {"reason", status.message()}});
  break_off(api_error(status, exchange_->id));
}

void Answer::break_off(const ApiError& error) {
  if (std::exchange(failed_, true)) return;
  const Status told = guarded("a failed answer", [&] { failed(error); });
  if (!told.ok()) exchange_->reply.reset();
  cancel_others();
}

void Answer::respond_later(std::vector<Completion> completions,
                           std::function<ApiResult<std::string>(const std::vector<Completion>&)> write) {
  formatting_ = true;
  const auto made = std::make_shared<std::vector<Completion>>(std::move(completions));
  const auto self = shared_from_this();
  server().format(
      exchange_,
      [self, made, write = std::move(write), headers = timing_headers()] {
        ApiResult<std::string> body = write(*made);
        std::vector<Completion>().swap(*made);
        self->exchange_->post([self] { self->release(); });  // before who has the answer asks the next
        if (!body.ok()) return self->exchange_->refuse(body.error);
        self->exchange_->send(200, std::move(*body.value), "application/json", headers);
      },
      [self](const ApiError& error) { self->exchange_->post([self, error] { self->break_off(error); }); });
}

HttpHeaders Answer::timing_headers() const {
  const auto ms = [](double seconds) { return fmt::format("{:.1f}", seconds * 1e3); };
  HttpHeaders headers{{"x-queue-time-ms", ms(queue_seconds_)}, {"x-total-time-ms", ms(e2e_seconds_)}};
  if (first_token_seconds_ >= 0) headers.emplace_back("x-time-to-first-token-ms", ms(first_token_seconds_));
  // A router that judged the key charges for it.
  if (!exchange_->request.header(kPrincipalHeader).empty())
    headers.emplace_back(kTokensHeader, std::to_string(used_tokens_));
  add_adapter_header(headers);
  return headers;
}

void Answer::add_adapter_header(HttpHeaders& headers) const {
  if (!adapter_header_.empty()) headers.emplace_back("x-adapter", adapter_header_);
}

void Answer::show(StreamEvent& event) {
  const auto choice = static_cast<size_t>(event.choice);
  if (event.prompt) prompt_ready(event.choice, *event.prompt);
  if (!event.delta.tokens.empty()) {
    // The first token's wait is the time to first token, every later one a gap.
    if (last_token_[choice] != Clock::time_point())
      server().measures().token_gap(std::chrono::duration<double>(event.step_end - last_token_[choice]).count());
    last_token_[choice] = event.step_end;
  }
  // The last token is shown with the end, never without it: a router that lost this replica in between would ask
  // another one to go on with an answer that is complete.
  const StreamDelta& made = event.delta;
  if (!event.ended && (!made.tokens.empty() || !made.text.empty() || !made.reasoning.empty()))
    delta(event.choice, event.delta);
}

void Answer::count(const ServedSequence& sequence) {
  const Completion& completion = sequence.completion;
  const RequestTiming& timing = sequence.timing;
  const auto seconds = [&](Clock::time_point at) {
    return at == Clock::time_point() ? -1 : std::chrono::duration<double>(at - timing.arrival).count();
  };
  e2e_seconds_ = seconds(timing.finished);
  queue_seconds_ = std::max(0.0, seconds(timing.started));
  first_token_seconds_ = seconds(timing.first_token);
  if (const Clock::time_point closed = closed_at();
      completion.finish == FinishReason::kCancelled && closed != Clock::time_point())
    server().measures().request_abandoned(std::chrono::duration<double>(timing.finished - closed).count());
  used_tokens_ += sequence.counted_prompt_tokens() + static_cast<int64_t>(completion.token_ids.size());
  const bool timed_out = completion.error.code() == StatusCode::kDeadlineExceeded;
  const KeyUsage usage{.requests = 1,
                       .prompt_tokens = sequence.counted_prompt_tokens(),
                       .cached_tokens = completion.cached_tokens,
                       .output_tokens = static_cast<int64_t>(completion.token_ids.size())};
  const Principal& principal = exchange_->principal;
  exchange_->count(model_.name, usage, timed_out ? "deadline" : to_string(completion.finish));
  server().ledger().add(principal.key_id, principal.tenant->name, usage);
  server().measures().request_finished({.endpoint = endpoint(),
                                        .tenant = principal.tenant->name,
                                        .key = principal.key_id,
                                        .adapter = model_.adapter ? std::string_view(model_.adapter->name) : "base",
                                        .finish = timed_out ? "deadline" : to_string(completion.finish),
                                        .prompt_tokens = sequence.counted_prompt_tokens(),
                                        .cached_tokens = completion.cached_tokens,
                                        .output_tokens = static_cast<int64_t>(completion.token_ids.size()),
                                        .max_tokens = max_tokens_,
                                        .n = static_cast<int64_t>(num_requests_),
                                        .queue_seconds = queue_seconds_,
                                        .time_to_first_token = first_token_seconds_,
                                        .e2e_seconds = e2e_seconds_});
}

void Answer::fail_choice(const Completion& completion, const RequestTiming& timing) {
  failed_ = true;
  // Lost data is the server's, not the request's fault, and its reason names the server's directories.
  const bool lost = completion.error.code() == StatusCode::kDataLoss;
  ApiError error = api_error(lost ? internal_error("lost data") : completion.error, exchange_->id);
  if (error.status == 500)  // the answer does not say why
    server().log().write(
        LogLevel::kError, "request_failed",
        {{"request", exchange_->id}, {"adapter", model_.name}, {"reason", completion.error.message()}});
  if (completion.error.code() == StatusCode::kFailedPrecondition && timing.started == Clock::time_point())
    error.code = "request_too_large";  // larger than the whole pool
  if (lost && model_.adapter) {        // read again from its directory, in vain
    server().log().write(LogLevel::kError, "adapter_unreadable",
                         {{"adapter", model_.name}, {"reason", completion.error.message()}});
    error = {.status = 503,
             .message = fmt::format("The adapter of `{}` cannot be read again: its files are gone, damaged or not what "
                                    "they were when it was loaded. The server's log says which.",
                                    model_.name),
             .type = "server_error",
             .code = "adapter_unavailable",
             .retry_after_seconds = 5};
  }
  failed(error);
  cancel_others();
}

void Answer::finish(ServedSequence& sequence) {
  Completion& completion = sequence.completion;
  count(sequence);
  if (completion.finish == FinishReason::kError && !failed_) fail_choice(completion, sequence.timing);
  any_cancelled_ |= completion.finish == FinishReason::kCancelled;
  if (!failed_ && completion.finish != FinishReason::kCancelled)
    walled([&] { choice_done(sequence.choice, completion); });
  completions_[static_cast<size_t>(sequence.choice)] = std::move(completion);
  if (++num_done_ == num_requests_) finish_all();
}

void Answer::finish_all() {
  server().count_stream(-1);
  if (!failed_ && !any_cancelled_) walled([&] { all_done(std::move(completions_)); });
  if (!formatting_) release();
}

Clock::time_point Answer::closed_at() {
  std::lock_guard lock(mutex_);
  return closed_;
}

void Answer::cancel_others() {
  std::lock_guard lock(mutex_);
  for (const RequestId id : ids_) server().engine().cancel(id);
}

// --- GenerateAnswer

const char* GenerateAnswer::endpoint() const {
  switch (endpoint_) {
    case Endpoint::kChat:
      return "chat";
    case Endpoint::kCompletion:
      return "completions";
    case Endpoint::kResponses:
      return "responses";
    case Endpoint::kMessages:
      return "messages";
  }
  return "";
}

void GenerateAnswer::set_request(const GenerateRequest& request, const std::string& model_name, const TextSide& side,
                                 const Sequences& sequences) {
  endpoint_ = request.endpoint;
  stream_ = request.stream;
  const bool watched = request.resumed.has_value();  // by a router, which may go on with it elsewhere
  const std::string& id = watched ? request.resumed->id : exchange_->id;
  formatter_.emplace(request, id_prefix(endpoint_) + id, watched ? request.resumed->created : std::time(nullptr),
                     model_name, side.tokenizer.get(), request.tool_format);
  for (size_t i = 0; watched && i < request.resumed->choices.size(); ++i)
    if (request.resumed->choices[i].begun()) formatter_->resume(static_cast<int>(i), sequences[i].get());
}

void GenerateAnswer::keep_alive() {
  const double seconds = server().options().sse_ping_seconds;
  if (seconds <= 0) return;
  const std::chrono::milliseconds interval(static_cast<int64_t>(seconds * 1e3));
  exchange_->post([self = std::static_pointer_cast<GenerateAnswer>(shared_from_this()), interval] {
    if (!self->exchange_->reply) return;
    self->exchange_->reply->on_silence(interval, [weak = std::weak_ptr(self)] {
      if (const auto alive = weak.lock()) alive->send(": ping\n\n");
    });
  });
}

void GenerateAnswer::begin() {
  if (std::exchange(streaming_, true)) return;
  HttpHeaders headers;
  add_adapter_header(headers);
  exchange_->begin_stream(std::move(headers));
}

void GenerateAnswer::send(const std::string& events) {
  if (events.empty() || !exchange_->reply) return;
  begin();
  exchange_->reply->write(events);
}

void GenerateAnswer::write(bool is_long, Make make, const char* outcome) {
  if (is_long || making_) {
    formatting_ = true;
    to_make_.emplace_back(std::move(make), outcome);
    if (!std::exchange(making_, true)) make_next();
    return;
  }
  send(make(*formatter_));
  if (outcome) exchange_->end_stream(outcome);
}

void GenerateAnswer::make_next() {
  auto [make, outcome] = std::move(to_make_.front());
  to_make_.pop_front();
  const auto self = std::static_pointer_cast<GenerateAnswer>(shared_from_this());
  server().format(
      exchange_,
      [self, make = std::move(make), outcome = outcome] {
        const std::string events = make(*self->formatter_);
        const auto parts = std::make_shared<HttpParts>(split_into_parts(events));
        self->exchange_->post([self, parts, outcome] { self->made(std::move(*parts), outcome); });
      },
      [self](const ApiError& error) {
        self->exchange_->post([self, error] {
          self->to_make_.clear();
          self->making_ = false;
          self->break_off(error);
        });
      });
}

void GenerateAnswer::made(HttpParts parts, const char* outcome) {
  if (!parts.empty() && exchange_->reply) {
    begin();
    exchange_->reply->write_parts(std::move(parts));
  }
  if (outcome) {
    release();
    exchange_->end_stream(outcome);
  }
  making_ = !to_make_.empty();
  if (making_) make_next();
}

void GenerateAnswer::prompt_ready(int choice, Completion& prompt) {
  if (!stream_ || failed_) return;
  const bool is_long = shown_bytes(prompt) > kLongAnswer;
  if (!is_long && !making_) return send(formatter_->begin(choice, prompt));
  write(is_long, [choice, prompt = std::make_shared<Completion>(std::move(prompt))](AnswerFormatter& formatter) {
    return formatter.begin(choice, *prompt);
  });
}

void GenerateAnswer::delta(int choice, StreamDelta& delta) {
  if (!stream_ || failed_) return;
  if (!making_) return send(formatter_->delta(choice, delta));
  write(false,
        [choice, delta = std::move(delta)](AnswerFormatter& formatter) { return formatter.delta(choice, delta); });
}

void GenerateAnswer::choice_done(int choice, Completion& completion) {
  if (!stream_) return;
  const Completion done = std::exchange(completion, {});  // nobody asks for it any more
  // The last events of a stream of items repeat all of it.
  const bool is_long = endpoint_ == Endpoint::kResponses && shown_bytes(done) > kLongAnswer;
  if (!making_ && !is_long) return send(formatter_->done(choice, done));
  write(is_long, [choice, done = std::make_shared<Completion>(std::move(done))](AnswerFormatter& formatter) {
    return formatter.done(choice, *done);
  });
}

void GenerateAnswer::all_done(std::vector<Completion> completions) {
  if (stream_)
    return write(
        false, [](AnswerFormatter& formatter) { return formatter.end(); }, "ok");
  if (shown_bytes(completions) <= kLongAnswer)
    return exchange_->respond(200, formatter_->response(completions), "application/json", timing_headers());
  const auto self = std::static_pointer_cast<GenerateAnswer>(shared_from_this());
  respond_later(std::move(completions), [self](const std::vector<Completion>& made) -> ApiResult<std::string> {
    const int64_t max_bytes = self->server().options().max_answer_bytes;
    std::string body = self->formatter_->response(made, static_cast<size_t>(2 * max_bytes));
    if (body.empty()) return answer_too_large(2 * max_bytes, max_bytes, "its tokens are unusually long");
    return body;
  });
}

void GenerateAnswer::failed(const ApiError& error) {
  to_make_.clear();
  if (!streaming_ && !making_) return exchange_->fail(error);
  write(
      false, [error](AnswerFormatter& formatter) { return formatter.error(error); }, "error");
}

// --- EmbeddingAnswer

void EmbeddingAnswer::all_done(std::vector<Completion> completions) {
  if (shown_bytes(completions) <= kLongAnswer)
    return exchange_->respond(200, format_embeddings(request_, model_name_, completions), "application/json",
                              timing_headers());
  const auto self = std::static_pointer_cast<EmbeddingAnswer>(shared_from_this());
  respond_later(std::move(completions), [self](const std::vector<Completion>& made) -> ApiResult<std::string> {
    return format_embeddings(self->request_, self->model_name_, made);
  });
}

}  // namespace lk
