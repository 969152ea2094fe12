// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/text_engine.h"

#include <algorithm>
#include <cmath>

#include "lk/lora/adapter.h"
#include "lk/serve/names.h"

namespace lk {
namespace {

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

std::vector<float> mean_embedding(const std::vector<double>& sum) {
  double squares = 0;
  for (const double x : sum) squares += x * x;
  // The mean's length does not matter once it is normalised.
  const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
  std::vector<float> embedding;
  for (const double x : sum) embedding.push_back(static_cast<float>(x * scale));
  return embedding;
}

}  // namespace

struct TextEngine::Active {
  TextRequest request;
  CompletionSink sink;
  Completion completion;
  std::unique_ptr<IncrementalDecoder> decoder;
  size_t shown = 0;  // bytes of completion.text given to on_text
  bool reached_stop_string = false;
};

TextEngine::~TextEngine() = default;

Result<ModelConfig> TextEngine::read_config(const std::string& model, const std::string& dummy_config) {
  if (!dummy_config.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, read_file(dummy_config));
    return parse_model_config(text, dummy_config);
  }
  if (!is_directory(model))
    return not_found(
        "{} is not a directory; give a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)",
        model);
  return load_model_config(model);
}

Result<std::unique_ptr<TextEngine>> TextEngine::open(const TextEngineOptions& options) {
  std::unique_ptr<TextEngine> self(new TextEngine());
  LK_ASSIGN_OR_RETURN(const ModelConfig config, read_config(options.model, options.dummy_config));
  LK_ASSIGN_OR_RETURN(auto backend, make_cpu_backend({.num_threads = options.num_threads, .isa = options.isa}));
  std::shared_ptr<const ModelWeights> weights;
  if (!options.dummy_config.empty()) {
    weights = make_dummy_weights(config, options.act, options.seed, *backend);
  } else {
    LK_ASSIGN_OR_RETURN(weights, load_weights(options.model, options.act, *backend, options.progress));
  }
  LK_ASSIGN_OR_RETURN(self->text_, TextModel::load(options.dummy_config.empty() ? options.model : "", weights->config,
                                                   options.context));
  LK_ASSIGN_OR_RETURN(self->engine_, Engine::create({.max_step_tokens = options.scheduler.max_step_tokens,
                                                     .memory_bytes = options.memory_bytes},
                                                    std::move(weights), std::move(backend)));
  self->pool_ = std::make_unique<UnifiedPool>(self->engine_->num_pages());
  self->pool_->set_reload_cost([engine = self->engine_.get()](AdapterId id) { return engine->reload_cost(id); });
  SchedulerOptions scheduler = options.scheduler;
  scheduler.max_sequence = self->context();
  if (options.merging != MergeMode::kNever)
    self->merging_ =
        std::make_unique<MergeController>(make_merge_chooser(options.merging), *self->pool_, *self->engine_);
  self->scheduler_ = std::make_unique<Scheduler>(scheduler, *self->pool_, *self->engine_, self->merging_.get());
  self->exact_ = options.exact;
  return self;
}

Status TextEngine::add_adapter(const std::string& name, const std::string& directory) {
  if (!is_directory(directory)) return not_found("adapter {}: {} is not a directory", name, directory);
  LK_ASSIGN_OR_RETURN(auto adapter, load_adapter(name, directory, config(), engine_->weights().checkpoint.get()));
  return add_adapter(std::move(adapter));
}

Status TextEngine::add_adapter(std::shared_ptr<const Adapter> adapter) {
  const std::string name = adapter->name;
  if (name.empty() || name == "base" || adapters_.contains(name))
    return already_exists("there is already an adapter named \"{}\"", name);
  LK_ASSIGN_OR_RETURN(Engine::PreparedAdapter prepared, engine_->prepare_adapter(std::move(adapter)));
  const AdapterId id = engine_->register_adapter(std::move(prepared));
  adapters_.emplace(name, id);
  if (!is_exact(name)) allow_merging(id);
  return Status();
}

bool TextEngine::is_exact(std::string_view adapter) const {
  return !merging_ || std::any_of(exact_.begin(), exact_.end(),
                                  [&](const std::string& pattern) { return glob_match(pattern, adapter); });
}

void TextEngine::allow_merging(AdapterId adapter) {
  if (merging_) merging_->set_allowed(adapter, true);
}

Result<RequestId> TextEngine::submit(TextRequest request, CompletionSink sink) {
  AdapterId adapter = kBaseModel;
  if (!request.adapter.empty() && request.adapter != "base") {
    const auto it = adapters_.find(request.adapter);
    if (it == adapters_.end())
      return not_found("unknown adapter \"{}\"; load it with --lora {}=DIR", request.adapter, request.adapter);
    adapter = it->second;
  }
  LK_ASSIGN_OR_RETURN(PreparedRequest prepared, text_->prepare(std::move(request)));
  prepared.request.id = next_id_;
  prepared.request.adapter = adapter;
  LK_RETURN_IF_ERROR(submit(std::move(prepared), std::move(sink)));
  return next_id_++;
}

Status TextEngine::submit(PreparedRequest prepared, CompletionSink sink) {
  auto active = std::make_unique<Active>();
  active->completion.prompt_tokens = static_cast<int64_t>(prepared.request.prompt.size());
  active->completion.prompt_token_ids = prepared.request.prompt;
  if (text_->tokenizer())
    active->decoder = std::make_unique<IncrementalDecoder>(text_->tokenizer(), prepared.text.skip_special_tokens);
  active->request = std::move(prepared.text);
  active->sink = std::move(sink);
  const RequestId id = prepared.request.id;
  LK_RETURN_IF_ERROR(scheduler_->submit(std::move(prepared.request)));
  active_.emplace(id, std::move(active));
  return Status();
}

bool TextEngine::cancel(RequestId id) {
  if (!scheduler_->finish(id)) return false;
  finish(id, FinishReason::kCancelled);
  return true;
}

bool TextEngine::fail(RequestId id, Status error) {
  if (!scheduler_->finish(id)) return false;
  finish(id, FinishReason::kError, std::move(error));
  return true;
}

void TextEngine::step(bool wait) {
  for (RequestEvent& event : scheduler_->step(wait)) on_event(event);
}

void TextEngine::on_event(RequestEvent& event) {
  const auto it = active_.find(event.id);
  LK_CHECK(it != active_.end());
  Active& active = *it->second;
  if (event.started) {
    active.completion.cached_tokens = event.cached_tokens;
    if (active.sink.on_start) active.sink.on_start();
  }
  if (!event.hidden_sum.empty()) active.completion.embedding = mean_embedding(event.hidden_sum);
  if (!event.prompt_logprobs.empty()) active.completion.prompt_logprobs = std::move(event.prompt_logprobs);
  if (event.has_token && active.completion.token_ids.empty() && active.sink.on_prompt)
    active.sink.on_prompt(active.completion);
  if (event.has_token) {
    const int32_t token = event.token.token;
    active.completion.token_ids.push_back(token);
    if (active.sink.on_token) active.sink.on_token(event.token);
    if (active.request.sampling.num_logprobs >= 0) active.completion.logprobs.push_back(std::move(event.token));
    // The token that stops is reported, its text is not.
    const bool is_stop_token = event.finish == FinishReason::kStop;
    const auto& own_stops = active.request.stop_token_ids;
    if (is_stop_token && std::find(own_stops.begin(), own_stops.end(), token) != own_stops.end())
      active.completion.stop_token = token;
    // Without a tokenizer (dummy weights) tokens are written as numbers, so that everything downstream has a text to
    // carry.
    if (!is_stop_token &&
        append_text(active, active.decoder ? active.decoder->push(token) : fmt::format("{} ", token))) {
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
  const bool may_stop = static_cast<int64_t>(active.completion.token_ids.size()) >= active.request.min_tokens;
  for (const std::string& stop : active.request.stop) {
    const size_t found = may_stop ? text.find(stop, old_size - std::min(old_size, stop.size() - 1)) : std::string::npos;
    if (found >= cut) continue;
    cut = found;
    active.completion.stop_string = stop;
  }
  active.reached_stop_string = cut != std::string::npos;
  if (active.reached_stop_string)
    text.resize(cut + (active.request.include_stop_string ? active.completion.stop_string->size() : 0));
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
  // Bytes of a character that never became whole. They may end in a stop string; a request that was ended from outside
  // stays so.
  if (active->decoder && !active->reached_stop_string && append_text(*active, active->decoder->flush()) &&
      reason == FinishReason::kLength)
    active->completion.finish = FinishReason::kStop;
  flush_text(*active, true);
  if (active->sink.on_done) active->sink.on_done(std::move(active->completion));
}

}  // namespace lk
