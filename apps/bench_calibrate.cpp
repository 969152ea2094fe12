// SPDX-License-Identifier: Apache-2.0
// lorikeet bench calibrate: measures the steps of the real engine on this machine and fits the simulator's cost model
// to them.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>

#include "commands.h"
#include "lk/base/file.h"
#include "lk/base/rng.h"
#include "lk/kernels/bench.h"
#include "lk/lora/adapter_files.h"
#include "lk/lora_tools/save.h"
#include "lk/sim/cost_fit.h"
#include "lk/sim/step_shape.h"

namespace lk::apps {
namespace {

using Clock = std::chrono::steady_clock;
using sim::CostModel;
using sim::StepSample;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

struct CalibrateFlags {
  ModelFlags model;
  std::string targets = "all", out;
  std::vector<int64_t> ranks{8, 64};
  uint64_t seed = 1;
  int rounds = 2;
  bool cpu_time = false;
};

double cpu_us() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

// The engine, with a note of what each step computed and how long it took.
class RecordingExecutor : public Executor {
 public:
  RecordingExecutor(Engine& engine, std::vector<int64_t> ranks, bool cpu_time)
      : engine_(engine), shape_(std::move(ranks)), cpu_time_(cpu_time) {}

  Micros now() const override { return engine_.now(); }
  int64_t footprint(AdapterId adapter) const override { return engine_.footprint(adapter); }
  void evicted(AdapterId adapter) override { engine_.evicted(adapter); }
  void start_load(AdapterId adapter, std::span<const PageId> pages) override {
    load_started_[adapter] = Clock::now();
    engine_.start_load(adapter, pages);
  }
  std::vector<LoadResult> take_finished_loads(bool wait) override {
    std::vector<LoadResult> done = engine_.take_finished_loads(wait);
    // Only a load that somebody waited for alone has an exact end.
    if (wait && done.size() == 1 && load_started_.size() == 1)
      load_bytes_s_.push_back(static_cast<double>(engine_.footprint(done[0].adapter) * engine_.page_bytes()) /
                              us_since(load_started_[done[0].adapter]) * 1e6);
    for (const LoadResult& load : done) load_started_.erase(load.adapter);
    return done;
  }
  std::span<ItemResult> execute(const StepPlan& plan) override {
    sim::StepShape shape = shape_.build(plan);
    const auto start = Clock::now();
    const double cpu_start = cpu_us();
    const std::span<ItemResult> results = engine_.execute(plan);
    samples.push_back({std::move(shape), cpu_time_ ? cpu_us() - cpu_start : us_since(start)});
    return results;
  }
  double load_bytes_s() {
    if (load_bytes_s_.empty()) return 0;
    std::sort(load_bytes_s_.begin(), load_bytes_s_.end());
    return load_bytes_s_[load_bytes_s_.size() / 2];
  }

  std::vector<StepSample> samples;

 private:
  Engine& engine_;
  sim::ShapeBuilder shape_;
  const bool cpu_time_;
  std::map<AdapterId, Clock::time_point> load_started_;
  std::vector<double> load_bytes_s_;
};

struct Job {
  int64_t prompt, output;
  AdapterId adapter;
};

class Calibration {
 public:
  Calibration(const CalibrateFlags& flags, TextEngine& text, std::vector<AdapterId> adapters,
              std::vector<int64_t> ranks)
      : flags_(flags),
        engine_(text.engine()),
        vocab_(text.config().vocab_size),
        adapters_(std::move(adapters)),
        executor_(engine_, std::move(ranks), flags.cpu_time),
        rng_(flags.seed) {}

  RecordingExecutor& executor() { return executor_; }

  // All jobs at once, to their ends.
  Status run(const std::vector<Job>& jobs, int64_t max_running) {
    UnifiedPool pool(engine_.num_pages());
    Scheduler scheduler({.max_step_tokens = flags_.model.scheduler.options.max_step_tokens,
                         .max_running = max_running,
                         .prefix_cache = false},
                        pool, executor_);
    RequestId id = 0;
    for (const Job& job : jobs) {
      Request request{.id = ++id, .adapter = job.adapter, .max_tokens = job.output, .sampling = {.temperature = 0}};
      for (int64_t i = 0; i < job.prompt; ++i)
        request.prompt.push_back(static_cast<int32_t>(rng_.below(static_cast<uint64_t>(vocab_))));
      LK_RETURN_IF_ERROR(scheduler.submit(std::move(request)));
    }
    while (scheduler.has_work() && !interrupted)
      for (const RequestEvent& event : scheduler.step()) LK_RETURN_IF_ERROR(event.error);
    return interrupted ? Status(StatusCode::kCancelled, "interrupted") : Status();
  }

  // Decoding at several batch sizes and contexts, prompts of several lengths; with no, one and many adapters.
  Status measure() {
    for (const int64_t batch : {1, 2, 4, 8, 16, 32})
      for (const int kind : {0, 1, 2})
        if (kind == 0 || batch == 1 || batch == 4 || batch == 16)
          LK_RETURN_IF_ERROR(run(decode_jobs(batch, 12, 6, kind), 64));
    LK_RETURN_IF_ERROR(run(decode_jobs(4, 256, 6, 0), 64));
    for (const int64_t prompt : {32, 64, 128, 256, 512}) LK_RETURN_IF_ERROR(run({{prompt, 1, kBaseModel}}, 64));
    for (const int64_t prompt : {64, 256}) LK_RETURN_IF_ERROR(run({{prompt, 1, adapters_.front()}}, 64));
    return Status();
  }

  // Mixed traffic that the fit has not seen.
  Status validate() {
    std::vector<Job> jobs;
    for (int i = 0; i < 24; ++i)
      jobs.push_back({8 + static_cast<int64_t>(rng_.below(120)), 4 + static_cast<int64_t>(rng_.below(20)),
                      rng_.below(4) == 0 ? kBaseModel : adapters_[rng_.below(adapters_.size())]});
    return run(jobs, 10);
  }

 private:
  std::vector<Job> decode_jobs(int64_t batch, int64_t prompt, int64_t output, int kind) const {
    std::vector<Job> jobs;
    for (int64_t i = 0; i < batch; ++i)
      jobs.push_back({prompt, output,
                      kind == 0   ? kBaseModel
                      : kind == 1 ? adapters_.back()
                                  : adapters_[static_cast<size_t>(i) % adapters_.size()]});
    return jobs;
  }

  const CalibrateFlags& flags_;
  Engine& engine_;
  const int64_t vocab_;
  const std::vector<AdapterId> adapters_;
  RecordingExecutor executor_;
  Rng rng_;
};

// Sizes by arithmetic; rates as a first guess, from the machine's own limits.
CostModel initial_model(const CalibrateFlags& flags, TextEngine& text, const std::vector<std::string>& targets) {
  const ModelConfig& c = text.config();
  const bool f32 = flags.model.dtype == "f32";
  const double elem = f32 ? 4 : 2, layers = static_cast<double>(c.num_layers);
  double weights = 0, widths = 0;
  for (int p = 0; p < kNumProjs; ++p) {
    const auto proj = static_cast<Proj>(p);
    const auto in = static_cast<double>(in_dim(proj, c)), out = static_cast<double>(out_dim(proj, c));
    weights += in * out * layers;
    const std::string name = hf_name(proj);
    if (std::any_of(targets.begin(), targets.end(), [&](const std::string& target) { return name.ends_with(target); }))
      widths += (in + out) * layers;
  }
  const double head = static_cast<double>(c.hidden_dim) * static_cast<double>(c.vocab_size);
  ThreadPool pool(text.engine().backend().num_host_threads());
  const MachineLimits limits = measure_machine_limits(pool);
  CostModel model{.name = "calibrated"};
  model.weight_bytes = weights * elem;
  model.head_bytes = head * elem;
  model.flops_per_token = 2 * weights;
  model.head_flops_per_token = 2 * head;
  model.memory_bytes_s = model.attention_bytes_s = limits.read_gb_s * 1e9;
  model.flops_s = model.adapter_flops_s = (f32 ? limits.f32_gflop_s : limits.bf16_gflop_s) * 1e9;
  model.kv_bytes_per_token = static_cast<double>(text.engine().page_bytes()) / static_cast<double>(kPageTokens);
  model.attention_flops_per_pair = 4 * static_cast<double>(c.q_dim()) * layers;
  model.adapter_bytes_per_rank = widths * elem;
  model.adapter_flops_per_rank = 2 * widths;
  model.disk_bytes_s = 1e9;
  model.pool_bytes = static_cast<double>(text.engine().num_pages() * text.engine().page_bytes());
  model.max_step_tokens = static_cast<double>(flags.model.scheduler.options.max_step_tokens);
  model.max_running = static_cast<double>(flags.model.scheduler.options.max_running);
  return model;
}

// Four adapters of each rank; their files live in a directory that is used again.
Status add_adapters(const CalibrateFlags& flags, const std::vector<std::string>& targets, TextEngine& text,
                    std::vector<AdapterId>& ids, std::vector<int64_t>& ranks) {
  const ModelConfig& c = text.config();
  const std::string base = (std::filesystem::temp_directory_path() /
                            fmt::format("lorikeet-calibrate-{}x{}x{}", c.num_layers, c.hidden_dim, c.intermediate_dim))
                               .string();
  LK_RETURN_IF_ERROR(make_directories(base));
  for (int i = 0; i < 4; ++i)
    for (const int64_t rank : flags.ranks) {
      const std::string name = fmt::format("{}-r{}-{}", flags.targets, rank, i), directory = join_path(base, name);
      if (!file_exists(join_path(directory, kAdapterWeightsFile)))
        LK_RETURN_IF_ERROR(init_adapter(
            c, {.rank = rank, .targets = targets, .seed = static_cast<uint64_t>(i), .dtype = DType::kBF16}, directory));
      LK_RETURN_IF_ERROR(text.add_adapter(name, directory));
      ids.push_back(text.adapters().at(name));
      ranks.resize(std::max(ranks.size(), static_cast<size_t>(ids.back()) + 1));
      ranks[static_cast<size_t>(ids.back())] = rank;
    }
  return Status();
}

Status run_calibrate(CalibrateFlags& flags) {
  for (const int64_t rank : flags.ranks)
    if (rank < 1 || rank > 1024) return invalid_argument("--ranks must be 1..1024, got {}", rank);
  if (flags.cpu_time && flags.model.threads != 1)
    return invalid_argument("--cpu-time needs --threads 1: threads that wait for each other also count");
  LK_ASSIGN_OR_RETURN(const std::vector<std::string> targets, parse_targets(flags.targets));
  LK_ASSIGN_OR_RETURN(std::unique_ptr<TextEngine> text, flags.model.open());
  std::vector<AdapterId> ids;
  std::vector<int64_t> ranks;
  LK_RETURN_IF_ERROR(add_adapters(flags, targets, *text, ids, ranks));
  watch_interrupts();
  CostModel model = initial_model(flags, *text, targets);
  Calibration calibration(flags, *text, ids, ranks);
  // Touches pages and caches; not counted.
  LK_RETURN_IF_ERROR(calibration.run({{16, 3, kBaseModel}, {16, 3, ids.front()}}, 64));
  RecordingExecutor& executor = calibration.executor();
  executor.samples.clear();
  // In turn, so that a machine that changes its speed does so for both.
  std::vector<StepSample> training, unseen_steps;
  for (int i = 0; i < flags.rounds; ++i)
    for (const bool train : {true, false}) {
      LK_RETURN_IF_ERROR(train ? calibration.measure() : calibration.validate());
      std::vector<StepSample>& into = train ? training : unseen_steps;
      into.insert(into.end(), executor.samples.begin(), executor.samples.end());
      executor.samples.clear();
    }
  model = sim::fit_cost_model(model, training);
  model.load_bytes_s = executor.load_bytes_s() > 0 ? executor.load_bytes_s() : model.memory_bytes_s;
  const sim::FitError fit = sim::fit_error(model, training), unseen = sim::fit_error(model, unseen_steps);
  model.description = fmt::format(
      "measured by lorikeet bench calibrate: {} layers x {}, {}, {} threads, {} adapters; median error {:.1f} % on "
      "unseen traffic",
      text->config().num_layers, text->config().hidden_dim, flags.model.dtype,
      text->engine().backend().num_host_threads(), flags.targets, unseen.median * 100);
  LK_RETURN_IF_ERROR(validate(model));
  fmt::print("weights    read at {:.1f} GB/s, products at {:.0f} GFLOP/s\n", model.memory_bytes_s * 1e-9,
             model.flops_s * 1e-9);
  fmt::print("per step   {:.1f} us; per row {:.2f} us; per sequence {:.2f} us; KV read at {:.1f} GB/s\n", model.step_us,
             model.token_us, model.sequence_us, model.attention_bytes_s * 1e-9);
  fmt::print("adapters   {:.1f} us a step, {:.2f} us a segment, products at {:.0f} GFLOP/s; loads at {:.2f} GB/s\n",
             model.adapter_step_us, model.segment_us, model.adapter_flops_s * 1e-9, model.load_bytes_s * 1e-9);
  fmt::print("fitted     {:4} steps: error median {:.1f} %, p90 {:.1f} %, of their sum {:+.1f} %\n", training.size(),
             fit.median * 100, fit.p90 * 100, fit.total * 100);
  fmt::print("unseen     {:4} steps: error median {:.1f} %, p90 {:.1f} %, of their sum {:+.1f} %\n",
             unseen_steps.size(), unseen.median * 100, unseen.p90 * 100, unseen.total * 100);
  return flags.out.empty() ? Status() : write_file_atomic(flags.out, to_json(model));
}

}  // namespace

void add_bench_calibrate(CLI::App& bench, int& exit_code) {
  auto flags = std::make_shared<CalibrateFlags>();
  CLI::App* command =
      bench.add_subcommand("calibrate", "Measure this machine's cost model for `lorikeet simulate --model`");
  flags->model.add_to(*command, false);
  command->add_option("--targets", flags->targets, "of the adapters: all, attention, or a list of projections")
      ->capture_default_str();
  command->add_option("--ranks", flags->ranks, "of the random adapters that are measured")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "more are steadier")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "of the prompts")->capture_default_str();
  command->add_flag("--cpu-time", flags->cpu_time,
                    "with --threads 1 on a machine with other work: count CPU time instead of elapsed time");
  command->add_option("--out", flags->out, "write the cost model here")->type_name("FILE.json");
  command->callback([flags, &exit_code] {
    if (Status status = run_calibrate(*flags); !status.ok()) exit_code = fail(status);
  });
}

}  // namespace lk::apps
