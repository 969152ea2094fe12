// SPDX-License-Identifier: Apache-2.0
// Chat, completions and embeddings: from a body to engine submissions.
#include "lk/serve/http/admit.h"
#include "lk/serve/http/answer.h"
#include "lk/serve/http/server_impl.h"
#include "lk/serve/http/shortened.h"
#include "lk/serve/openai/answer_size.h"
#include "lk/serve/openai/choice.h"
#include "lk/serve/openai/parse.h"

namespace lk {
namespace {

// Prepares a conversation that is too long, without as few of its oldest items as make it fit.
Status prepare_shortened(const TextModel& model, TextRequest text, const TextSide& side,
                         std::unique_ptr<ServedSequence>& sequence, std::string_view& field) {
  const boost::json::array messages = std::exchange(text.messages, {});  // only what stays is copied
  Status prepared;
  bool sequence_is_shortened = false;
  const auto fits = [&](int64_t steps) {
    TextRequest kept = text;
    kept.messages = without_oldest(messages, steps);
    auto made = std::make_unique<ServedSequence>();
    std::string_view about;
    const Status status = model.prepare(std::move(kept), *made, &side, &about);
    const bool too_long = !status.ok() && is_too_long(about, *made, model);
    if (!too_long || !sequence_is_shortened) {  // the last that fits is the longest
      sequence = std::move(made);
      prepared = status;
      field = about;
      sequence_is_shortened = true;
    }
    return !too_long;
  };
  const int64_t most = num_oldest_steps(messages);
  if (most == 0)
    (void)fits(0);
  else
    (void)fewest_steps(most, fits);
  return prepared;
}

// What an answer to this prompt would be; a text that was given as token ids has about eight bytes for each.
AnswerSize size_of(const GenerateRequest& request, const TextRequest& prompt, int64_t tokens) {
  const int64_t bytes = request.echo ? std::ssize(openai::echoed(request, prompt, nullptr)) : 0;
  return answer_size(request, prompt, tokens, std::max(bytes, 8 * tokens));
}

// Whoever does not say how long the answer may become gets as much as fits, and no refusal for what would not.
void limit_unsaid(GenerateRequest& request, int64_t max_bytes, int64_t max_held) {
  for (TextRequest& prompt : request.prompts) {
    if (request.says_length) break;
    const auto parts = 2 * std::ssize(request.prompts);
    const int64_t fit = answer_size(request, prompt, 0, 0).tokens_that_fit(max_bytes / parts, max_held / parts);
    prompt.max_tokens = std::max({int64_t{1}, prompt.min_tokens, std::min(prompt.max_tokens, fit)});
  }
}

// A request on its way through the workers.
struct Generation {
  std::shared_ptr<Exchange> exchange;
  std::shared_ptr<GenerateAnswer> answer;
  GenerateRequest request;
  AdapterRegistry::Resolved model;
  std::shared_ptr<const Grammar> grammar, call_grammar;
  std::string body;  // until the model is there: an adapter with a text side of its own reads it with other defaults
};

// Tokenizes, asks for admission, and only then makes the further choices of each prompt, which cost memory.
void prepare_and_submit(Generation& generation) {
  const std::shared_ptr<Exchange>& exchange = generation.exchange;
  ServerImpl& server = *exchange->server;
  GenerateRequest& request = generation.request;
  const TextSide& side = server.side_of(generation.model.adapter);
  const auto n = static_cast<size_t>(request.n);
  static const std::vector<ResumedAnswer::Choice> kNone;
  const std::vector<ResumedAnswer::Choice>& known = request.resumed ? request.resumed->choices : kNone;
  const auto is_done = [&](size_t index) { return index < known.size() && known[index].done; };
  const bool goes_on = std::ranges::any_of(known, [](const auto& choice) { return choice.begun(); });
  Sequences sequences(request.prompts.size() * n);
  EngineService::Share share{.requests = 0};
  int64_t bytes = 0, held = 0;  // of the answer, and of what it is made of
  const auto refuse = [&](ApiError error) { exchange->refuse(in_own_words(std::move(error), request.names)); };
  const auto prepare = [&](TextRequest text, size_t index) {
    if (index < known.size()) text.output_so_far = known[index].tokens;
    auto sequence = std::make_unique<ServedSequence>();
    std::string_view field;
    std::optional<TextRequest> whole = request.drops_oldest ? std::optional(text) : std::nullopt;
    Status prepared = server.text().prepare(std::move(text), *sequence, &side, &field);
    if (!prepared.ok() && whole && is_too_long(field, *sequence, server.text()))
      prepared = prepare_shortened(server.text(), std::move(*whole), side, sequence, field);
    if (!prepared.ok()) {
      const char* prompt = is_chat(request.endpoint) ? "messages" : "prompt";
      refuse(prepare_error(prepared, field, prompt, *exchange, *sequence));
      return false;
    }
    sequence->asked.priority = request.priority;
    sequence->asked.user = static_cast<int64_t>(std::hash<std::string>()(request.user));
    sequences[index] = std::move(sequence);
    return true;
  };
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    TextRequest& text = request.prompts[i];
    text.grammar = generation.grammar;
    text.call_grammar = generation.call_grammar;
    text.cache_salt = salt_of(*exchange->principal.tenant, request.cache_salt);
    size_t first = i * n;  // that is wanted
    while (first < (i + 1) * n && is_done(first)) ++first;
    const auto count_done = [&](const TextRequest& asked) {
      for (size_t k = i * n; k < (i + 1) * n && request.reasoning != ReasoningFormat::kNone; ++k)
        if (is_done(k))
          request.resumed->choices[k].reasoning_tokens = server.text().count_reasoning(asked, known[k].tokens, side);
    };
    if (first == (i + 1) * n) {
      count_done(text);
      continue;
    }
    TextRequest own = text;  // the answer echoes prompts and knows their tools
    own.sampling.seed += first - i * n;
    if (!prepare(std::move(own), first)) return;
    text.thinking_start = sequences[first]->text.thinking_start;
    count_done(text);
    EngineService::Share one = EngineService::share_of(*sequences[first]);
    for (size_t k = first; k < (i + 1) * n; ++k) {
      if (is_done(k)) continue;
      const size_t so_far = k < known.size() ? known[k].tokens.size() : 0;
      one.tokens = sequences[first]->asked.reserved_tokens(static_cast<int64_t>(so_far));
      share += one;
    }
    const AnswerSize size = size_of(request, text, one.prompt_tokens);
    bytes += size.bytes(sequences[first]->asked.max_tokens);
    held += size.held_bytes(sequences[first]->asked.max_tokens);
  }
  if (const int64_t most = server.options().max_answer_bytes; bytes > most)
    return refuse(answer_too_large(bytes, most,
                                   request.stream
                                       ? "ask for less of the prompt, or for fewer choices"
                                       : "ask for fewer choices, tokens or log-probabilities, or for a stream",
                                   request.logprobs ? "logprobs" : "max_tokens"));
  if (const int64_t most = server.limiter().max_held_bytes(); held > most)
    return refuse(answer_too_large(held, most, "ask for fewer choices, tokens or log-probabilities", "logprobs"));
  std::optional<Admitted> admitted = admit(exchange, share, held, goes_on);
  if (!admitted) return;
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    const ServedSequence* first = nullptr;
    for (size_t k = i * n; k < (i + 1) * n; ++k) {
      if (is_done(k)) continue;
      if (first == nullptr) {
        first = sequences[k].get();
        continue;
      }
      TextRequest text = request.prompts[i];
      text.token_ids = first->asked.prompt;  // tokenized once
      text.prompt.clear();
      text.messages.clear();
      text.sampling.seed += k - i * n;
      if (!prepare(std::move(text), k)) return;
    }
  }
  if (request.resumed && generation.model.adapter) request.resumed->own_digest = generation.model.adapter->digest;
  generation.answer->set_request(request, generation.model.name, side, sequences);
  const bool wants_prompt =
      request.stream && (request.echo || request.prompt_logprobs || request.return_token_ids ||
                         request.continuous_usage || request.resumed || request.endpoint == Endpoint::kMessages);
  generation.answer->submit(std::move(sequences), std::move(generation.model), admitted->use(), admitted->deadline,
                            wants_prompt);
}

// The grammar of calls that may stand for the answer, if there is one.
void compile_calls(const std::shared_ptr<Generation>& generation) {
  const std::shared_ptr<Exchange>& exchange = generation->exchange;
  if (!generation->request.call_grammar) return prepare_and_submit(*generation);
  const auto next = [generation](Result<std::shared_ptr<const Grammar>> compiled) {
    if (!compiled.ok()) {
      ApiError error = api_error(compiled.status(), generation->exchange->id);
      if (error.status < 500) error.status = 400;
      error.param = "tools";
      return generation->exchange->refuse(in_own_words(std::move(error), generation->request.names));
    }
    generation->call_grammar = std::move(compiled).value();
    prepare_and_submit(*generation);
  };
  exchange->server->compile(exchange, *generation->request.call_grammar,
                            exchange->server->side_of(generation->model.adapter).vocabulary(), next);
}

void compile_and_submit(const std::shared_ptr<Generation>& generation) {
  const std::shared_ptr<Exchange>& exchange = generation->exchange;
  const GenerateRequest& request = generation->request;
  if (!request.grammar) return prepare_and_submit(*generation);
  if (!exchange->server->grammars())
    return exchange->refuse(in_own_words(
        {.message = "the model has no tokenizer: structured output is not available", .param = request.grammar_field},
        request.names));
  std::shared_ptr<const TokenVocabulary> vocabulary = exchange->server->side_of(generation->model.adapter).vocabulary();
  const auto next = [generation](Result<std::shared_ptr<const Grammar>> compiled) {
    Exchange& asked = *generation->exchange;
    if (!compiled.ok()) {
      ApiError error = api_error(compiled.status(), asked.id);
      if (error.status < 500) error.status = 400;
      error.param = generation->request.grammar_field;
      return asked.refuse(in_own_words(std::move(error), generation->request.names));
    }
    generation->grammar = std::move(compiled).value();
    compile_calls(generation);
  };
  exchange->server->compile(exchange, *request.grammar, std::move(vocabulary), next);
}

ApiResult<GenerateRequest> parse(Endpoint endpoint, const std::string& body, const ServerImpl& server,
                                 const TextSide& side) {
  const ApiDefaults defaults = server.api_defaults(side);
  switch (endpoint) {
    case Endpoint::kChat:
      return parse_chat_request(body, defaults);
    case Endpoint::kResponses:
      return parse_responses_request(body, defaults);
    case Endpoint::kMessages:
      return parse_messages_request(body, defaults);
    default:
      return parse_completion_request(body, defaults);
  }
}

// What the adapter's own text side says where the request is silent. Answers errors itself.
bool take_defaults(Generation& generation) {
  ServerImpl& server = *generation.exchange->server;
  const std::string body = std::move(generation.body);
  const TextSide& side = server.side_of(generation.model.adapter);
  if (&side == &server.text().base()) return true;
  ApiResult<GenerateRequest> parsed = parse(generation.request.endpoint, body, server, side);
  if (!parsed.ok()) return generation.exchange->refuse(parsed.error), false;
  limit_unsaid(*parsed.value, server.options().max_answer_bytes, server.limiter().max_held_bytes());
  const std::vector<TextRequest>& before = generation.request.prompts;
  for (size_t i = 0; i < before.size(); ++i)  // a request without a seed drew one
    parsed.value->prompts[i].sampling.seed = before[i].sampling.seed;
  generation.request = std::move(*parsed.value);
  return true;
}

// The last events of a stream of items show all log-probabilities, and only tokens come from where it began.
bool repeats_what_is_unknown(const GenerateRequest& request) {
  return request.endpoint == Endpoint::kResponses && request.logprobs && request.resumed &&
         std::ranges::any_of(request.resumed->choices, [](const auto& choice) { return choice.begun(); });
}

void generate(const std::shared_ptr<Exchange>& exchange, Endpoint endpoint) {
  auto answer = std::make_shared<GenerateAnswer>(exchange);
  watch(answer, *exchange);
  exchange->server->work(exchange, [answer, exchange, endpoint] {
    ServerImpl& server = *exchange->server;
    std::string body = std::exchange(exchange->request.body, {});
    ApiResult<GenerateRequest> parsed = parse(endpoint, body, server, server.text().base());
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    if (parsed.value->resumed && !exchange->from_router)
      return exchange->refuse({.status = 403,
                               .message = "\"lorikeet_resume\" is for routers that send a key of scope fleet",
                               .type = "permission_error",
                               .param = "lorikeet_resume",
                               .code = "insufficient_scope"});
    if (repeats_what_is_unknown(*parsed.value))
      return exchange->refuse({.message =
                                   "the end of this answer repeats its log-probabilities, of which the first ones "
                                   "are not known here",
                               .param = "lorikeet_resume"});
    limit_unsaid(*parsed.value, server.options().max_answer_bytes, server.limiter().max_held_bytes());
    if (parsed.value->stream) answer->keep_alive();
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto generation = std::make_shared<Generation>(
        Generation{exchange, answer, std::move(*parsed.value), {}, nullptr, nullptr, std::move(body)});
    server.with_model(exchange, generation->request.model, [generation](AdapterRegistry::Resolved model) {
      generation->model = std::move(model);
      std::optional<ResumedAnswer>& resumed = generation->request.resumed;
      const AdapterLease& adapter = generation->model.adapter;
      if (resumed && !resumed->digest.empty() && (!adapter || adapter->digest != resumed->digest))
        return generation->exchange->refuse({.status = 409,
                                             .message = "the answer began with other weights of this adapter",
                                             .param = "lorikeet_resume",
                                             .code = "adapter_differs"});
      if (take_defaults(*generation)) compile_and_submit(generation);
    });
  });
}

}  // namespace

void ServerImpl::chat(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kChat); }
void ServerImpl::completions(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kCompletion); }
void ServerImpl::responses(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kResponses); }
void ServerImpl::messages(const std::shared_ptr<Exchange>& exchange) { generate(exchange, Endpoint::kMessages); }

void ServerImpl::count_tokens(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<GenerateRequest> parsed =
        parse_count_tokens_request(exchange->request.body, server.api_defaults(server.text().base()));
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto request = std::make_shared<GenerateRequest>(std::move(*parsed.value));
    server.with_model(exchange, request->model, [exchange, request](const AdapterRegistry::Resolved& model) {
      const TextSide& side = exchange->server->side_of(model.adapter);
      std::string_view field = "prompt";
      const Result<std::vector<int32_t>> tokens =
          exchange->server->text().prompt_tokens(request->prompts[0], &side, &field);
      if (!tokens.ok())
        return exchange->refuse(
            in_own_words(prompt_error(tokens.status(), field, "messages", exchange->id), request->names));
      exchange->send(200, fmt::format("{{\"input_tokens\":{}}}", tokens->size()));
    });
  });
}

void ServerImpl::embeddings(const std::shared_ptr<Exchange>& exchange) {
  auto answer = std::make_shared<EmbeddingAnswer>(exchange);
  watch(answer, *exchange);
  work(exchange, [answer, exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<EmbeddingRequest> parsed = parse_embedding_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto request = std::make_shared<EmbeddingRequest>(std::move(*parsed.value));
    if (const int64_t all = server.text().config().hidden_dim; request->dimensions > all)
      return exchange->refuse(
          {.message = fmt::format("\"dimensions\" is {}, the model's embeddings have {}", request->dimensions, all),
           .param = "dimensions"});
    if (const int64_t bytes = embeddings_size(*request, server.text().config().hidden_dim),
        most = server.options().max_answer_bytes;
        bytes > most)
      return exchange->refuse(answer_too_large(bytes, most, "send fewer inputs at a time", "input"));
    server.with_model(exchange, request->model, [answer, exchange, request](AdapterRegistry::Resolved model) {
      const TextSide& side = exchange->server->side_of(model.adapter);
      Sequences sequences;
      EngineService::Share share{.requests = 0};
      for (TextRequest& input : request->inputs) {
        input.embed = true;
        auto sequence = std::make_unique<ServedSequence>();
        std::string_view field;
        const Status prepared = exchange->server->text().prepare(std::move(input), *sequence, &side, &field);
        if (!prepared.ok()) return exchange->refuse(prepare_error(prepared, field, "input", *exchange, *sequence));
        share += EngineService::share_of(*sequence);
        sequences.push_back(std::move(sequence));
      }
      std::optional<Admitted> admitted = admit(exchange, share, 0);
      if (!admitted) return;
      answer->set_request(std::move(*request), model.name);
      answer->submit(std::move(sequences), std::move(model), admitted->use(), admitted->deadline, false);
    });
  });
}

void ServerImpl::tokenize(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<TokenizeRequest> parsed = parse_tokenize_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto request = std::make_shared<TokenizeRequest>(std::move(*parsed.value));
    server.with_model(exchange, request->model, [exchange, request](const AdapterRegistry::Resolved& model) {
      const TextModel& text = exchange->server->text();
      const TextSide& side = exchange->server->side_of(model.adapter);
      if (!side.tokenizer) return exchange->refuse({.message = "the model has no tokenizer"});
      const bool messages = !request->input.messages.empty();
      std::string_view field = "prompt";
      const Result<std::vector<int32_t>> tokens = text.prompt_tokens(request->input, &side, &field);
      if (!tokens.ok())
        return exchange->refuse(prompt_error(tokens.status(), field, messages ? "messages" : "prompt", exchange->id));
      const int64_t most = exchange->server->options().max_answer_bytes;
      const int64_t bytes = tokenize_size(*request, std::ssize(*tokens), std::ssize(request->input.prompt));
      if (bytes > most)
        return exchange->refuse(
            answer_too_large(bytes, most, "send the text in pieces", messages ? "messages" : "prompt"));
      exchange->send(200, format_tokenize(*request, *tokens, text.context(), *side.tokenizer));
    });
  });
}

void ServerImpl::detokenize(const std::shared_ptr<Exchange>& exchange) {
  work(exchange, [exchange] {
    ServerImpl& server = *exchange->server;
    ApiResult<DetokenizeRequest> parsed = parse_detokenize_request(exchange->request.body, server.api_defaults());
    exchange->request.body = {};
    if (!parsed.ok()) return exchange->refuse(parsed.error);
    server.note_ignored(parsed.value->ignored_fields, exchange->id);
    const auto request = std::make_shared<DetokenizeRequest>(std::move(*parsed.value));
    server.with_model(exchange, request->model, [exchange, request](const AdapterRegistry::Resolved& model) {
      const TextSide& side = exchange->server->side_of(model.adapter);
      if (!side.tokenizer) return exchange->refuse({.message = "the model has no tokenizer"});
      const Tokenizer& tokenizer = *side.tokenizer;
      int64_t bytes = 0;
      for (const int32_t token : request->tokens) bytes += std::ssize(tokenizer.token_bytes(token));
      if (const int64_t most = exchange->server->options().max_answer_bytes; bytes > most)
        return exchange->refuse(answer_too_large(bytes, most, "send the tokens in pieces", "tokens"));
      exchange->send(200, format_detokenize(tokenizer.decode(request->tokens, false)));
    });
  });
}

}  // namespace lk
