// SPDX-License-Identifier: Apache-2.0
// Chat, completions and embeddings: from a parsed request to engine submissions, and from engine events to the answer.
#include <charconv>
#include <cmath>
#include <ctime>

#include "lk/base/sha256.h"
#include "lk/serve/http/server_impl.h"

namespace lk {
namespace {

using Sequences = std::vector<std::unique_ptr<ServedSequence>>;  // of one request, by choice

uint64_t salt_of(const Tenant& tenant, const std::string& text) {
  if (text.empty()) return tenant.cache_salt;
  Sha256 sha;
  sha.update(&tenant.cache_salt, sizeof tenant.cache_salt);
  sha.update(text.data(), text.size());
  const auto digest = sha.finish();
  uint64_t salt;
  std::memcpy(&salt, digest.data(), sizeof salt);
  return salt;
}

ApiError model_error(const Status& status, const std::string& id) {
  ApiError error = api_error(status, id);
  if (status.code() == StatusCode::kNotFound) error.code = "model_not_found";
  error.param = "model";
  return error;
}

// What is wrong with a field that may be the prompt: it has another name in each kind of request.
ApiError prompt_error(const Status& status, std::string_view field, std::string_view prompt, const std::string& id) {
  ApiError error = api_error(status, id);
  error.param = field == "prompt" ? prompt : field;
  return error;
}

// What prepare() refuses.
ApiError prepare_error(const Status& status, std::string_view field, std::string_view prompt, const Exchange& exchange,
                       const TextSequence& sequence) {
  ApiError error = prompt_error(status, field, prompt, exchange.id);
  // Clients act on this code: they shorten the conversation.
  if (field == "prompt" && static_cast<int64_t>(sequence.asked.prompt.size()) >= exchange.server->text().context())
    error.code = "context_length_exceeded";
  return error;
}

// One request's choices in the engine. Lives on the exchange's shard; `ids_` is shared with the worker that submits.
class Answer : public RequestSink, public std::enable_shared_from_this<Answer> {
 public:
  explicit Answer(std::shared_ptr<Exchange> exchange) : RequestSink(exchange->shard), exchange_(std::move(exchange)) {}
  ~Answer() override = default;

  // Shard: the client went away before the answer was complete.
  void close() {
    std::lock_guard lock(mutex_);
    closed_ = Clock::now();
    for (const RequestId id : ids_) server().engine().cancel(id);
  }
  // Worker, once the tenant's and the queue's reservations are made.
  void submit(Sequences sequences, AdapterRegistry::Resolved model, TenantId tenant, Clock::time_point deadline,
              bool wants_prompt) {
    place_ = std::move(exchange_->place);
    model_ = std::move(model);
    completions_.resize(sequences.size());
    last_token_.resize(sequences.size());
    const AdapterId adapter = model_.adapter ? model_.adapter->id() : kBaseModel;
    if (model_.adapter) model_.adapter->requests.fetch_add(static_cast<int64_t>(sequences.size()));
    num_requests_ = sequences.size();
    max_tokens_ = sequences[0]->asked.max_tokens;
    server().count_stream(1);
    std::lock_guard lock(mutex_);
    for (std::unique_ptr<ServedSequence>& sequence : sequences) {
      sequence->asked.adapter = adapter;
      sequence->asked.tenant = tenant;
      sequence->asked.expires = to_micros(deadline);
      sequence->lease = model_.adapter;
      sequence->sink = shared_from_this();
      sequence->choice = static_cast<int>(ids_.size());
      sequence->wants_prompt = wants_prompt;
      sequence->timing.arrival = exchange_->arrival;
      ids_.push_back(server().engine().submit(std::move(sequence)));
    }
    if (closed_ != Clock::time_point())
      for (const RequestId id : ids_) server().engine().cancel(id);
  }

  void on_event(StreamEvent& event) override {
    const auto choice = static_cast<size_t>(event.choice);
    if (event.prompt) prompt_ready(event.choice, *event.prompt);
    if (!event.delta.tokens.empty()) {
      // The first token's wait is the time to first token, every later one a gap.
      if (last_token_[choice] != Clock::time_point())
        server().measures().token_gap(std::chrono::duration<double>(event.step_end - last_token_[choice]).count());
      last_token_[choice] = event.step_end;
    }
    if (!event.delta.tokens.empty() || !event.delta.text.empty()) delta(event.choice, event.delta);
    if (event.ended) finish(*event.ended);
  }

 protected:
  ServerImpl& server() { return *exchange_->server; }
  virtual const char* endpoint() const = 0;
  virtual void prompt_ready(int, const Completion&) {}
  virtual void delta(int, const StreamDelta&) {}
  virtual void choice_done(int, const Completion&) {}
  virtual void all_done(std::vector<Completion> completions) = 0;
  virtual void failed(const ApiError& error) { exchange_->fail(error); }

  HttpHeaders timing_headers() const {
    const auto ms = [](double seconds) { return fmt::format("{:.1f}", seconds * 1e3); };
    HttpHeaders headers{{"x-queue-time-ms", ms(queue_seconds_)}, {"x-total-time-ms", ms(e2e_seconds_)}};
    if (first_token_seconds_ >= 0) headers.emplace_back("x-time-to-first-token-ms", ms(first_token_seconds_));
    add_adapter_header(headers);
    return headers;
  }
  void add_adapter_header(HttpHeaders& headers) const {
    if (model_.adapter && model_.adapter->version > 0)
      headers.emplace_back("x-adapter", fmt::format("{}@{}", model_.adapter->name, model_.adapter->version));
  }

  const std::shared_ptr<Exchange> exchange_;
  AdapterRegistry::Resolved model_;
  bool failed_ = false;

 private:
  void finish(ServedSequence& sequence) {
    Completion& completion = sequence.completion;
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
    if (completion.finish == FinishReason::kError && !failed_) {
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
        error = {
            .status = 503,
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
    if (!failed_ && completion.finish != FinishReason::kCancelled) choice_done(sequence.choice, completion);
    any_cancelled_ |= completion.finish == FinishReason::kCancelled;
    completions_[static_cast<size_t>(sequence.choice)] = std::move(completion);
    if (++num_done_ < num_requests_) return;
    place_.finish(used_tokens_);
    server().count_stream(-1);
    if (!failed_ && !any_cancelled_) all_done(std::move(completions_));
  }
  Clock::time_point closed_at() {
    std::lock_guard lock(mutex_);
    return closed_;
  }
  void cancel_others() {
    std::lock_guard lock(mutex_);
    for (const RequestId id : ids_) server().engine().cancel(id);
  }

  std::mutex mutex_;
  std::vector<RequestId> ids_;  // guarded by mutex_
  Clock::time_point closed_;    // guarded by mutex_
  size_t num_requests_ = 0, num_done_ = 0;
  std::vector<Completion> completions_;
  std::vector<Clock::time_point> last_token_;
  TenantLimiter::Place place_;
  int64_t used_tokens_ = 0, max_tokens_ = 0;
  double queue_seconds_ = 0, first_token_seconds_ = -1, e2e_seconds_ = 0;
  bool any_cancelled_ = false;
};

class GenerateAnswer final : public Answer {
 public:
  using Answer::Answer;
  void set_request(const GenerateRequest& request, const std::string& model_name, const TextSequence& first) {
    const bool chat = request.endpoint == Endpoint::kChat;
    chat_ = chat;
    stream_ = request.stream;
    formatter_.emplace(request, fmt::format("{}-{}", chat ? "chatcmpl" : "cmpl", exchange_->id), std::time(nullptr),
                       model_name, server().text().tokenizer().get(), server().api_defaults().tool_format);
    if (first.asked.resumed()) formatter_->resume(first.text_so_far(), first.asked.output_so_far);
  }

 private:
  const char* endpoint() const override { return chat_ ? "chat" : "completions"; }
  void write(const std::string& events) {
    if (events.empty() || !exchange_->reply) return;
    if (!std::exchange(streaming_, true)) {
      HttpHeaders headers;
      add_adapter_header(headers);
      exchange_->begin_stream(std::move(headers));
    }
    exchange_->reply->write(events);
  }
  void prompt_ready(int choice, const Completion& prompt) override {
    if (stream_ && !failed_) write(formatter_->begin(choice, prompt));
  }
  void delta(int choice, const StreamDelta& delta) override {
    if (stream_ && !failed_) write(formatter_->delta(choice, delta));
  }
  void choice_done(int choice, const Completion& completion) override {
    if (stream_) write(formatter_->done(choice, completion));
  }
  void all_done(std::vector<Completion> completions) override {
    if (!stream_)
      return exchange_->respond(200, formatter_->response(completions), "application/json", timing_headers());
    write(formatter_->end());
    exchange_->end_stream("ok");
  }
  void failed(const ApiError& error) override {
    if (!streaming_) return exchange_->fail(error);
    write(formatter_->error(error));
    exchange_->end_stream("error");
  }

  std::optional<AnswerFormatter> formatter_;
  bool chat_ = true, stream_ = false, streaming_ = false;
};

class EmbeddingAnswer final : public Answer {
 public:
  using Answer::Answer;
  void set_request(EmbeddingRequest request, std::string model_name) {
    request_ = std::move(request);
    model_name_ = std::move(model_name);
  }

 private:
  const char* endpoint() const override { return "embeddings"; }
  void all_done(std::vector<Completion> completions) override {
    exchange_->respond(200, format_embeddings(request_, model_name_, completions), "application/json",
                       timing_headers());
  }
  EmbeddingRequest request_;
  std::string model_name_;
};

// Seconds the client is willing to wait in all.
ApiResult<double> timeout_of(const Exchange& exchange) {
  const std::string_view text = exchange.request.header("x-request-timeout");
  if (text.empty()) return exchange.server->options().default_timeout_seconds;
  double seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(seconds) || seconds <= 0 ||
      seconds > 86'400)
    return ApiError{.message = "x-request-timeout must be a number of seconds in (0, 86400]",
                    .param = "x-request-timeout"};
  return seconds;
}

// Places in the engine's queue; given back when they are not used, whatever is thrown.
class Admitted {
 public:
  Admitted(EngineService& engine, const EngineService::Account& account, const EngineService::Share& share,
           Clock::time_point deadline)
      : deadline(deadline), engine_(&engine), account_(account), share_(share) {}
  Admitted(Admitted&& other) noexcept
      : deadline(other.deadline),
        engine_(std::exchange(other.engine_, nullptr)),
        account_(other.account_),
        share_(other.share_) {}
  Admitted& operator=(Admitted&&) = delete;
  ~Admitted() {
    if (engine_) engine_->abandon(account_, share_);
  }
  // The sequences of this tenant have them from now on.
  TenantId use() {
    engine_ = nullptr;
    return account_.id;
  }
  const Clock::time_point deadline;

 private:
  EngineService* engine_;
  EngineService::Account account_;
  EngineService::Share share_;
};

// Worker: admission to the tenant's limits and the queue. Answers errors itself.
std::optional<Admitted> admit(const std::shared_ptr<Exchange>& exchange, const EngineService::Share& share) {
  ServerImpl& server = *exchange->server;
  const auto refuse = [&](ApiError error) {
    exchange->refuse(std::move(error));
    return std::nullopt;
  };
  const ApiResult<double> timeout = timeout_of(*exchange);
  if (!timeout.ok()) return refuse(timeout.error);
  if (server.aborting()) return refuse(api_error(unavailable("the server is shutting down")));
  const TenantLimiter::Decision decision = exchange->place.admit(share.tokens, share.requests);
  if (!decision.admitted) return refuse(rate_limited(decision));
  const Tenant& tenant = *exchange->principal.tenant;
  const EngineService::Account account = server.engine().account(tenant.name, tenant.weight);
  const EngineService::Admission admission = server.engine().admit(account, share, *timeout.value);
  if (admission.status.code() == StatusCode::kInvalidArgument)
    return refuse({.message = admission.status.message(), .code = "request_too_large"});
  if (!admission.status.ok())
    return refuse({.status = 503,
                   .message = admission.status.message(),
                   .type = "server_error",
                   .code = "overloaded",
                   .retry_after_seconds = admission.retry_after_seconds});
  exchange->place.hold_body(0);  // what is left of it waits among the engine's tokens
  return Admitted(
      server.engine(), account, share,
      exchange->arrival + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*timeout.value)));
}

// A client that leaves cancels what the engine does for it.
void watch(const std::shared_ptr<Answer>& answer, Exchange& exchange) {
  exchange.on_gone = [weak = std::weak_ptr<Answer>(answer)] {
    if (const auto alive = weak.lock()) alive->close();
  };
}

// A request on its way through the workers.
struct Generation {
  std::shared_ptr<Exchange> exchange;
  std::shared_ptr<GenerateAnswer> answer;
  GenerateRequest request;
  AdapterRegistry::Resolved model;
  std::shared_ptr<const Grammar> grammar;
};

// Tokenizes, asks for admission, and only then makes the further choices of each prompt, which cost memory.
void prepare_and_submit(Generation& generation) {
  const std::shared_ptr<Exchange>& exchange = generation.exchange;
  ServerImpl& server = *exchange->server;
  GenerateRequest& request = generation.request;
  const AdapterLease& adapter = generation.model.adapter;
  const ChatTemplate* own_template = adapter ? adapter->chat_template.get() : nullptr;
  const auto n = static_cast<size_t>(request.n);
  Sequences sequences(request.prompts.size() * n);
  EngineService::Share share{.requests = 0};
  const auto prepare = [&](TextRequest text, size_t index) {
    auto sequence = std::make_unique<ServedSequence>();
    std::string_view field;
    const Status prepared = server.text().prepare(std::move(text), *sequence, own_template, &field);
    if (!prepared.ok()) {
      const char* prompt = request.endpoint == Endpoint::kChat ? "messages" : "prompt";
      exchange->refuse(prepare_error(prepared, field, prompt, *exchange, *sequence));
      return false;
    }
    sequence->asked.user = static_cast<int64_t>(std::hash<std::string>()(request.user));
    sequences[index] = std::move(sequence);
    return true;
  };
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    TextRequest& text = request.prompts[i];
    text.grammar = generation.grammar;
    text.cache_salt = salt_of(*exchange->principal.tenant, request.cache_salt);
    if (!prepare(text, i * n)) return;  // a copy: the answer echoes prompts and knows their tools
    const EngineService::Share one = EngineService::share_of(*sequences[i * n]);
    for (size_t k = 0; k < n; ++k) share += one;
  }
  std::optional<Admitted> admitted = admit(exchange, share);
  if (!admitted) return;
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    for (size_t k = 1; k < n; ++k) {
      TextRequest text = request.prompts[i];
      text.token_ids = sequences[i * n]->asked.prompt;  // tokenized once
      text.prompt.clear();
      text.messages.clear();
      text.sampling.seed += k;
      if (!prepare(std::move(text), i * n + k)) return;
    }
  }
  generation.answer->set_request(request, generation.model.name, *sequences.front());
  const bool wants_prompt = request.stream && (request.echo || request.prompt_logprobs || request.return_token_ids ||
                                               request.continuous_usage);
  generation.answer->submit(std::move(sequences), std::move(generation.model), admitted->use(), admitted->deadline,
                            wants_prompt);
}

void generate(const std::shared_ptr<Exchange>& exchange, Endpoint endpoint) {
  auto answer = std::make_shared<GenerateAnswer>(exchange);
  watch(answer, *exchange);
  exchange->server->work(exchange, [answer, exchange, endpoint] {
    ServerImpl& server = *exchange->server;
    ApiResult<GenerateRequest> parsed = endpoint == Endpoint::kChat
                                            ? parse_chat_request(exchange->request.body, server.api_defaults())
                                            : parse_completion_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    if (const std::vector<std::string>& names = parsed.value->ignored_fields; !names.empty())
      server.log().write(LogLevel::kDebug, "fields_ignored",
                         {{"id", exchange->id}, {"fields", fmt::format("{}", fmt::join(names, ", "))}});
    Result<AdapterRegistry::Resolved> model =
        server.adapters().resolve(parsed.value->model, *exchange->principal.tenant);
    if (!model.ok()) return exchange->refuse(model_error(model.status(), exchange->id));
    const auto generation = std::make_shared<Generation>(
        Generation{exchange, answer, std::move(*parsed.value), std::move(model).value(), nullptr});
    const GenerateRequest& request = generation->request;
    if (!request.grammar) return prepare_and_submit(*generation);
    if (!server.grammars())
      return exchange->refuse({.message = "the model has no tokenizer: structured output is not available",
                               .param = request.grammar_field});
    server.compile(exchange, *request.grammar, [generation](Result<std::shared_ptr<const Grammar>> compiled) {
      Exchange& asked = *generation->exchange;
      if (!compiled.ok()) {
        ApiError error = api_error(compiled.status(), asked.id);
        if (error.status < 500) error.status = 400;
        error.param = generation->request.grammar_field;
        return asked.refuse(std::move(error));
      }
      generation->grammar = std::move(compiled).value();
      prepare_and_submit(*generation);
    });
  });
}

}  // namespace

void ServerImpl::chat(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kChat); }
void ServerImpl::completions(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kCompletion); }

void ServerImpl::embeddings(const std::shared_ptr<Exchange>& exchange) {
  auto answer = std::make_shared<EmbeddingAnswer>(exchange);
  watch(answer, *exchange);
  work(exchange, [answer, exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<EmbeddingRequest> parsed = parse_embedding_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    EmbeddingRequest& request = *parsed.value;
    if (const int64_t all = server.text().config().hidden_dim; request.dimensions > all)
      return exchange->refuse(
          {.message = fmt::format("\"dimensions\" is {}, the model's embeddings have {}", request.dimensions, all),
           .param = "dimensions"});
    Result<AdapterRegistry::Resolved> model = server.adapters().resolve(request.model, *exchange->principal.tenant);
    if (!model.ok()) return exchange->refuse(model_error(model.status(), exchange->id));
    Sequences sequences;
    EngineService::Share share{.requests = 0};
    for (TextRequest& input : request.inputs) {
      input.embed = true;
      auto sequence = std::make_unique<ServedSequence>();
      std::string_view field;
      const Status prepared = server.text().prepare(std::move(input), *sequence, nullptr, &field);
      if (!prepared.ok()) return exchange->refuse(prepare_error(prepared, field, "input", *exchange, *sequence));
      share += EngineService::share_of(*sequence);
      sequences.push_back(std::move(sequence));
    }
    std::optional<Admitted> admitted = admit(exchange, share);
    if (!admitted) return;
    answer->set_request(std::move(request), model->name);
    answer->submit(std::move(sequences), std::move(model).value(), admitted->use(), admitted->deadline, false);
  });
}

void ServerImpl::tokenize(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<TokenizeRequest> parsed = parse_tokenize_request(exchange->request.body, server.api_defaults());
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    if (!server.text().tokenizer()) return exchange->refuse({.message = "the model has no tokenizer"});
    Result<AdapterRegistry::Resolved> model =
        server.adapters().resolve(parsed.value->model, *exchange->principal.tenant);
    if (!model.ok()) return exchange->refuse(model_error(model.status(), exchange->id));
    const bool messages = !parsed.value->input.messages.empty();
    const Result<std::vector<int32_t>> tokens = server.text().prompt_tokens(
        parsed.value->input, model->adapter ? model->adapter->chat_template.get() : nullptr);
    if (!tokens.ok())
      return exchange->refuse(prompt_error(tokens.status(), "prompt", messages ? "messages" : "prompt", exchange->id));
    std::string body = format_tokenize(*parsed.value, *tokens, server.text().context(), *server.text().tokenizer());
    exchange->post([exchange, body = std::move(body)] { exchange->respond(200, body); });
  });
}

void ServerImpl::detokenize(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<DetokenizeRequest> parsed = parse_detokenize_request(exchange->request.body, server.api_defaults());
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    if (!server.text().tokenizer()) return exchange->refuse({.message = "the model has no tokenizer"});
    std::string body = format_detokenize(server.text().tokenizer()->decode(parsed.value->tokens, false));
    exchange->post([exchange, body = std::move(body)] { exchange->respond(200, body); });
  });
}

}  // namespace lk
