// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/text_engine.h"

#include <algorithm>
#include <cmath>

#include "lk/lora/adapter.h"

namespace lk {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxLogprobs = 20;

// Length of the longest suffix of `text` that is a proper prefix of a stop string: text that must not be shown yet.
size_t held_back(const std::string& text, const std::vector<std::string>& stops) {
  size_t held = 0;
  for (const std::string& stop : stops)
    for (size_t length = std::min(stop.size() - 1, text.size()); length > held; --length)
      if (std::string_view(text).ends_with(std::string_view(stop).substr(0, length))) {
        held = length;
        break;
      }
  return held;
}

}  // namespace

Status validate_sampling(const SamplingParams& p, int64_t vocab_size) {
  const auto in = [](double x, double low, double high) { return std::isfinite(x) && low <= x && x <= high; };
  if (!in(p.temperature, 0, 100)) return invalid_argument("temperature must be in [0, 100], got {}", p.temperature);
  if (p.top_k < 0) return invalid_argument("top_k must be >= 0 (0 = off), got {}", p.top_k);
  if (!in(p.top_p, 0, 1) || p.top_p == 0) return invalid_argument("top_p must be in (0, 1], got {}", p.top_p);
  if (!in(p.min_p, 0, 1)) return invalid_argument("min_p must be in [0, 1], got {}", p.min_p);
  if (!in(p.repetition_penalty, 0, 100) || p.repetition_penalty == 0)
    return invalid_argument("repetition_penalty must be in (0, 100], got {}", p.repetition_penalty);
  if (!in(p.presence_penalty, -2, 2)) return invalid_argument("presence_penalty must be in [-2, 2], got {}", p.presence_penalty);
  if (!in(p.frequency_penalty, -2, 2)) return invalid_argument("frequency_penalty must be in [-2, 2], got {}", p.frequency_penalty);
  if (p.num_logprobs > kMaxLogprobs) return invalid_argument("logprobs must be <= {}, got {}", kMaxLogprobs, p.num_logprobs);
  if (p.num_prompt_logprobs > kMaxLogprobs)
    return invalid_argument("prompt_logprobs must be <= {}, got {}", kMaxLogprobs, p.num_prompt_logprobs);
  if (p.logit_bias.size() > 1024) return invalid_argument("logit_bias has {} entries, at most 1024 are allowed", p.logit_bias.size());
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= vocab_size) return invalid_argument("logit_bias names token {}, the vocabulary has {}", token, vocab_size);
    if (!in(bias, -100, 100)) return invalid_argument("logit_bias of token {} must be in [-100, 100], got {}", token, bias);
  }
  return Status();
}

struct TextEngine::Active {
  TextRequest request;
  CompletionSink sink;
  Completion completion;
  std::unique_ptr<IncrementalDecoder> decoder;
  size_t shown = 0;  // bytes of completion.text given to on_text
  bool reached_stop_string = false;
};

TextEngine::~TextEngine() = default;

Result<std::unique_ptr<TextEngine>> TextEngine::open(const TextEngineOptions& options) {
  std::unique_ptr<TextEngine> self(new TextEngine());
  LK_ASSIGN_OR_RETURN(auto backend, make_cpu_backend({.num_threads = options.num_threads, .isa = options.isa}));
  std::shared_ptr<const ModelWeights> weights;
  if (!options.dummy_config.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(options.dummy_config));
    LK_ASSIGN_OR_RETURN(const ModelConfig config, parse_model_config(text, options.dummy_config));
    weights = make_dummy_weights(config, options.act, options.seed, *backend);
  } else {
    if (!is_directory(options.model))
      return not_found("{} is not a directory; give a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)", options.model);
    LK_ASSIGN_OR_RETURN(weights, load_weights(options.model, options.act, *backend, options.progress));
    LK_ASSIGN_OR_RETURN(self->generation_, load_generation_defaults(options.model));
    if (file_exists(join_path(options.model, "tokenizer.json"))) {
      LK_ASSIGN_OR_RETURN(self->tokenizer_, Tokenizer::load(options.model));
      Result<std::shared_ptr<const ChatTemplate>> chat = ChatTemplate::load(options.model);
      if (chat.ok()) self->chat_template_ = std::move(chat).value();
      else if (chat.status().code() != StatusCode::kNotFound) return chat.status();
    }
  }
  const ModelConfig& config = weights->config;
  std::vector<int64_t> eos = self->generation_.eos_token_ids.empty() ? config.eos_token_ids : self->generation_.eos_token_ids;
  for (int64_t id : eos) self->eos_token_ids_.push_back(static_cast<int32_t>(id));
  // Dynamic rope stretches the context by its factor; everything else ends where the model was trained.
  const auto stretch = config.rope.type == RopeType::kDynamic ? config.rope.factor : 1.0;
  const auto model_context = static_cast<int64_t>(static_cast<double>(config.max_positions) * stretch);
  self->context_ = options.context > 0 ? options.context : model_context;
  if (self->context_ > model_context)
    return invalid_argument("--context {} is longer than the {} positions of the model", self->context_, model_context);

  LK_ASSIGN_OR_RETURN(self->engine_, Engine::create({.max_step_tokens = options.scheduler.max_step_tokens, .memory_bytes = options.memory_bytes},
                                                    std::move(weights), std::move(backend)));
  self->pool_ = std::make_unique<UnifiedPool>(self->engine_->num_pages());
  SchedulerOptions scheduler = options.scheduler;
  scheduler.max_sequence = self->context_;
  self->scheduler_ = std::make_unique<Scheduler>(scheduler, *self->pool_, *self->engine_);
  return self;
}

Status TextEngine::add_adapter(const std::string& name, const std::string& directory) {
  if (!is_directory(directory)) return not_found("adapter {}: {} is not a directory", name, directory);
  LK_ASSIGN_OR_RETURN(auto adapter, load_adapter(name, directory, config(), engine_->weights().checkpoint.get()));
  return add_adapter(std::move(adapter));
}

Status TextEngine::add_adapter(std::shared_ptr<const Adapter> adapter) {
  const std::string name = adapter->name;
  if (name.empty() || name == "base" || adapters_.contains(name)) return already_exists("there is already an adapter named \"{}\"", name);
  LK_ASSIGN_OR_RETURN(const AdapterId id, engine_->register_adapter(std::move(adapter)));
  adapters_.emplace(name, id);
  return Status();
}

Result<std::vector<int32_t>> TextEngine::prompt_tokens(const TextRequest& request) const {
  const int64_t vocab_size = config().vocab_size;
  std::vector<int32_t> tokens;
  const int given = (request.token_ids.empty() ? 0 : 1) + (request.messages.empty() ? 0 : 1) + (request.prompt.empty() ? 0 : 1);
  if (given != 1) return invalid_argument("exactly one of prompt, messages and token_ids must be given and not empty");
  if (!request.token_ids.empty()) {
    tokens = request.token_ids;
  } else {
    if (!tokenizer_) return failed_precondition("the model has no tokenizer.json: give token_ids");
    if (!request.messages.empty()) {
      if (!chat_template_) return failed_precondition("the model has no chat template: give a prompt instead of messages");
      boost::json::object variables{{"messages", request.messages}, {"add_generation_prompt", true}};
      LK_ASSIGN_OR_RETURN(const std::string text, chat_template_->render(variables));
      LK_ASSIGN_OR_RETURN(tokens, tokenizer_->encode(text, false));
    } else {
      LK_ASSIGN_OR_RETURN(tokens, tokenizer_->encode(request.prompt, request.add_special_tokens));
    }
  }
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= vocab_size)
      return invalid_argument("token id {} at position {} is outside the vocabulary of {}", tokens[i], i, vocab_size);
  return tokens;
}

Result<RequestId> TextEngine::submit(TextRequest request, CompletionSink sink) {
  LK_RETURN_IF_ERROR(validate_sampling(request.sampling, config().vocab_size));
  if (request.stop.size() > kMaxStops) return invalid_argument("stop has {} strings, at most {} are allowed", request.stop.size(), kMaxStops);
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes) return invalid_argument("stop strings must have 1 to {} bytes", kMaxStopBytes);
    if (!tokenizer_) return failed_precondition("the model has no tokenizer.json: stop strings cannot be matched");
  }
  Request inner{.id = next_id_, .max_tokens = request.max_tokens, .sampling = request.sampling, .cache_salt = request.cache_salt};
  if (!request.adapter.empty() && request.adapter != "base") {
    const auto it = adapters_.find(request.adapter);
    if (it == adapters_.end()) return not_found("unknown adapter \"{}\"; load it with --lora {}=DIR", request.adapter, request.adapter);
    inner.adapter = it->second;
  }
  LK_ASSIGN_OR_RETURN(inner.prompt, prompt_tokens(request));
  const auto prompt_length = static_cast<int64_t>(inner.prompt.size());
  if (prompt_length >= context_ && request.max_tokens > 0)
    return invalid_argument("the prompt has {} tokens, the context {}: no room for output", prompt_length, context_);
  // Asking for more than fits means "until the context is full".
  inner.max_tokens = std::min(inner.max_tokens, context_ - prompt_length);
  inner.stop_token_ids = request.stop_token_ids;
  if (!request.ignore_eos) inner.stop_token_ids.insert(inner.stop_token_ids.end(), eos_token_ids_.begin(), eos_token_ids_.end());
  inner.rope_length = prompt_length + inner.max_tokens;
  // Beyond max_positions dynamic rope rotates by sequence length: such requests share no cached keys with others.
  if (config().rope.type == RopeType::kDynamic && inner.rope_length > config().max_positions)
    inner.cache_salt ^= static_cast<uint64_t>(inner.rope_length) << 32;
  LK_RETURN_IF_ERROR(scheduler_->submit(inner));

  auto active = std::make_unique<Active>();
  active->completion.prompt_tokens = prompt_length;
  if (tokenizer_) active->decoder = std::make_unique<IncrementalDecoder>(tokenizer_, request.skip_special_tokens);
  active->request = std::move(request);
  active->sink = std::move(sink);
  active_.emplace(inner.id, std::move(active));
  return next_id_++;
}

bool TextEngine::cancel(RequestId id) {
  if (!scheduler_->finish(id)) return false;
  finish(id, FinishReason::kCancelled);
  return true;
}

void TextEngine::step() {
  for (RequestEvent& event : scheduler_->step()) on_event(event);
}

void TextEngine::on_event(RequestEvent& event) {
  const auto it = active_.find(event.id);
  LK_CHECK(it != active_.end());
  Active& active = *it->second;
  if (!event.prompt_logprobs.empty()) active.completion.prompt_logprobs = std::move(event.prompt_logprobs);
  if (event.has_token) {
    const int32_t token = event.token.token;
    active.completion.token_ids.push_back(token);
    if (active.sink.on_token) active.sink.on_token(event.token);
    if (active.request.sampling.num_logprobs >= 0) active.completion.logprobs.push_back(std::move(event.token));
    // The token that stops is reported, its text is not.
    const bool is_stop_token = event.finish == FinishReason::kStop;
    if (active.decoder && !is_stop_token && append_text(active, active.decoder->push(token))) {
      if (event.finish == FinishReason::kNone) LK_CHECK(scheduler_->finish(event.id));
      event.finish = FinishReason::kStop;
    }
  }
  if (event.finish != FinishReason::kNone) finish(event.id, event.finish, std::move(event.error));
}

bool TextEngine::append_text(Active& active, const std::string& piece) {
  std::string& text = active.completion.text;
  const size_t old_size = text.size();
  text += piece;
  size_t cut = std::string::npos;
  for (const std::string& stop : active.request.stop)
    cut = std::min(cut, text.find(stop, old_size - std::min(old_size, stop.size() - 1)));
  active.reached_stop_string = cut != std::string::npos;
  if (active.reached_stop_string) text.resize(cut);
  flush_text(active, false);
  return active.reached_stop_string;
}

void TextEngine::flush_text(Active& active, bool all) {
  const std::string& text = active.completion.text;
  const size_t end = all ? text.size() : text.size() - held_back(text, active.request.stop);
  if (end <= active.shown) return;
  if (active.sink.on_text) active.sink.on_text(std::string_view(text).substr(active.shown, end - active.shown));
  active.shown = end;
}

void TextEngine::finish(RequestId id, FinishReason reason, Status error) {
  const auto it = active_.find(id);
  std::unique_ptr<Active> active = std::move(it->second);
  active_.erase(it);
  active->completion.finish = reason;
  active->completion.error = std::move(error);
  // Bytes of a character that never became whole.
  if (active->decoder && !active->reached_stop_string && append_text(*active, active->decoder->flush()))
    active->completion.finish = FinishReason::kStop;
  flush_text(*active, true);
  if (active->sink.on_done) active->sink.on_done(std::move(active->completion));
}

}  // namespace lk
