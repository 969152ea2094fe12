// SPDX-License-Identifier: Apache-2.0
// lorikeet batch: OpenAI's batch files, answered as by `lorikeet serve`, without listening anywhere.
#include <signal.h>

#include "answer_flags.h"
#include "commands.h"
#include "config.h"
#include "help.h"
#include "hub_names.h"
#include "lk/serve/adapters/directory_watcher.h"
#include "lk/serve/batch/batch.h"
#include "lk/serve/http/heap_trimmer.h"
#include "progress_line.h"

namespace lk::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct BatchFlags {
  ModelFlags model;
  AnswerFlags answers;
  std::string input, output, errors, max_body = "8MiB";
};

// Nobody waits for a single answer.
constexpr double kPatience = 30 * 86'400.0;

Result<ServerOptions> server_options(const BatchFlags& flags) {
  ServerOptions options;
  LK_RETURN_IF_ERROR(flags.answers.fill(flags.model, options));
  LK_ASSIGN_OR_RETURN(options.limits.max_body_bytes, parse_size("--max-body", flags.max_body));
  options.limits.max_total_body_bytes = std::max(options.limits.max_total_body_bytes, options.limits.max_body_bytes);
  options.io_threads = 1;
  options.default_timeout_seconds = options.engine.max_wait_seconds = kPatience;
  options.engine.max_queue_requests = int64_t{1} << 40;
  options.engine.max_queue_tokens = int64_t{1} << 60;
  options.stuck_seconds = kPatience;
  options.sse_ping_seconds = 0;
  options.console = false;
  return options;
}

// Threads that begin while it lives never take an interrupt: those go to the main thread, and end its wait for a pipe.
class InterruptsBlocked {
 public:
  InterruptsBlocked() {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGINT);
    ::sigaddset(&signals, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &signals, &before_);
  }
  ~InterruptsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  InterruptsBlocked(const InterruptsBlocked&) = delete;
  InterruptsBlocked& operator=(const InterruptsBlocked&) = delete;

 private:
  sigset_t before_;
};

void show(ProgressLine& line, const BatchProgress& progress) {
  if (!line.due()) return;
  std::string text = fmt::format("{} answered", progress.answered + progress.failed);
  if (progress.failed > 0) text += fmt::format(" ({} failed)", progress.failed);
  if (progress.before > 0) text += fmt::format(", {} before", progress.before);
  text += fmt::format(", {} under way", progress.under_way);
  if (progress.file_bytes > 0)
    text += fmt::format(", {} % of the input read", 100 * progress.bytes_read / progress.file_bytes);
  line.show(text);
}

Result<BatchProgress> answer(const BatchFlags& flags) {
  LK_ASSIGN_OR_RETURN(ServerOptions options, server_options(flags));
  Server* running = nullptr;
  ProgressLine line;
  BatchOptions wanted{.input = flags.input, .output = flags.output, .errors = flags.errors};
  wanted.max_line = static_cast<size_t>(options.limits.max_body_bytes) + 1024;  // what is around a body
  LK_ASSIGN_OR_RETURN(const SchedulerOptions scheduler, flags.model.scheduler.parse());
  wanted.max_under_way = 2 * scheduler.max_running;  // enough that a step never lacks a request
  wanted.stop = &interrupted;
  wanted.on_progress = [&](const BatchProgress& now) {
    show(line, now);
    running->housekeep();
  };
  wanted.on_ignored = [](int64_t line, const std::string& field) {
    fmt::print(stderr, "lorikeet: line {}: the field \"{}\" says nothing to a batch and is ignored\n", line, field);
  };
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Batch> batch, Batch::open(std::move(wanted)));

  LK_RETURN_IF_ERROR(flags.answers.plan_memory(flags.model, options));
  LK_ASSIGN_OR_RETURN(std::unique_ptr<Log> log,
                      Log::create({.level = LogLevel::kWarning, .format = Log::Format::kText}));
  std::optional<InterruptsBlocked> blocked(std::in_place);  // for the threads that begin now
  LK_ASSIGN_OR_RETURN(std::unique_ptr<TextEngine> engine, open_engine(flags.model, options.memory, 0));
  LK_ASSIGN_OR_RETURN(const std::string base, digest_of_base(flags.model, *engine));
  LK_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                      Server::start(options, std::move(engine), nullptr, std::move(log)));
  running = server.get();
  LK_RETURN_IF_ERROR(load_loras(flags.model, *server));
  if (!flags.answers.lora_dirs.empty())  // as they are now
    LK_RETURN_IF_ERROR(DirectoryWatcher::start(server->adapters(), server->log(),
                                               {.directories = flags.answers.lora_dirs,
                                                .interval = std::chrono::hours(24),
                                                .max_eager = flags.answers.lora_eager})
                           .status());
  server->set_ready(true);
  blocked.reset();
  const std::string what = fmt::format("{} {} {}", base, flags.model.dtype, flags.answers.base_name(flags.model));
  Result<BatchProgress> done = batch->run(*server, what);
  line.clear();
  if (interrupted) {
    server->begin_drain(std::chrono::milliseconds(0));
    (void)server->finish_drain(std::chrono::milliseconds(0));
  }
  return done;
}

int run(const BatchFlags& flags) {
  keep_heap_small();
  watch_interrupts();
  ::signal(SIGXFSZ, SIG_IGN);  // a file at its limit is an error of that write, as a full disk is
  const auto start = Clock::now();
  const Result<BatchProgress> done = answer(flags);
  if (interrupted) {
    fmt::print(
        stderr, "lorikeet: interrupted; {}\n",
        flags.output == "-"
            ? "what was answered is written"
            : fmt::format("what was answered is in {}.part, and the same command goes on behind it", flags.output));
    return 130;
  }
  if (!done.ok()) return fail(done.status());
  const int64_t all = done->answered + done->failed;
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  fmt::print(stderr, "{} request{} in {:.1f} s, {} failed{}\n", all, all == 1 ? "" : "s", seconds, done->failed,
             done->before > 0 ? fmt::format("; {} were answered before", done->before) : "");
  return done->failed > 0 ? 1 : 0;
}

}  // namespace

void add_batch(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<BatchFlags>();
  CLI::App* command =
      app.add_subcommand("batch", "Answer a file of requests (OpenAI's batch format), as the server would");
  const char* files = "Input and output";
  flags->model.add_to(*command, true);
  command->alias("run-batch");  // as vLLM calls it
  command
      ->add_option("IN,--input-file", flags->input,
                   "JSON lines with custom_id, method, url and body; - = standard input")
      ->required()
      ->group(files);
  command
      ->add_option("OUT,--output-file", flags->output,
                   "a result for each line, as they come; - = standard output. It is OUT.part until all are there; a "
                   "command that was interrupted goes on with that")
      ->required()
      ->group(files);
  command->add_option("--errors", flags->errors, "file for the results that are no answers, instead of OUT")
      ->group(files);
  command->add_option("--max-body", flags->max_body, "largest request")->capture_default_str()->group(files);
  flags->answers.add_to(*command);
  add_config_options(*command);
  show_in_help(*command,
               options_named("lora lora-dir dtype context threads memory host-memory max-running errors max-body "
                             "served-model-name tool-call-parser reasoning-parser max-answer max-choices "
                             "config print-config check-config"));
  command->callback([flags, &exit_code] {
    // What is wrong with other options is said before anything is downloaded.
    Status status = server_options(*flags).status();
    if (status.ok()) status = flags->model.fetch(Fetch::kFetch);
    exit_code = status.ok() ? run(*flags) : fail(status);
  });
}

}  // namespace lk::apps
