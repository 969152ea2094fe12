// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_engine.h"

#include <algorithm>
#include <cmath>

#include "lk/base/guarded.h"
#include "lk/base/names.h"
#include "lk/lora/adapter.h"

namespace lk {
namespace {

std::vector<float> embedding_of(const std::vector<double>& sum) {
  double squares = 0;
  for (const double x : sum) squares += x * x;
  // A mean is a sum but for its length, which does not matter once it is normalised.
  const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
  std::vector<float> embedding;
  for (const double x : sum) embedding.push_back(static_cast<float>(x * scale));
  return embedding;
}

}  // namespace

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

Result<std::vector<RankTeam::Setup>> TextEngine::load_ranks(const TextEngineOptions& options,
                                                            const ModelConfig& config) {
  LK_RETURN_IF_ERROR(check_num_ranks(config.shape(), options.num_ranks));
  const int threads =
      options.num_threads > 0 ? options.num_threads : std::max(1, default_num_threads() / options.num_ranks);
  std::vector<RankTeam::Setup> ranks;
  for (int rank = 0; rank < options.num_ranks; ++rank) {
    RankTeam::Setup& own = ranks.emplace_back();
    LK_ASSIGN_OR_RETURN(own.backend, make_cpu_backend({.num_threads = threads, .isa = options.isa}));
    if (!options.dummy_config.empty()) {
      own.weights = make_dummy_weights(config, options.act, options.seed, *own.backend, {rank, options.num_ranks});
    } else if (rank == 0) {
      LK_ASSIGN_OR_RETURN(own.weights,
                          load_weights(options.model, options.act, *own.backend, options.progress, options.num_ranks));
    } else {
      own.weights = load_rank(*ranks[0].weights, rank, *own.backend);
    }
  }
  return ranks;
}

Result<std::unique_ptr<TextEngine>> TextEngine::open(const TextEngineOptions& options) {
  std::unique_ptr<TextEngine> self(new TextEngine());
  LK_ASSIGN_OR_RETURN(const ModelConfig config, read_config(options.model, options.dummy_config));
  LK_ASSIGN_OR_RETURN(std::vector<RankTeam::Setup> ranks, load_ranks(options, config));
  LK_ASSIGN_OR_RETURN(self->text_, TextModel::load(options.dummy_config.empty() ? options.model : "",
                                                   ranks[0].weights->config, options.context, options.pooling));
  LK_ASSIGN_OR_RETURN(self->engine_, Engine::create({.max_step_tokens = options.scheduler.max_step_tokens,
                                                     .memory_bytes = options.memory_bytes / options.num_ranks},
                                                    std::move(ranks)));
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
  LK_ASSIGN_OR_RETURN(std::shared_ptr<const TextSide> side, text_->load_side(directory, adapter->own_vocab_size));
  return add_adapter(std::move(adapter), std::move(side));
}

Status TextEngine::add_adapter(std::shared_ptr<const Adapter> adapter, std::shared_ptr<const TextSide> side) {
  const std::string name = adapter->name;
  if (name.empty() || name == "base" || adapters_.contains(name))
    return already_exists("there is already an adapter named \"{}\"", name);
  LK_CHECK((side ? *side : text_->base()).vocab_size == adapter->vocab_size(config()),
           "adapter {} was given the text side of another vocabulary", name);
  LK_ASSIGN_OR_RETURN(Engine::PreparedAdapter prepared, engine_->prepare_adapter(std::move(adapter)));
  const AdapterId id = engine_->register_adapter(std::move(prepared));
  adapters_.emplace(name, id);
  if (side) sides_.emplace(id, std::move(side));
  if (!is_exact(name)) allow_merging(id);
  return Status();
}

void TextEngine::remove_adapter(const std::string& name) {
  const auto it = adapters_.find(name);
  LK_CHECK(it != adapters_.end(), "no adapter {}", name);
  // A load on its way ends with a step.
  while (!scheduler_->drop_adapter(it->second)) step();
  engine_->unregister_adapter(it->second);
  sides_.erase(it->second);
  adapters_.erase(it);
}

const TextSide& TextEngine::side_of(const std::string& adapter) const {
  const auto it = adapters_.find(adapter);
  const auto side = it == adapters_.end() ? sides_.end() : sides_.find(it->second);
  return side == sides_.end() ? text_->base() : *side->second;
}

bool TextEngine::is_exact(std::string_view adapter) const {
  return !merging_ || std::any_of(exact_.begin(), exact_.end(),
                                  [&](const std::string& pattern) { return glob_match(pattern, adapter); });
}

void TextEngine::allow_merging(AdapterId adapter) {
  if (merging_) merging_->allow(adapter);
}

Result<RequestId> TextEngine::submit(TextRequest request, std::unique_ptr<TextSequence> sequence) {
  AdapterId adapter = kBaseModel;
  if (!request.adapter.empty() && request.adapter != "base") {
    const auto it = adapters_.find(request.adapter);
    if (it == adapters_.end())
      return not_found("unknown adapter \"{}\"; load it with --lora {}=DIR", request.adapter, request.adapter);
    adapter = it->second;
  }
  const TextSide& side = side_of(request.adapter);
  LK_RETURN_IF_ERROR(text_->prepare(std::move(request), *sequence, &side));
  sequence->asked.id = next_id_;
  sequence->asked.adapter = adapter;
  LK_RETURN_IF_ERROR(submit(sequence));
  return next_id_++;
}

Status TextEngine::submit(std::unique_ptr<TextSequence>& sequence) {
  std::unique_ptr<Sequence> taken = std::move(sequence);
  Status status = guarded("the queue", [&] { return scheduler_->submit(taken); });
  if (!status.ok()) sequence.reset(static_cast<TextSequence*>(taken.release()));
  return status;
}

std::span<TextUpdate> TextEngine::step(bool wait) {
  updates_.clear();
  for (RequestEvent& event : scheduler_->step(wait)) updates_.push_back(update(event));
  return updates_;
}

// What the text of one sequence throws ends that sequence.
TextUpdate TextEngine::update(RequestEvent& event) {
  Result<TextUpdate> updated = guarded("the text of an answer", [&]() -> Result<TextUpdate> { return apply(event); });
  if (updated.ok()) return std::move(updated).value();
  auto& sequence = static_cast<TextSequence&>(*event.sequence);
  if (!event.ended) event.ended = scheduler_->finish(event.id);
  sequence.completion.finish = FinishReason::kError;
  sequence.completion.error = updated.status();
  TextUpdate last{.sequence = &sequence, .started = event.started};
  last.ended.reset(static_cast<TextSequence*>(event.ended.release()));
  return last;
}

TextUpdate TextEngine::apply(RequestEvent& event) {
  auto& sequence = static_cast<TextSequence&>(*event.sequence);
  Completion& completion = sequence.completion;
  TextUpdate update{.sequence = &sequence, .started = event.started};
  if (event.started) completion.cached_tokens = event.cached_tokens;
  if (!event.hidden_sum.empty()) {
    completion.embedding = embedding_of(event.hidden_sum);
    if (!std::ranges::all_of(completion.embedding, [](float x) { return std::isfinite(x); })) {
      event.finish = FinishReason::kError;
      event.error = internal_error("the hidden states of the prompt are not finite");
    }
  }
  if (!event.prompt_logprobs.empty()) completion.prompt_logprobs = std::move(event.prompt_logprobs);
  if (event.has_token) {
    update.prompt_done = completion.token_ids.empty();
    update.delta.tokens.push_back(event.token);
    if (sequence.add(std::move(event.token), event.finish == FinishReason::kStop)) {
      if (!event.ended) event.ended = scheduler_->finish(event.id, true);
      event.finish = FinishReason::kStop;
    }
  }
  if (event.finish != FinishReason::kNone) {
    sequence.end(event.finish, std::move(event.error));
  }
  update.delta.text = sequence.take_text();
  update.delta.reasoning = sequence.take_reasoning();
  update.delta.reasoning_tokens = completion.reasoning_tokens;
  if (event.finish != FinishReason::kNone) update.ended.reset(static_cast<TextSequence*>(event.ended.release()));
  return update;
}

std::optional<TextUpdate> TextEngine::end(RequestId id, FinishReason reason, Status error) {
  std::unique_ptr<Sequence> ended = scheduler_->finish(id);
  if (!ended) return std::nullopt;
  RequestEvent event{.id = id, .sequence = ended.get(), .finish = reason, .error = std::move(error)};
  event.ended = std::move(ended);
  return update(event);
}

}  // namespace lk
