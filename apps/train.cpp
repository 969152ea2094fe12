// SPDX-License-Identifier: Apache-2.0
// lorikeet train: several LoRA jobs over one frozen base, from a YAML file or, for one job, from flags.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>

#include <boost/json.hpp>

#include "commands.h"
#include "help.h"
#include "hub_names.h"
#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/engine/footprint.h"
#include "lk/infer/jsonl.h"
#include "lk/train/metrics_log.h"
#include "lk/train/progress.h"
#include "lk/train/run.h"
#include "training_base.h"

namespace lk::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct TrainFlags {
  std::string file;
  // Of a job without a file: keys and values as they stand in one, written as flags.
  std::string base, data, output, name;
  std::vector<std::string> set;  // section.key=value
  std::string isa = "auto";
  std::optional<int64_t> threads;
  int64_t preview = 0;
  bool check = false;
};

Result<RunConfig> read_run(const TrainFlags& flags) {
  Result<RunConfig> run = invalid_argument("");
  if (!flags.file.empty()) {
    for (const auto& [given, flag] :
         {std::pair(!flags.base.empty(), "--model"), std::pair(!flags.data.empty(), "--data"),
          std::pair(!flags.output.empty(), "--output"), std::pair(!flags.set.empty(), "--set"),
          std::pair(!flags.name.empty(), "--name")})
      if (given) return invalid_argument("{} is for one job without a file; write it into {}", flag, flags.file);
    run = load_run_config(flags.file);
  } else {
    if (flags.base.empty() || flags.data.empty() || flags.output.empty())
      return invalid_argument("give JOBS.yaml, or --model, --data and --output of one job");
    run = parse_job_flags({.base = flags.base,
                           .data = flags.data,
                           .output = flags.output,
                           .name = flags.name.empty() ? "adapter" : flags.name,
                           .set = flags.set});
  }
  if (!run.ok()) return run;
  if (flags.threads) run->threads = *flags.threads;
  for (JobConfig& job : run->jobs) LK_RETURN_IF_ERROR(find_adapter(job.adapter.init_from));
  return run;
}

// --- The base

struct LoadedBase : TrainingBase {
  std::unique_ptr<TextEngine> engine;  // where answers are generated, or null
};

Result<LoadedBase> load_base(const RunConfig& run, const TrainFlags& flags) {
  LoadedBase loaded;
  const DType act = run.dtype == TrainDtype::kF32 ? DType::kF32 : DType::kBF16;
  const auto threads = static_cast<int>(run.threads);
  const bool generates = std::ranges::any_of(run.jobs, [](const JobConfig& job) { return job.eval.exact_match; });
  if (!generates) {
    LK_ASSIGN_OR_RETURN(static_cast<TrainingBase&>(loaded), open_training_base(run.base, act, threads, flags.isa));
    return loaded;
  }
  loaded.base.directory = run.base;
  LK_RETURN_IF_ERROR(find_model(loaded.base.directory));
  // Answers need a few pages; they are made between training steps, on the same weights.
  constexpr int64_t kPageMemory = int64_t{256} << 20;
  TextEngineOptions options{.model = loaded.base.directory, .num_threads = threads, .memory_bytes = kPageMemory};
  options.act = act;
  options.isa = parse_cpu_isa(flags.isa);
  LK_ASSIGN_OR_RETURN(loaded.engine, TextEngine::open(options));
  loaded.base.weights = loaded.engine->engine().shared_weights();
  loaded.base.reserved_bytes =
      kPageMemory + model_footprint(loaded.base.weights->config, act, options.scheduler.max_step_tokens).activations;
  loaded.base.backend = &loaded.engine->engine().backend();
  loaded.text = loaded.engine->shared_text();
  warn(run.base, loaded.base.weights->warnings);
  LK_RETURN_IF_ERROR(check_trainable(loaded.base));
  LK_RETURN_IF_ERROR(take_text(*loaded.text, loaded.base));
  return loaded;
}

// All that a preview needs: no weights are read.
Result<LoadedBase> load_text(const RunConfig& run) {
  LoadedBase loaded;
  std::string& directory = loaded.base.directory = run.base;
  LK_RETURN_IF_ERROR(find_model(directory));
  LK_ASSIGN_OR_RETURN(const ModelConfig config, TextEngine::read_config(directory, ""));
  LK_ASSIGN_OR_RETURN(loaded.text, TextModel::load(directory, config, 0));
  LK_RETURN_IF_ERROR(take_text(*loaded.text, loaded.base));
  return loaded;
}

// --- Exact match

Result<ExactMatch> exact_match(TextEngine& engine, const SampleReader& eval, std::shared_ptr<const Adapter> adapter) {
  const std::string name = adapter->name;
  LK_RETURN_IF_ERROR(engine.add_adapter(std::move(adapter)));
  struct Asked : TextSequence {
    std::string expected;
  };
  const auto ask = [&](int64_t begin, int64_t end) -> Status {
    for (int64_t index = begin; index < end; ++index) {
      LK_ASSIGN_OR_RETURN(std::optional<Exercise> exercise, eval.exercise(index));
      if (!exercise) continue;
      TextRequest request{.adapter = name, .token_ids = std::move(exercise->prompt)};
      request.sampling.temperature = 0;
      const int64_t room = engine.shared_text()->context() - static_cast<int64_t>(request.token_ids.size());
      request.max_tokens = std::min(exercise->max_tokens, room);
      auto sequence = std::make_unique<Asked>();
      sequence->expected = std::move(exercise->answer);
      LK_RETURN_IF_ERROR(engine.submit(std::move(request), std::move(sequence)).status());
    }
    return Status();
  };
  // Some at a time: enough to fill the engine's steps, few enough to stop in between.
  constexpr int64_t kAsked = 64;
  Status status;
  ExactMatch found;
  const int64_t num_records = eval.num_records();
  for (int64_t begin = 0; begin < num_records && status.ok(); begin += kAsked) {
    status =
        interrupted ? Status(StatusCode::kCancelled, "interrupted") : ask(begin, std::min(begin + kAsked, num_records));
    while (engine.has_work()) {
      for (const TextUpdate& update : engine.step()) {
        if (!update.ended) continue;
        const auto& done = static_cast<const Asked&>(*update.ended);
        if (done.completion.finish == FinishReason::kError && status.ok()) status = done.completion.error;
        found.matches += matches_expected(done.completion.text, done.expected);
        ++found.answers;
      }
    }
  }
  engine.remove_adapter(name);
  LK_RETURN_IF_ERROR(status);
  return found;
}

// --- What is shown

void print_forecast(TrainRun& run) {
  const TrainMemory& memory = run.memory();
  fmt::print(stderr, "memory: {} (checkpointing {}), {} in all\n",
             memory_text(memory, run.num_jobs(), run.config().block_tokens), to_string(memory.checkpointing),
             format_bytes(memory.total()));
  for (size_t index = 0; index < run.num_jobs(); ++index) {
    const JobForecast& f = run.forecast(index);
    fmt::print(stderr, "{}: {} samples, {} tokens ({} trained) an epoch{}, {} steps, {} parameters\n",
               run.job(index).plan().name, f.train.samples, f.train.tokens, f.train.loss_tokens,
               f.eval_samples() > 0 ? fmt::format(", {} held out", f.eval_samples()) : "", f.total_steps, f.parameters);
    for (const auto& [count, what] :
         {std::pair(f.train.bad, "bad records skipped"), std::pair(f.train.dropped, "samples dropped, too long"),
          std::pair(f.train.truncated, "samples truncated")})
      if (count > 0) fmt::print(stderr, "{}: {} {}\n", run.job(index).plan().name, count, what);
    if (f.train.endless > 0)
      fmt::print(
          stderr,
          "{}: {} answers end with a token that is not in eos_token_id of the base's generation_config.json: who "
          "serves the adapter will not stop there\n",
          run.job(index).plan().name, f.train.endless);
  }
}

std::string eval_text(const EvalFigures& figures) {
  return fmt::format("loss {:.4f}, perplexity {:.3f}, next tokens right {:.1f} %{}", figures.loss,
                     std::exp(figures.loss), 100 * figures.accuracy,
                     figures.exact_match ? fmt::format(", answers right {:.1f} %", 100 * *figures.exact_match) : "");
}

// Hears what the run does: files of metrics, and what is shown.
class Watcher {
 public:
  Watcher(const RunConfig& config, bool terminal)
      : display_([](std::string_view text) { fmt::print(stderr, "{}", text), std::fflush(stderr); },
                 display_options(terminal)),
        config_(config) {}

  Status open(TrainRun& run) {
    run_ = &run;
    MetricsLog::Options options{
        .jsonl = config_.metrics.empty() ? join_path(config_.output, "metrics.jsonl") : config_.metrics,
        .tensorboard = config_.tensorboard};
    for (size_t index = 0; index < run.num_jobs(); ++index) {
      const TrainJob& job = run.job(index);
      options.steps[job.plan().name] = job.progress().step;
      JobProgress& shown = progress_.emplace_back();
      shown.job = job.plan().name;
      shown.total_steps = job.plan().total_steps;
    }
    path_ = options.jsonl;
    LK_ASSIGN_OR_RETURN(log_, MetricsLog::open(options));
    return Status();
  }

  TrainRunHooks hooks() {
    TrainRunHooks hooks;
    hooks.on_step = [this](TrainJob& job, const StepEvent& event) { step(job, event); };
    hooks.on_eval = [this](TrainJob& job, const EvalEvent& event) { eval(job, event); };
    hooks.on_note = [this](TrainJob& job, const std::string& message) { say(job, message); };
    hooks.on_end = [this](TrainJob& job) {
      say(job, fmt::format("{} at step {}", to_string(job.state()), job.progress().step));
    };
    return hooks;
  }

  void finish() {
    if (!run_) return;
    refresh(true);
    if (!log_) return;
    const std::string svg = std::filesystem::path(path_).replace_extension(".svg").string();
    std::error_code error;  // a device has no neighbours
    if (!std::filesystem::is_regular_file(path_, error)) return;
    if (const Status status = write_file_atomic(svg, loss_curve_svg(log_->curves())); status.ok())
      display_.say(fmt::format("metrics: {}, loss curves: {}", path_, svg));
  }

 private:
  static ProgressDisplay::Options display_options(bool terminal) {
    ProgressDisplay::Options options{.terminal = terminal};
    struct winsize size {};
    if (terminal && ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
      options.rows = size.ws_row;
      options.columns = size.ws_col;
    }
    return options;
  }
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  void say(const TrainJob& job, const std::string& message) {
    display_.say(fmt::format("{}: {}", job.plan().name, message));
  }
  // Metrics that cannot be written are said once; training goes on.
  void keep(const Status& status) {
    if (status.ok() || std::exchange(log_failed_, true)) return;
    display_.say("metrics: " + status.message());
  }
  JobProgress& shown(const TrainJob& job) { return *std::ranges::find(progress_, job.plan().name, &JobProgress::job); }

  void step(TrainJob& job, const StepEvent& event) {
    if (event.skipped) say(job, fmt::format("step {} skipped: its loss or gradient is not finite", event.step));
    const double seconds = now();
    Clocked& clock = clocks_[job.plan().name];
    const double rate = static_cast<double>(event.tokens) / std::max(seconds - clock.last_s, 1e-9);
    clock.last_s = seconds;
    const auto records = static_cast<double>(job.data().num_records());
    const DataCursor& cursor = job.progress().cursor;
    if (log_)
      keep(log_->add(
          StepMetrics{.job = job.plan().name,
                      .step = event.step,
                      .epoch = static_cast<double>(cursor.epoch) + static_cast<double>(cursor.index) / records,
                      .loss = event.loss,
                      .learning_rate = event.rate,
                      .grad_norm = event.gradient_norm,
                      .tokens = event.tokens,
                      .loss_tokens = event.loss_tokens,
                      .tokens_per_second = rate,
                      .seconds = seconds}));
    JobProgress& progress = shown(job);
    progress.loss = event.loss;
    progress.tokens += event.tokens;
    refresh(false);
  }

  void eval(TrainJob& job, const EvalEvent& event) {
    say(job, fmt::format("evaluation at step {}: {}", event.step, eval_text(event)));
    const auto metrics = [&](const EvalFigures& figures, const std::string& file) {
      return EvalMetrics{.job = job.plan().name,
                         .step = event.step,
                         .loss = figures.loss,
                         .perplexity = std::exp(figures.loss),
                         .accuracy = figures.accuracy,
                         .loss_tokens = figures.loss_tokens,
                         .exact_match = figures.exact_match,
                         .seconds = now(),
                         .file = file};
    };
    if (log_) keep(log_->add(metrics(event, "")));
    for (size_t index = 0; event.sets.size() > 1 && index < event.sets.size(); ++index) {
      const std::string& file = job.eval()[index].name;
      say(job, fmt::format("  {}: {}", file, eval_text(event.sets[index])));
      if (log_) keep(log_->add(metrics(event.sets[index], file)));
    }
    shown(job).eval_loss = event.loss;
  }

  void refresh(bool last) {
    for (size_t index = 0; index < progress_.size(); ++index) {
      const TrainJob& job = run_->job(index);
      progress_[index].step = job.progress().step;
      progress_[index].state = to_string(job.state());
    }
    if (last)
      display_.finish(progress_, now());
    else
      display_.update(progress_, now());
  }

  struct Clocked {
    double last_s = 0;
  };
  ProgressDisplay display_;
  const RunConfig& config_;
  TrainRun* run_ = nullptr;
  std::unique_ptr<MetricsLog> log_;
  std::string path_;
  std::vector<JobProgress> progress_;
  std::map<std::string, Clocked> clocks_;
  bool log_failed_ = false;
  const Clock::time_point start_ = Clock::now();
};

int run_train(const TrainFlags& flags) {
  const Result<RunConfig> config = read_run(flags);
  if (!config.ok()) return fail(config.status());
  if (flags.preview > 0) {
    const Result<LoadedBase> words = load_text(*config);
    if (!words.ok()) return fail(words.status());
    const Result<std::string> text =
        preview_run(*config, words->base, flags.preview, ::isatty(STDOUT_FILENO) != 0, [] { return interrupted != 0; });
    if (!text.ok()) return fail(text.status());
    fmt::print("{}", *text);
    return 0;
  }
  Result<LoadedBase> loaded = load_base(*config, flags);
  if (!loaded.ok()) return fail(loaded.status());
  Watcher watcher(*config, stderr_is_terminal());
  TrainRunHooks hooks = watcher.hooks();
  if (loaded->engine)
    hooks.exact_match = [&](const SampleReader& eval, std::shared_ptr<const Adapter> adapter) {
      return exact_match(*loaded->engine, eval, std::move(adapter));
    };
  const auto stop = [] { return interrupted != 0; };
  Result<std::unique_ptr<TrainRun>> run = TrainRun::create(*config, loaded->base, std::move(hooks), stop);
  if (!run.ok() && run.status().code() == StatusCode::kCancelled && !flags.check) {
    fmt::print(stderr, "stopped before anything was trained; the same command begins anew, or goes on\n");
    return 0;  // as when training is stopped: nothing is lost
  }
  if (!run.ok()) return fail(run.status());
  print_forecast(**run);
  if (flags.check) return 0;
  if (const Status claimed = (*run)->claim(); !claimed.ok()) return fail(claimed);
  if (const Status opened = watcher.open(**run); !opened.ok()) return fail(opened);
  const Status status = (*run)->train(stop);
  watcher.finish();
  return status.ok() ? 0 : fail(status);
}

}  // namespace

void add_train(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = app.add_subcommand("train", "Train LoRA adapters: many jobs in one pass over one base");
  command->add_option("JOBS", flags->file, "YAML file of jobs (docs/guide/training.md)");
  command->add_option("--model", flags->base,
                      "one job without a file: Hugging Face model directory, or its name on the hub");
  command->add_option("--data", flags->data, "its training data, JSONL");
  command->add_option("--output", flags->output, "where its adapter goes");
  command->add_option("--name", flags->name, "of the job")->default_str("adapter");
  command->add_option("--set", flags->set, "any other key of a jobs file, e.g. train.lr=1e-4; repeatable")
      ->type_name("KEY=VALUE");
  command->add_option("--threads", flags->threads, "kernel threads; 0 = every core this process may use")
      ->check(CLI::Range(0, 1024));
  command->add_option("--isa", flags->isa, "instruction set of the kernels")
      ->check(CLI::IsMember(isa_choices()))
      ->capture_default_str();
  command->add_option("--preview", flags->preview, "show so many samples of each job, what is trained marked, and end")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}));
  command->add_flag("--check", flags->check, "read all data, say what training would take, and end");
  command->callback([flags, &exit_code] {
    watch_interrupts();
    exit_code = run_train(*flags);
  });
}

}  // namespace lk::apps
