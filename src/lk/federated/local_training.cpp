// SPDX-License-Identifier: Apache-2.0
#include "lk/federated/local_training.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lk/base/memory_limits.h"
#include "lk/base/rng.h"
#include "lk/base/sha256.h"
#include "lk/lora_tools/adapter_rules.h"
#include "lk/train/job_sections.h"
#include "lk/train/run_plan.h"

namespace lk {
namespace {

// A number of a name, the same everywhere.
uint64_t number_of(const std::string& name) {
  Sha256 sha;
  sha.update(name.data(), name.size());
  const std::array<uint8_t, 32> digest = sha.finish();
  uint64_t number = 0;
  for (size_t i = 0; i < 8; ++i) number = number << 8 | digest[i];
  return number;
}

class Losses : public TrainObserver {
 public:
  struct Sums {
    double loss = 0;
    int64_t steps = 0, tokens = 0;
  };
  void on_step(TrainJob& job, const StepEvent& event) override {
    if (event.skipped) return;
    Sums& sums = of_[job.plan().name];
    sums.loss += event.loss;
    ++sums.steps;
    sums.tokens += event.tokens;
  }
  void on_eval(TrainJob&, const EvalEvent&) override {}
  void on_end(TrainJob&) override {}
  const Sums& of(const std::string& name) { return of_[name]; }

 private:
  std::map<std::string, Sums> of_;
};

// after - before in the type of the wire.
std::vector<float> change_of(std::span<const float> before, std::span<const float> after, TrainDtype wire) {
  std::vector<float> change(after.size());
  for (size_t i = 0; i < change.size(); ++i) {
    change[i] = static_cast<float>(static_cast<double>(after[i]) - static_cast<double>(before[i]));
    if (wire == TrainDtype::kBf16) change[i] = static_cast<float>(bf16(change[i]));
  }
  return change;
}

}  // namespace

// --- Data

Result<std::unique_ptr<LocalTraining>> LocalTraining::create(const FederatedConfig& config, const TrainBase& base,
                                                             const AskStop& stop) {
  std::unique_ptr<LocalTraining> training(new LocalTraining(config, base, stop));
  LK_RETURN_IF_ERROR(training->open(stop));
  return training;
}

// The order of a client's records in a round is of (seed, client, round): a client that is asked anew, or somewhere
// else, takes the same ones.
JobConfig LocalTraining::job_of(const ClientSpec& client, int64_t round) const {
  JobConfig job;
  job.name = client.name;
  job.data = config_.data;
  job.data.path = client.path;
  job.train = config_.train;
  job.train.seed = mix64(mix64(config_.seed ^ number_of(client.name)) + static_cast<uint64_t>(round));
  return job;
}

Status LocalTraining::open(const AskStop& stop) {
  for (const ClientSpec& client : config_.clients) {
    if (client.path.empty())
      return invalid_argument("client {}: its records are elsewhere (clients.names); here files are needed",
                              client.name);
    JobConfig job = job_of(client, 0);
    Result<JobData> data = source_.open(job);
    if (!data.ok()) return data.status().with_context("client " + client.name);
    Result<JobForecast> forecast = source_.survey(*data, {}, job.train);
    if (!forecast.ok()) return forecast.status().with_context("client " + client.name);
    data_[client.name] = {forecast->train, job.train, data->digest};
    LK_RETURN_IF_ERROR(check_stop(stop));
  }
  if (config_.eval_path.empty()) return Status();
  // A job's evaluation sets are what is wanted; its own records are not read.
  JobConfig job = job_of(config_.clients[0], 0);
  job.data.eval_path = config_.eval_path;
  Result<JobData> data = source_.open(job);
  if (!data.ok()) return data.status().with_context("eval.path");
  Result<JobForecast> forecast = source_.survey(*data, {}, job.train);
  if (!forecast.ok()) return forecast.status().with_context("eval.path");
  eval_ = std::move(data->eval);
  return Status();
}

std::map<std::string, std::string> LocalTraining::digests() const {
  std::map<std::string, std::string> digests;
  for (const auto& [name, data] : data_) digests[name] = data.digest;
  return digests;
}

// --- What lies below

Result<std::shared_ptr<const BaseOverlay>> LocalTraining::make_overlay(const RoundBase& below, bool sparse_is_below) {
  std::vector<ModuleId> modules;
  if (below.overlay)
    for (const auto& [module, each] : *below.overlay) modules.push_back(module);
  const bool sparse = sparse_is_below && below.sparse && !below.sparse->empty();
  if (sparse)
    for (const auto& [module, values] : *below.sparse)
      if (std::ranges::find(modules, module) == modules.end()) modules.push_back(module);
  if (modules.empty()) return std::shared_ptr<const BaseOverlay>();
  return BaseOverlay::create(*base_.weights, *base_.backend, modules, [&](ModuleId module, std::span<float> w) {
    if (sparse)
      if (const auto values = below.sparse->find(module); values != below.sparse->end())
        SparseMask::add_to(below.mask->modules().at(module), values->second, w);
    if (!below.overlay || !below.overlay->contains(module)) return;
    const ScaledFactors& change = below.overlay->at(module);
    const DeltaFactors& f = change.factors;
    for (int64_t o = 0; o < f.out; ++o)
      for (int64_t k = 0; k < f.rank; ++k) {
        const auto factor =
            static_cast<float>(change.scaling * static_cast<double>(f.b[static_cast<size_t>(o * f.rank + k)]));
        for (int64_t i = 0; i < f.in; ++i)
          w[static_cast<size_t>(o * f.in + i)] += factor * f.a[static_cast<size_t>(k * f.in + i)];
      }
  });
}

Result<TrainableOptions> LocalTraining::options_of(const LocalTask& task, const RoundBase& below,
                                                   std::shared_ptr<const BaseOverlay> overlay) {
  TrainableOptions options{.freeze_a = task.freeze_a,
                           .freeze_b = task.freeze_b,
                           .dropout = config_.adapter.dropout.value_or(0),
                           .overlay = std::move(overlay),
                           .proximal = config_.rule.proximal > 0};
  if (!task.sparse) return options;
  if (uploaded_ != below.mask) {
    LK_ASSIGN_OR_RETURN(device_mask_, DeviceMask::create(*below.mask, *base_.backend));
    uploaded_ = below.mask;
  }
  options.mask = device_mask_;
  options.sparse = std::make_shared<SparseValues>(*below.sparse);
  return options;
}

// --- Training

// The schedule goes over all rounds; slora's two stages have one each.
double LocalTraining::rate_at(const LocalTask& task, const TrainSpec& spec, int64_t step) const {
  const RuleSpec& rule = config_.rule;
  const int64_t first_stage = rule.name == FederatedRule::kSlora ? rule.stage1_rounds : 0;
  const int64_t done = task.round - 1 - (task.sparse ? 0 : first_stage);
  const int64_t rounds = task.sparse ? first_stage : config_.rounds - first_stage;
  TrainSpec own = spec;
  if (task.sparse && rule.stage1_lr > 0) own.lr = rule.stage1_lr;
  return learning_rate_at(own, done * config_.train.steps + step, rounds * config_.train.steps);
}

Result<std::vector<ClientResult>> LocalTraining::train(std::span<const ClientTask> tasks, const RoundBase& below,
                                                       const AskStop& stop) {
  std::vector<ClientResult> results;
  if (tasks.empty()) return results;
  LK_ASSIGN_OR_RETURN(const auto overlay, make_overlay(below, !tasks[0].task.sparse));
  const size_t together = config_.together > 0 ? static_cast<size_t>(config_.together) : tasks.size();
  for (size_t first = 0; first < tasks.size(); first += together)
    LK_RETURN_IF_ERROR(
        train_group(tasks.subspan(first, std::min(together, tasks.size() - first)), below, overlay, stop, results));
  return results;
}

Status LocalTraining::train_group(std::span<const ClientTask> tasks, const RoundBase& below,
                                  const std::shared_ptr<const BaseOverlay>& overlay, const AskStop& stop,
                                  std::vector<ClientResult>& results) {
  const MemoryNow now{.available = read_memory_limits().available,
                      .held = std::max<int64_t>(0, read_resident_bytes() - base_bytes(*base_.weights)),
                      .reserved = base_.reserved_bytes};
  RunConfig room;
  room.block_tokens = config_.block_tokens;
  room.memory_bytes = config_.memory_bytes;
  std::vector<PlannedJob> planned;
  std::vector<TrainableOptions> options;
  for (const ClientTask& each : tasks) {
    LK_ASSIGN_OR_RETURN(TrainableOptions own, options_of(each.task, below, overlay));
    own.dropout_seed = mix64(job_of({.name = each.client, .path = {}}, each.task.round).train.seed);
    const auto start = adapter_of(each.task.start, base_.weights->config, each.client);
    LK_ASSIGN_OR_RETURN(const TrainableAdapter::Sizes sizes,
                        TrainableAdapter::sizes(*start, *base_.weights, *base_.backend, own));
    planned.push_back({.state_bytes = sizes.bytes,
                       .making_bytes = sizes.copy_bytes,
                       .longest_sample = data_.at(each.client).counts.longest,
                       .needs = sizes.needs});
    options.push_back(std::move(own));
  }
  LK_ASSIGN_OR_RETURN(const RunPlan plan, plan_run(room, base_.weights, *base_.backend, planned, now));
  LK_ASSIGN_OR_RETURN(const auto pass, TrainPass::create(base_.weights, *base_.backend, plan.pass));

  std::vector<std::unique_ptr<TrainJob>> jobs;
  for (size_t index = 0; index < tasks.size(); ++index) {
    const ClientTask& each = tasks[index];
    const ClientSpec& client = *std::ranges::find(config_.clients, each.client, &ClientSpec::name);
    LK_ASSIGN_OR_RETURN(JobData data, source_.open(job_of(client, each.task.round)));
    const auto start = adapter_of(each.task.start, base_.weights->config, each.client);
    LK_ASSIGN_OR_RETURN(auto adapter, TrainableAdapter::create(*start, *base_.weights, *base_.backend, options[index]));
    const TrainSpec& spec = data_.at(each.client).train;
    TrainJobPlan job{.name = each.client,
                     .batch_samples = spec.batch_samples,
                     .batch_tokens = spec.batch_tokens,
                     .total_steps = config_.train.steps,
                     .rate = [this, task = each.task, spec](int64_t step) { return rate_at(task, spec, step); },
                     .dials = dials_of(spec)};
    job.dials.proximal = config_.rule.proximal;
    jobs.push_back(
        std::make_unique<TrainJob>(std::move(job), std::move(adapter), std::move(data.train), std::vector<EvalSet>()));
  }
  Losses losses;
  Trainer trainer(*pass, std::move(jobs), losses);
  while (trainer.advance(stop)) LK_RETURN_IF_ERROR(check_stop(stop));

  for (size_t index = 0; index < tasks.size(); ++index) {
    TrainJob& job = *trainer.jobs()[index];
    const LocalTask& task = tasks[index].task;
    ClientResult& result = results.emplace_back();
    result.client = tasks[index].client;
    if (job.state() != TrainState::kDone) {
      result.failure = job.failure();
      continue;
    }
    const Losses::Sums& sums = losses.of(result.client);
    result.loss = sums.steps > 0 ? sums.loss / static_cast<double>(sums.steps) : 0;
    result.tokens = sums.tokens;
    ClientUpdate& update = result.update;
    update.client = result.client;
    update.round = task.round;
    update.num_examples = num_examples(result.client);
    const auto add = [&](ModuleId module, const char* what, std::span<const float> before,
                         std::span<const float> after) {
      update.tensors[update_tensor_name(module, what)] = change_of(before, after, config_.wire);
    };
    if (task.sparse) {
      for (const auto& [module, values] : job.adapter().sparse_values())
        add(module, kUpdateSparse, below.sparse->at(module), values);
      continue;
    }
    LK_ASSIGN_OR_RETURN(const ModuleFactors after, factors_of(job.adapter().snapshot()));
    const bool own_b = config_.rule.name == FederatedRule::kFedSa;
    for (const auto& [module, each] : after) {
      const DeltaFactors& before = task.start.at(module).factors;
      if (!task.freeze_a) add(module, kUpdateA, before.a, each.factors.a);
      if (!task.freeze_b && !own_b) add(module, kUpdateB, before.b, each.factors.b);
      if (own_b) {
        update.personal[module] = each;
        update.personal[module].factors.a.clear();
      }
    }
  }
  return Status();
}

// --- Evaluation

Result<std::vector<EvalResult>> LocalTraining::evaluate(const LocalTask& task, const RoundBase& below,
                                                        const AskStop& stop) {
  std::vector<EvalResult> results;
  if (eval_.empty()) return results;
  LK_ASSIGN_OR_RETURN(const auto overlay, make_overlay(below, !task.sparse));
  LK_ASSIGN_OR_RETURN(TrainableOptions options, options_of(task, below, overlay));
  options.proximal = options.freeze_a = options.freeze_b = false;
  const auto model = adapter_of(task.start, base_.weights->config, "global");
  LK_ASSIGN_OR_RETURN(const auto adapter, TrainableAdapter::create(*model, *base_.weights, *base_.backend, options));
  LK_ASSIGN_OR_RETURN(const auto pass, TrainPass::create(base_.weights, *base_.backend,
                                                         {.max_rows = config_.block_tokens,
                                                          .needs = adapter->needs(),
                                                          .checkpointing = Checkpointing::kFull}));
  for (EvalSet& set : eval_) {
    EvalResult& result = results.emplace_back();
    result.file = set.name;
    double loss = 0, weights = 0;
    int64_t greedy = 0;
    const auto run = [&](const TokenBlock& block) {
      const RowLosses rows = pass->evaluate(block);
      for (size_t row = 0; row < rows.losses.size(); ++row) {
        const auto weight = static_cast<double>(block.weights[row]);
        if (weight == 0) continue;
        loss += weight * static_cast<double>(rows.losses[row]);
        weights += weight;
        greedy += rows.greedy[row];
        ++result.loss_tokens;
      }
    };
    TokenBlock block;
    set.data.seek({});
    for (;;) {
      LK_RETURN_IF_ERROR(check_stop(stop));
      LK_ASSIGN_OR_RETURN(const std::optional<Sample> sample, set.data.next_in_epoch());
      if (!sample) break;
      LK_RETURN_IF_ERROR(pass->accepts(sample->ids));
      if (block.num_rows() + std::ssize(sample->ids) > pass->max_rows()) {
        run(block);
        block = {};
      }
      block.add(sample->ids, sample->weights, 0, adapter.get());
    }
    if (block.num_rows() > 0) run(block);
    result.loss = loss / weights;
    result.accuracy = static_cast<double>(greedy) / static_cast<double>(std::max<int64_t>(result.loss_tokens, 1));
  }
  return results;
}

}  // namespace lk
