// SPDX-License-Identifier: Apache-2.0
#include "lk/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <tuple>

#include "lk/base/guarded.h"
#include "lk/base/rng.h"
#include "lk/engine/footprint.h"
#include "lk/lora/shard.h"

namespace lk {
namespace {

constexpr int kNumReaders = 2;  // adapters read from disk at once: one waits for the disk while one is parsed

// Whether the hidden state at this position is part of the prompt's embedding.
bool pools(const Request& request, int64_t position) {
  switch (request.pooling) {
    case Pooling::kNone:
      return false;
    case Pooling::kMean:
      return true;
    case Pooling::kLast:
      return position + 1 == static_cast<int64_t>(request.prompt.size());
    case Pooling::kFirst:
      return position == 0;
  }
  return false;
}

// Whether keys and values before an activation differ from the base's.
bool changes_kv_without_deltas(const Adapter& adapter) {
  const std::vector<WeightId> replaced = adapter.replaced.ids();
  return !adapter.trained_token_ids.empty() || std::ranges::any_of(replaced, [](WeightId weight) {
    return weight.module != kLmHead && weight.module != kFinalNorm;
  });
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options,
                                               std::shared_ptr<const ModelWeights> weights,
                                               std::unique_ptr<Backend> backend) {
  std::vector<RankTeam::Setup> ranks(1);
  ranks[0] = {.weights = std::move(weights), .backend = std::move(backend)};
  return create(options, std::move(ranks));
}

Result<std::unique_ptr<Engine>> Engine::create(const EngineOptions& options, std::vector<RankTeam::Setup> ranks) {
  if (options.max_step_tokens < 1)
    return invalid_argument("max_step_tokens must be >= 1, got {}", options.max_step_tokens);
  std::unique_ptr<Engine> engine(new Engine(options, std::move(ranks)));
  const int64_t budget = options.memory_bytes;
  // Page numbers are 32 bits, and a pool beyond what all sequences together could fill has no use.
  engine->num_pages_ = std::min<int64_t>(budget / engine->page_bytes(), std::numeric_limits<PageId>::max() / 2);
  if (engine->num_pages_ < 1)
    return resource_exhausted(
        "a memory budget of {} bytes holds no page; one page (16 tokens) takes {} bytes: raise --memory", budget,
        engine->page_bytes());
  LK_RETURN_IF_ERROR(engine->ranks_.allocate(engine->num_pages_));
  std::vector<Workshop::Bench> benches(3);
  benches[kReaderBench] = {.name = "lk-reader", .num_threads = kNumReaders};
  benches[kCopierBench] = {.name = "lk-loader"};
  benches[kMergerBench] = {.name = "lk-merger"};
  engine->workshop_ = std::make_unique<Workshop>(benches);
  engine->reader_ = std::make_unique<AdapterReader>(*engine->workshop_);
  engine->loader_ = std::make_unique<Loader>(*engine->workshop_, *engine->reader_, engine->ranks_.memory());
  engine->merger_ = std::make_unique<Merger>(*engine->workshop_, *engine->reader_, engine->ranks_.memory());
  return engine;
}

Engine::Engine(const EngineOptions& options, std::vector<RankTeam::Setup> ranks)
    : options_(options),
      ranks_(std::move(ranks), options.max_step_tokens, std::min(kMaxLogitRows, options.max_step_tokens)),
      weights_(ranks_[0].weights),
      backend_(*ranks_[0].backend),
      decoder_(*ranks_[0].decoder),
      default_rope_(make_rope_table(weights_->config, 0)),
      runs_(static_cast<size_t>(ranks_.size())) {}

// --- Adapters

Result<Engine::PreparedAdapter> Engine::prepare_adapter(std::shared_ptr<HostAdapter> adapter) const {
  LK_ASSIGN_OR_RETURN(const std::shared_ptr<const Adapter> content, adapter->get());
  PreparedAdapter prepared;
  int64_t group_rank = 0;
  for (size_t r = 0; r < static_cast<size_t>(ranks_.size()); ++r) {
    const RankTeam::Rank& rank = ranks_[r];
    if (r < 2) {  // from the second on they are of equal sizes
      const PageGeometry geometry{.slice_bytes = rank.decoder->slice_bytes(),
                                  .page_bytes = rank.decoder->page_bytes(),
                                  .act = rank.weights->act};
      const bool tied_head = rank.weights->config.tie_word_embeddings && rank.weights->rank.leads();
      const std::shared_ptr<const Adapter> shard = shard_of(content, rank.weights->rank);
      const ModelShape& shape = rank.weights->shape;
      prepared.layouts.push_back(std::make_shared<AdapterLayout>(*shard, shape, tied_head, geometry));
      prepared.merge_layouts.push_back(
          std::make_shared<MergeLayout>(*shard, shape, rank.weights->format(), geometry.page_bytes));
    } else {
      prepared.layouts.push_back(prepared.layouts.back());
      prepared.merge_layouts.push_back(prepared.merge_layouts.back());
    }
    prepared.num_pages = std::max(prepared.num_pages, prepared.layouts.back()->num_pages());
    group_rank = std::max(group_rank, prepared.layouts.back()->max_group_rank());
  }
  if (prepared.num_pages >= num_pages_)
    return resource_exhausted("adapter {} needs {} pages of {} bytes, the pool has {}: raise --memory", adapter->name(),
                              prepared.num_pages, page_bytes(), num_pages_);
  if (group_rank > Decoder::kMaxGroupRank)
    return invalid_argument(
        "adapter {}: the ranks of q, k and v, or of gate and up, sum to {}, more than the {} that a layer may have: "
        "sum "
        "fewer adapters, or such of smaller ranks",
        adapter->name(), group_rank, Decoder::kMaxGroupRank);
  if (const int64_t size = content->vocab_size(weights_->config); !decoder_.fits_vocabulary(size))
    return resource_exhausted(
        "adapter {} has a vocabulary of {} tokens: the memory for logits, {} rows of the base's {}, does not hold one "
        "row "
        "of it: raise --step-tokens (up to {}), or serve it over a base of that vocabulary",
        adapter->name(), size, std::min(kMaxLogitRows, options_.max_step_tokens), weights_->config.vocab_size,
        kMaxLogitRows);
  // What merging is worth does not depend on how the model is divided.
  const MergeLayout whole(*content, weights_->config.shape(), weights_->format(), page_bytes());
  prepared.merge_cost = whole.relative_cost();
  prepared.merge_build_rows = whole.build_cost_rows();
  // A token that no prompt can have keeps the adapter from ever being activated.
  for (const int64_t token : content->config.alora_invocation_tokens)
    prepared.invocation_tokens.push_back(static_cast<int32_t>(std::min<int64_t>(token, INT32_MAX)));
  prepared.base_before = !changes_kv_without_deltas(*content);
  prepared.vocab_size = content->vocab_size(weights_->config);
  prepared.host = std::move(adapter);
  return prepared;
}

AdapterId Engine::register_adapter(PreparedAdapter adapter) {
  vocab_sizes_.insert(adapter.vocab_size);
  decoder_.set_vocabulary(*vocab_sizes_.rbegin());
  adapters_.emplace(next_adapter_, Registered{.prepared = std::move(adapter), .residents = {}});
  return next_adapter_++;
}

void Engine::unregister_adapter(AdapterId id) {
  LK_CHECK(!merger_->has(id), "adapter {} is unregistered while it is merged", id);
  loader_->forget(id);
  const auto at = adapters_.find(id);
  LK_CHECK(at != adapters_.end(), "adapter {} is not registered", id);
  vocab_sizes_.erase(vocab_sizes_.find(at->second.prepared.vocab_size));
  decoder_.set_vocabulary(vocab_sizes_.empty() ? 0 : *vocab_sizes_.rbegin());
  adapters_.erase(at);
}

std::vector<AdapterId> Engine::adapters() const {
  std::vector<AdapterId> ids;
  for (const auto& [id, registered] : adapters_) ids.push_back(id);
  return ids;
}

// As PEFT: from the beginning of the last occurrence on, in the prompt alone.
std::optional<Activation> Engine::activation(AdapterId adapter, std::span<const int32_t> prompt) const {
  const PreparedAdapter& prepared = adapters_.at(adapter).prepared;
  if (prepared.invocation_tokens.empty()) return std::nullopt;
  const auto found = std::ranges::find_end(prompt, prepared.invocation_tokens);
  return Activation{.from = found.empty() ? Activation::kNever : found.begin() - prompt.begin(),
                    .base_before = prepared.base_before};
}

int64_t Engine::footprint(AdapterId adapter) const { return adapters_.at(adapter).prepared.num_pages; }

void Engine::start_load(AdapterId adapter, std::span<const PageId> pages) {
  const PreparedAdapter& prepared = adapters_.at(adapter).prepared;
  loader_->start(
      {.adapter = adapter, .host = prepared.host, .layouts = prepared.layouts, .pages = {pages.begin(), pages.end()}});
}

// With it goes the hold that embedding rows have on the host copy, which the host tier may drop from now on.
void Engine::evicted(AdapterId adapter) { adapters_.at(adapter).residents.clear(); }

void Engine::stage(AdapterId adapter) { loader_->stage(adapter, adapters_.at(adapter).prepared.host); }

std::vector<LoadResult> Engine::take_finished_loads(bool wait) {
  std::vector<LoadResult> results;
  for (Loader::Done& done : loader_->take_finished(wait)) {
    adapters_.at(done.adapter).residents = std::move(done.residents);
    results.push_back({done.adapter, std::move(done.status)});
  }
  return results;
}

// --- Merging

Result<MergeFootprint> Engine::merge_footprint(AdapterId adapter) const {
  const PreparedAdapter& prepared = adapters_.at(adapter).prepared;
  if (!prepared.invocation_tokens.empty())
    return failed_precondition("adapter {} acts from its invocation tokens on, which no merged weight can",
                               prepared.host->name());
  if (prepared.merge_layouts[0]->empty())
    return failed_precondition("adapter {} has nothing to merge: it changes no linear layer by a low-rank delta",
                               prepared.host->name());
  return MergeFootprint{.num_pages = prepared.merge_layouts[0]->num_pages(),
                        .relative_cost = prepared.merge_cost,
                        .build_cost_rows = prepared.merge_build_rows};
}

void Engine::start_merge(AdapterId adapter, std::span<const PageId> pages) {
  const PreparedAdapter& prepared = adapters_.at(adapter).prepared;
  merger_->start({.adapter = adapter,
                  .host = prepared.host,
                  .layouts = prepared.merge_layouts,
                  .build_cost_rows = prepared.merge_build_rows,
                  .pages = {pages.begin(), pages.end()}});
}

std::vector<MergeResult> Engine::take_finished_merges() {
  std::vector<MergeResult> results;
  for (Merger::Done& done : merger_->take_finished()) {
    if (!done.weights.empty()) merged_[done.result.adapter] = std::move(done.weights);
    results.push_back(std::move(done.result));
  }
  return results;
}

void Engine::drop_merge(AdapterId adapter) {
  merger_->drop(adapter);
  merged_.erase(adapter);
}

// --- Steps

Micros Engine::now() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

const RopeTable& Engine::rope_table(int64_t sequence_length) {
  const ModelConfig& c = weights_->config;
  const int64_t length = c.rope_length(sequence_length);
  if (length == 0) return default_rope_;
  const auto it = rope_tables_.find(length);
  if (it != rope_tables_.end()) return it->second;
  if (rope_tables_.size() > 1024) rope_tables_.clear();
  return rope_tables_.emplace(length, make_rope_table(c, length)).first->second;
}

void Engine::add_rows(const StepPlan& plan, size_t item_idx) {
  const StepItem& item = plan.items[item_idx];
  const auto row_begin = static_cast<int32_t>(token_ids_.size());
  const auto half = static_cast<size_t>(weights_->config.head_dim / 2);
  const RopeTable& rope = rope_table(item.request->rope_length);
  for (int64_t position = item.begin; position < item.end; ++position) {
    const auto row = static_cast<int32_t>(token_ids_.size());
    token_ids_.push_back(item.tokens[static_cast<size_t>(position)]);
    slots_.push_back(item.block_table[static_cast<size_t>(position / kPageTokens)] * kPageTokens +
                     position % kPageTokens);
    cos_.resize(cos_.size() + half);
    sin_.resize(sin_.size() + half);
    rope_row(rope, position, cos_.data() + cos_.size() - half, sin_.data() + sin_.size() - half);
    const bool score = item.prompt_logprobs && position + 1 < static_cast<int64_t>(item.request->prompt.size());
    if (score) logit_rows_.push_back({row, item_idx, position, false});
    if (item.sample && position + 1 == item.end) logit_rows_.push_back({row, item_idx, position, true});
    if (item.hidden_sum && pools(*item.request, position)) hidden_rows_.push_back({row, item.hidden_sum});
  }
  sequences_.push_back({.row_begin = row_begin,
                        .row_end = static_cast<int32_t>(token_ids_.size()),
                        .first_position = item.begin,
                        .block_table = item.block_table.data()});
  add_runs(plan, item, row_begin);
}

// Which of the item's rows use which adapter, on every rank.
void Engine::add_runs(const StepPlan& plan, const StepItem& item, int32_t row_begin) {
  const AdapterId id = item.request->adapter;
  const Registered* registered = id == kBaseModel ? nullptr : &adapters_.at(id);
  LK_CHECK(!registered || !registered->residents.empty(), "request {} runs with adapter {}, which is not resident",
           item.request->id, id);
  const auto* merges = plan.merged != kBaseModel && id == plan.merged ? &merged_.at(id) : nullptr;
  const int64_t activated = std::clamp(item.deltas_from, item.begin, item.end);
  for (size_t rank = 0; rank < runs_.size(); ++rank) {
    std::vector<AdapterRun>& runs = runs_[rank];
    const ResidentAdapter* adapter = registered ? registered->residents[rank].get() : nullptr;
    const MergedWeights* merged = merges ? (*merges)[rank].get() : nullptr;
    const auto add_run = [&](int64_t begin, int64_t end, bool dormant) {  // positions
      if (begin >= end) return;
      const auto first = static_cast<int32_t>(row_begin + begin - item.begin),
                 last = static_cast<int32_t>(row_begin + end - item.begin);
      if (!runs.empty() && runs.back().adapter == adapter && runs.back().dormant == dormant)
        runs.back().row_end = last;
      else
        runs.push_back({first, last, adapter, merged, dormant});
    };
    add_run(item.begin, activated, true);
    add_run(activated, item.end, false);
  }
}

void Engine::build_batch(const StepPlan& plan) {
  order_.resize(plan.items.size());
  for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
  // By adapter, then in the plan's order (a stable sort would allocate). The merged adapter last, so that everybody
  // else's rows are one product.
  const auto key = [&](size_t item) {
    const AdapterId adapter = plan.items[item].request->adapter;
    return std::tuple(plan.merged != kBaseModel && adapter == plan.merged, adapter, item);
  };
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
  token_ids_.clear();
  slots_.clear();
  cos_.clear();
  sin_.clear();
  sequences_.clear();
  for (std::vector<AdapterRun>& runs : runs_) runs.clear();
  logit_rows_.clear();
  hidden_rows_.clear();
  for (size_t item : order_) add_rows(plan, item);
}

std::span<ItemResult> Engine::execute(const StepPlan& plan) {
  LK_CHECK(plan.num_tokens <= options_.max_step_tokens);
  const auto begin = std::chrono::steady_clock::now();
  const double lora_before = backend_.lora_seconds();
  build_batch(plan);
  ranks_.run([this](size_t rank) {
    static const std::function<void()> kNone;
    ranks_[rank].decoder->forward({.token_ids = token_ids_,
                                   .slots = slots_,
                                   .cos = cos_,
                                   .sin = sin_,
                                   .sequences = sequences_,
                                   .runs = runs_[rank]},
                                  rank == 0 ? interlude_ : kNone);
  });
  results_.assign(plan.items.size(), {});
  add_hidden(plan);
  resolve_logits(plan, results_);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  execute_seconds_ += seconds;
  last_step_times_ = {.total = static_cast<Micros>(seconds * 1e6),
                      .lora = static_cast<Micros>((backend_.lora_seconds() - lora_before) * 1e6)};
  return results_;
}

void Engine::add_hidden(const StepPlan& plan) {
  const auto dim = static_cast<size_t>(weights_->config.hidden_dim);
  for (const StepItem& item : plan.items)
    if (item.hidden_sum && item.begin == 0) item.hidden_sum->assign(dim, 0.0);
  for (size_t begin = 0; begin < hidden_rows_.size();) {
    const size_t end = std::min(hidden_rows_.size(), begin + static_cast<size_t>(decoder_.max_logit_rows()));
    rows_.clear();
    for (size_t i = begin; i < end; ++i) rows_.push_back(hidden_rows_[i].row);
    hidden_.resize((end - begin) * dim);
    backend_.read(hidden_.data(), decoder_.hidden(rows_, runs_[0]),
                  static_cast<int64_t>(hidden_.size() * sizeof(float)));
    // One row after the other: the sum does not depend on how the prompt was cut into chunks.
    for (size_t i = begin; i < end; ++i)
      for (size_t d = 0; d < dim; ++d) (*hidden_rows_[i].sum)[d] += static_cast<double>(hidden_[(i - begin) * dim + d]);
    begin = end;
  }
}

// The masks of constrained requests; a constraint that allows nothing fails its request.
void Engine::allow_tokens(const StepPlan& plan, std::span<const LogitRow> wanted, std::span<ItemResult> results) {
  const size_t words = words_of_mask();
  allowed_.resize(std::max(allowed_.size(), words * wanted.size()));
  backend_.threads().for_each(static_cast<int64_t>(wanted.size()), [&](int64_t i) {
    const LogitRow& row = wanted[static_cast<size_t>(i)];
    TokenConstraint* constraint = plan.items[row.item].request->constraint.get();
    if (!row.sample || !constraint) return;
    const auto own_words = static_cast<size_t>((vocab_size(plan.items[row.item].request->adapter) + 63) / 64);
    Status allowed = guarded("a constraint", [&] {
      return constraint->allowed({allowed_.data() + static_cast<size_t>(i) * words, own_words});
    });
    if (!allowed.ok()) results[row.item].error = std::move(allowed);
  });
}

SampleArgs Engine::sample_args(const StepItem& item, const LogitRow& wanted, float* logits) const {
  const SamplingParams& params = item.request->sampling;
  SampleArgs args{.logits = logits, .vocab_size = vocab_size(item.request->adapter)};
  if (!wanted.sample) {
    args.given = item.tokens[static_cast<size_t>(wanted.position + 1)];
    args.num_logprobs = params.num_prompt_logprobs;
    return args;
  }
  args.uniform = random_uniform(params.seed, item.tokens.size() - item.request->prompt.size());
  args.temperature = params.temperature;
  args.top_k = params.top_k;
  args.top_p = params.top_p;
  args.min_p = params.min_p;
  args.repetition_penalty = params.repetition_penalty;
  args.presence_penalty = params.presence_penalty;
  args.frequency_penalty = params.frequency_penalty;
  args.seen = item.seen;
  args.logit_bias = params.logit_bias;
  args.num_logprobs = params.num_logprobs;
  return args;
}

Status Engine::not_sampled(const Request& request, int64_t position, SampleFault fault) const {
  const bool base = request.adapter == kBaseModel;
  const std::string model = base ? "the base model" : fmt::format("adapter {}", adapter_name(request.adapter));
  if (fault == SampleFault::kNotAllowed)
    return failed_precondition("after token {} {} gives no token that the request allows a probability", position,
                               model);
  return internal_error("the logits of {} after token {} are not finite: its weights overflow or are damaged", model,
                        position);
}

void Engine::resolve_logits(const StepPlan& plan, std::span<ItemResult> results) {
  const size_t words = words_of_mask();
  for (size_t begin = 0; begin < logit_rows_.size();) {
    const size_t end = std::min(logit_rows_.size(), begin + static_cast<size_t>(decoder_.max_logit_rows()));
    const std::span<const LogitRow> wanted(logit_rows_.data() + begin, end - begin);
    rows_.clear();
    for (const LogitRow& row : wanted) rows_.push_back(row.row);
    // Sampling may overwrite its row; nobody reads it afterwards.
    float* logits = decoder_.logits(rows_, runs_[0]);
    const auto start = std::chrono::steady_clock::now();
    allow_tokens(plan, wanted, results);
    sample_args_.clear();
    for (size_t i = 0; i < wanted.size(); ++i) {
      const StepItem& item = plan.items[wanted[i].item];
      sample_args_.push_back(sample_args(item, wanted[i], logits + static_cast<int64_t>(i) * decoder_.logits_stride()));
      if (wanted[i].sample && item.request->constraint) sample_args_.back().allowed = allowed_.data() + i * words;
    }
    sample_results_.resize(wanted.size());
    backend_.sample(sample_args_, sample_results_);
    sample_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (size_t i = 0; i < wanted.size(); ++i) {
      SampleResult& sampled = sample_results_[i];
      ItemResult& result = results[wanted[i].item];
      if (!result.error.ok()) continue;
      if (sampled.fault != SampleFault::kNone) {
        result.error = not_sampled(*plan.items[wanted[i].item].request, wanted[i].position, sampled.fault);
        continue;
      }
      TokenLogprob outcome{sampled.token, sampled.logprob, sampled.rank, std::move(sampled.top)};
      if (wanted[i].sample)
        result.token = std::move(outcome);
      else
        result.prompt_logprobs.push_back(std::move(outcome));
    }
    begin = end;
  }
}

}  // namespace lk
