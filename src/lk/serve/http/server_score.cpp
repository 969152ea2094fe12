// SPDX-License-Identifier: Apache-2.0
// Scores by label tokens: one token behind each prompt, whose log-probabilities are the answer.
#include "lk/serve/http/admit.h"
#include "lk/serve/openai/answer_size.h"
#include "lk/serve/openai/score.h"

namespace lk {
namespace {

class ScoreAnswer final : public Answer {
 public:
  using Answer::Answer;
  void set_request(ScoreRequest request, std::string model_name) {
    request_ = std::move(request);
    model_name_ = std::move(model_name);
  }

 private:
  const char* endpoint() const override { return "score"; }
  void all_done(std::vector<Completion> completions) override {
    const auto self = std::static_pointer_cast<ScoreAnswer>(shared_from_this());
    respond_later(std::move(completions), [self](const std::vector<Completion>& made) -> ApiResult<std::string> {
      return format_scores(self->request_, self->model_name_, made);
    });
  }

  ScoreRequest request_;
  std::string model_name_;
};

}  // namespace

void ServerImpl::score(const std::shared_ptr<Exchange>& exchange) {
  auto answer = std::make_shared<ScoreAnswer>(exchange);
  watch(answer, *exchange);
  work(exchange, [answer, exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<ScoreRequest> parsed = parse_score_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto request = std::make_shared<ScoreRequest>(std::move(*parsed.value));
    const int64_t bytes = scores_size(*request);
    if (const int64_t most = server.options().max_answer_bytes; bytes > most)
      return exchange->refuse(answer_too_large(bytes, most, "send fewer items at a time", "items"));
    server.with_model(exchange, request->model, [answer, exchange, request, bytes](AdapterRegistry::Resolved model) {
      const TextSide& side = exchange->server->side_of(model.adapter);
      Sequences sequences;
      EngineService::Share share{.requests = 0};
      for (size_t item = 0; item < request->items.size(); ++item) {
        TextRequest prompt = request->prompt(item);
        prompt.cache_salt = salt_of(*exchange->principal.tenant, request->cache_salt);
        auto sequence = std::make_unique<ServedSequence>();
        std::string_view field;
        const Status prepared = exchange->server->text().prepare(std::move(prompt), *sequence, &side, &field);
        if (!prepared.ok()) return exchange->refuse(prepare_error(prepared, field, "items", *exchange, *sequence));
        sequence->asked.priority = request->priority;
        sequence->asked.user = static_cast<int64_t>(std::hash<std::string>()(request->user));
        share += EngineService::share_of(*sequence);
        sequences.push_back(std::move(sequence));
      }
      request->query = {};
      request->items.clear();
      std::optional<Admitted> admitted = admit(exchange, share, bytes);
      if (!admitted) return;
      answer->set_request(std::move(*request), model.name);
      answer->submit(std::move(sequences), std::move(model), admitted->use(), admitted->deadline, false);
    });
  });
}

}  // namespace lk
