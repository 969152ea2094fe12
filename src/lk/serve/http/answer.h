// SPDX-License-Identifier: Apache-2.0
// What the engine makes of a request becomes its answer: Answer collects the choices; GenerateAnswer and
// EmbeddingAnswer write them. What is short is written on the io thread; what is long beside it
// (ServerImpl::format()), one piece of an answer at a time, and what follows waits for it.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lk/serve/access/tenant_limiter.h"
#include "lk/serve/adapters/adapter_registry.h"
#include "lk/serve/http/engine_service.h"
#include "lk/serve/http/exchange.h"
#include "lk/serve/openai/openai.h"

namespace lk {

// Of one request, by choice; null: it is complete already, elsewhere.
using Sequences = std::vector<std::unique_ptr<ServedSequence>>;

// One request's choices in the engine. Lives on the exchange's shard; `ids_` is shared with the worker that submits.
class Answer : public RequestSink, public std::enable_shared_from_this<Answer> {
 public:
  explicit Answer(std::shared_ptr<Exchange> exchange) : RequestSink(exchange->shard), exchange_(std::move(exchange)) {}
  ~Answer() override;

  // Shard: the client went away before the answer was complete.
  void close();
  // Worker, once the tenant's and the queue's reservations are made.
  void submit(Sequences sequences, AdapterRegistry::Resolved model, TenantId tenant, Clock::time_point deadline,
              bool wants_prompt);
  void on_event(StreamEvent& event) override;

 protected:
  ServerImpl& server() const { return *exchange_->server; }
  virtual const char* endpoint() const = 0;
  // These may take what they are given.
  virtual void prompt_ready(int, Completion&) {}
  virtual void delta(int, StreamDelta&) {}
  virtual void choice_done(int, Completion&) {}
  virtual void all_done(std::vector<Completion> completions) = 0;
  virtual void failed(const ApiError& error) { exchange_->fail(error); }

  // Runs a part of what makes the answer; what it throws ends the answer.
  void walled(const std::function<void()>& part);
  void break_off(const ApiError& error);
  // Writes the body beside the io threads and sends it; nothing of it: the refusal.
  void respond_later(std::vector<Completion> completions,
                     std::function<ApiResult<std::string>(const std::vector<Completion>&)> write);
  HttpHeaders timing_headers() const;
  void add_adapter_header(HttpHeaders& headers) const;

  // Gives back what it held of its tenant's limits.
  void release() { place_.finish(used_tokens_); }

  const std::shared_ptr<Exchange> exchange_;
  AdapterRegistry::Resolved model_;
  bool failed_ = false;
  bool formatting_ = false;  // beside this thread: whoever does that releases

 private:
  void show(StreamEvent& event);
  void finish(ServedSequence& sequence);
  void finish_all();
  void fail_choice(const Completion& completion, const RequestTiming& timing);
  void count(const ServedSequence& sequence);
  Clock::time_point closed_at();
  void cancel_others();

  std::mutex mutex_;
  std::vector<RequestId> ids_;  // guarded by mutex_
  Clock::time_point closed_;    // guarded by mutex_
  size_t num_requests_ = 0, num_done_ = 0;
  std::vector<Completion> completions_;
  std::vector<Clock::time_point> last_token_;
  std::string adapter_header_;  // "name@version"; shard thread
  TenantLimiter::Place place_;  // until the answer is on its way
  int64_t used_tokens_ = 0, max_tokens_ = 0;
  double queue_seconds_ = 0, first_token_seconds_ = -1, e2e_seconds_ = 0;
  bool any_cancelled_ = false;
};

class GenerateAnswer final : public Answer {
 public:
  using Answer::Answer;
  void set_request(const GenerateRequest& request, const std::string& model_name, const TextSide& side,
                   const Sequences& sequences);
  // Worker, once it is known that it will be a stream: from now on nobody has to wonder whether it is alive.
  void keep_alive();

 private:
  using Make = std::function<std::string(AnswerFormatter& formatter)>;

  const char* endpoint() const override;
  void prompt_ready(int choice, Completion& prompt) override;
  void delta(int choice, StreamDelta& delta) override;
  void choice_done(int choice, Completion& completion) override;
  void all_done(std::vector<Completion> completions) override;
  void failed(const ApiError& error) override;
  void begin();
  void send(const std::string& events);
  // Writes events, and ends the stream behind them if `outcome` says how it ended.
  void write(bool is_long, Make make, const char* outcome = nullptr);
  void make_next();
  void made(HttpParts parts, const char* outcome);

  std::optional<AnswerFormatter> formatter_;  // used by one thread at a time: by the one that makes, while making_
  std::deque<std::pair<Make, const char*>> to_make_;
  Endpoint endpoint_ = Endpoint::kChat;
  bool stream_ = false, streaming_ = false, making_ = false;
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
  void all_done(std::vector<Completion> completions) override;

  EmbeddingRequest request_;
  std::string model_name_;
};

}  // namespace lk
