// SPDX-License-Identifier: Apache-2.0
// lorikeet generate: prompts on the command line, or a JSON-lines batch; all requests share every step.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>

#include "commands.h"
#include "config.h"
#include "help.h"
#include "lk/base/file.h"
#include "lk/infer/jsonl.h"
#include "lk/infer/request_fields.h"
#include "progress_line.h"

namespace lk::apps {
namespace {

using Clock = std::chrono::steady_clock;

struct GenerateFlags {
  ModelFlags model;
  std::vector<std::string> prompts, adapters, stop;
  std::string input, output = "-", format = "jsonl";
  bool chat = false;
  TextRequest defaults;
  int64_t seed = 0;
};

struct Totals {
  int64_t requests = 0, failed = 0, prompt_tokens = 0, output_tokens = 0;
  std::map<std::string, std::pair<int64_t, int64_t>>
      matches;  // adapter -> exact matches, requests with an expected answer
  Clock::time_point start = Clock::now();

  void add(const Completion& completion) {
    ++requests;
    failed += completion.finish == FinishReason::kError;
    prompt_tokens += completion.prompt_tokens;
    output_tokens += static_cast<int64_t>(completion.token_ids.size());
  }
  void add_match(const std::string& adapter, bool matched) {
    auto& [count, total] = matches[adapter.empty() ? "base" : adapter];
    count += matched;
    ++total;
  }
  std::string summary() const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    return fmt::format("{} requests, {} prompt + {} output tokens in {:.2f} s ({:.1f} output tokens/s)", requests,
                       prompt_tokens, output_tokens, seconds, static_cast<double>(output_tokens) / seconds);
  }
};

// Finished results in input order. A result is written as soon as all before it are done; the file always ends with a
// whole line. When the disk is full, what could not be written goes to standard output, so that no finished work is
// lost.
class ResultWriter {
 public:
  static Result<std::unique_ptr<ResultWriter>> open(const std::string& path) {
    std::unique_ptr<ResultWriter> writer(new ResultWriter());
    writer->path_ = path;
    if (path == "-") {
      writer->fd_ = STDOUT_FILENO;
      return writer;
    }
    writer->fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (writer->fd_ < 0) return io_error("cannot write --output {}: {}", path, std::strerror(errno));
    return writer;
  }
  ~ResultWriter() {
    if (fd_ > STDERR_FILENO) ::close(fd_);
  }

  void put(size_t index, std::string line) {
    if (lines_.size() <= index) lines_.resize(index + 1);
    lines_[index] = std::move(line);
    while (next_ < lines_.size() && lines_[next_]) write_line(*std::exchange(lines_[next_++], std::nullopt));
  }

  // After an interruption: also the finished results behind unfinished ones.
  void flush() {
    for (; next_ < lines_.size(); ++next_)
      if (lines_[next_]) write_line(*lines_[next_]);
  }
  const Status& status() const { return status_; }

 private:
  void write_line(std::string line) {
    line += '\n';
    if (status_.ok()) {
      const size_t done = write_all(fd_, line);
      if (done == line.size()) {
        written_ += static_cast<off_t>(line.size());
        return;
      }
      status_ = io_error(
          "cannot write {}: {}; {} bytes of whole lines are in it, the other finished results follow on standard "
          "output",
          path_, std::strerror(errno), written_);
      if (done > 0 && fd_ > STDERR_FILENO && ::ftruncate(fd_, written_) != 0)
        status_ = io_error("{} (and a part of a line)", status_.message());
    }
    if (fd_ > STDERR_FILENO) std::fwrite(line.data(), 1, line.size(), stdout);
  }

  std::string path_;
  int fd_ = -1;
  off_t written_ = 0;
  std::vector<std::optional<std::string>> lines_;
  size_t next_ = 0;
  Status status_;
};

void show(ProgressLine& line, const TextEngine& engine, const Totals& totals, size_t total) {
  if (!line.due()) return;
  const auto done = static_cast<size_t>(totals.requests);
  line.show(total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total),
            fmt::format("{}/{} done, {} running, {} waiting", done, total, engine.scheduler().num_running(),
                        engine.scheduler().num_waiting()));
}

Result<std::vector<std::string>> read_lines(const std::string& path) {
  std::vector<std::string> lines;
  const auto read = [&](std::istream& stream) {
    for (std::string line; std::getline(stream, line);)
      if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
  };
  if (path == "-") {
    read(std::cin);
    return lines;
  }
  std::ifstream stream(path);
  if (!stream) return not_found("cannot open --input {}: {}", path, std::strerror(errno));
  read(stream);
  return lines;
}

// What a person would call the question: the prompt, or the last message.
std::string last_words(const TextRequest& request) {
  if (request.messages.empty()) return request.prompt;
  const boost::json::value* content = request.messages.back().as_object().if_contains("content");
  return content && content->is_string() ? std::string(content->get_string()) : "";
}

std::string format_text_result(const std::string& question, const std::string& adapter, const Completion& completion) {
  const std::string& answer = completion.finish == FinishReason::kError ? completion.error.message() : completion.text;
  return fmt::format("[{}] {}\n  -> {}", adapter.empty() ? "base" : adapter, question, answer);
}

// What the model of a conversation thinks is no part of its answer.
void part_thoughts_of(TextRequest& request, const TextEngine& engine) {
  const TextSide& side = engine.side_of(request.adapter);
  if (request.messages.empty() || !side.templates) return;
  const Result<const ChatTemplates::Entry*> entry = side.templates->choose(request.template_name, false);
  if (entry.ok()) part_thoughts(request, (*entry)->reasoning, side.tokenizer.get());
}

// A line of the input on its way.
struct BatchLine : TextSequence {
  size_t index = 0;
  JsonlRequest line;  // its request is in `text`
};

int run_batch(const GenerateFlags& flags) {
  if (flags.adapters.size() > 1)
    return fail(invalid_argument("with --input, at most one --adapter can override the lines' own"));
  Result<std::vector<std::string>> lines = read_lines(flags.input);
  if (!lines.ok()) return fail(lines.status());
  Result<std::unique_ptr<ResultWriter>> writer = ResultWriter::open(flags.output);
  if (!writer.ok()) return fail(writer.status());
  Result<std::unique_ptr<TextEngine>> opened = flags.model.open();
  if (!opened.ok()) return fail(opened.status());
  TextEngine& engine = **opened;

  Totals totals;
  ProgressLine line_of_progress;
  for (size_t i = 0; i < lines->size(); ++i) {
    const auto reject = [&](const boost::json::value& id, const std::string& adapter, const Status& status) {
      ++totals.requests, ++totals.failed;
      (*writer)->put(i, format_jsonl_error(id, adapter, status.with_context(fmt::format("line {}", i + 1))));
    };
    Result<JsonlRequest> parsed = parse_jsonl_request((*lines)[i], flags.defaults);
    if (!parsed.ok()) {
      reject(jsonl_id((*lines)[i]), "", parsed.status());
      continue;
    }
    if (!flags.adapters.empty()) parsed->request.adapter = flags.adapters[0];
    const boost::json::value id = parsed->id;
    const std::string adapter = parsed->request.adapter;
    TextRequest request = std::move(parsed->request);
    part_thoughts_of(request, engine);
    auto line = std::make_unique<BatchLine>();
    line->index = i;
    line->line = std::move(parsed).value();
    const Result<RequestId> submitted = engine.submit(std::move(request), std::move(line));
    if (!submitted.ok()) reject(id, adapter, submitted.status());
  }
  const auto write = [&](const BatchLine& done) {
    const auto& [id, unused, expected] = done.line;
    totals.add(done.completion);
    if (expected) totals.add_match(done.text.adapter, matches_expected(done.completion.text, *expected));
    (*writer)->put(done.index, flags.format == "text"
                                   ? format_text_result(last_words(done.text), done.text.adapter, done.completion)
                                   : format_jsonl_result(id, done.text.adapter, done.completion, expected));
  };
  while (engine.has_work() && !interrupted && (*writer)->status().ok()) {
    for (const TextUpdate& update : engine.step())
      if (update.ended) write(static_cast<const BatchLine&>(*update.ended));
    show(line_of_progress, engine, totals, lines->size());
  }
  line_of_progress.clear();
  (*writer)->flush();
  fmt::print(stderr, "{}{}\n", totals.summary(), totals.failed ? fmt::format(", {} failed", totals.failed) : "");
  for (const auto& [adapter, count] : totals.matches)
    fmt::print(stderr, "  {:<20} {:4} of {:4} answers match exactly ({:.1f} %)\n", adapter, count.first, count.second,
               100.0 * static_cast<double>(count.first) / static_cast<double>(count.second));
  if (!(*writer)->status().ok()) return fail((*writer)->status());
  if (interrupted) {
    fmt::print(stderr, "lorikeet: interrupted; {} of {} results were written\n", totals.requests, lines->size());
    return 130;
  }
  return totals.failed ? 1 : 0;
}

int run_prompts(const GenerateFlags& flags) {
  Result<std::unique_ptr<TextEngine>> opened = flags.model.open();
  if (!opened.ok()) return fail(opened.status());
  TextEngine& engine = **opened;
  const std::vector<std::string> adapters = flags.adapters.empty() ? std::vector<std::string>{""} : flags.adapters;
  const size_t count = flags.prompts.size() * adapters.size();
  std::vector<RequestId> ids;
  std::map<RequestId, Completion> done;
  Totals totals;
  for (const std::string& prompt : flags.prompts) {
    for (const std::string& adapter : adapters) {
      TextRequest request = flags.defaults;
      if (flags.chat)
        request.messages = {{{"role", "user"}, {"content", prompt}}};
      else
        request.prompt = prompt;
      request.adapter = adapter;
      part_thoughts_of(request, engine);
      const Result<RequestId> submitted = engine.submit(std::move(request));
      if (!submitted.ok()) return fail(submitted.status());
      ids.push_back(*submitted);
    }
  }
  bool thinks = false;
  while (engine.has_work() && !interrupted) {
    for (TextUpdate& update : engine.step()) {
      // A single answer is shown as it is made.
      if (count == 1) {
        // Dimmed, for whoever looks on; the answer alone is what programs get.
        if (!update.delta.reasoning.empty() && stderr_is_terminal())
          fmt::print(stderr, "\x1b[2m{}\x1b[0m", update.delta.reasoning);
        if (!update.delta.text.empty() && std::exchange(thinks, false)) fmt::print(stderr, "\n");
        thinks |= !update.delta.reasoning.empty() && stderr_is_terminal();
        std::fwrite(update.delta.text.data(), 1, update.delta.text.size(), stdout);
        std::fflush(stdout);
      }
      if (!update.ended) continue;
      totals.add(update.ended->completion);
      done[update.ended->asked.id] = std::move(update.ended->completion);
    }
  }
  if (count == 1) {
    fmt::print("\n");
  } else {
    for (size_t i = 0; i < count; ++i) {
      const std::string& adapter = adapters[i % adapters.size()];
      if (i % adapters.size() == 0) fmt::print("{}> {}\n", i == 0 ? "" : "\n", flags.prompts[i / adapters.size()]);
      const auto it = done.find(ids[i]);
      fmt::print("[{}] {}\n", adapter.empty() ? "base" : adapter, it != done.end() ? it->second.text : "(interrupted)");
    }
  }
  for (const auto& [id, completion] : done)
    if (completion.finish == FinishReason::kError) return fail(completion.error);
  fmt::print(stderr, "{}\n", totals.summary());
  return interrupted ? 130 : 0;
}

// The range of a field of requests, for the option that stands for it.
std::string values_of(FieldName<kRequestFields> name) { return describe_values(sampling_field(name)); }

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      app.add_subcommand("generate", "Generate text: prompts on the command line, or a JSON-lines batch");
  flags->model.add_to(*command, true);
  auto* prompt = command->add_option("--prompt", flags->prompts, "prompt text; repeatable, all run in one batch")
                     ->group("Input and output");
  command
      ->add_option("--adapter", flags->adapters,
                   "adapter of the prompts, \"base\" = none; repeatable: each prompt runs with each")
      ->group("Input and output");
  command->add_option("--input", flags->input, "JSON-lines file of requests, - = standard input")
      ->group("Input and output")
      ->excludes(prompt);
  command->add_option("--output", flags->output, "JSON-lines file of results, in input order; - = standard output")
      ->capture_default_str()
      ->group("Input and output");
  command->add_option("--format", flags->format, "of the results in batch mode")
      ->check(CLI::IsMember({"jsonl", "text"}))
      ->capture_default_str()
      ->group("Input and output");
  command->add_flag("--chat", flags->chat, "render each --prompt as a user message with the model's chat template")
      ->group("Input and output");
  TextRequest& d = flags->defaults;
  SamplingParams& s = d.sampling;
  s.temperature = 0;
  command->add_option("--max-tokens", d.max_tokens, "most output tokens per request")
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--temperature", s.temperature, values_of("temperature") + "; 0 = greedy")
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--top-k", s.top_k, "0 = off")->capture_default_str()->group("Sampling");
  command->add_option("--top-p", s.top_p, values_of("top_p"))->capture_default_str()->group("Sampling");
  command->add_option("--min-p", s.min_p, values_of("min_p"))->capture_default_str()->group("Sampling");
  command->add_option("--repetition-penalty", s.repetition_penalty, values_of("repetition_penalty") + "; 1 = off")
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--presence-penalty", s.presence_penalty, values_of("presence_penalty"))
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--frequency-penalty", s.frequency_penalty, values_of("frequency_penalty"))
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--seed", s.seed, "of every request that has none of its own")
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--logprobs", s.num_logprobs, "also report the n most likely tokens at each position (batch mode)")
      ->group("Sampling");
  command->add_option("--prompt-logprobs", s.num_prompt_logprobs, "likewise for the prompt (batch mode)")
      ->group("Sampling");
  command->add_option("--stop", d.stop, "stop string; repeatable")->group("Sampling");
  command->add_flag("--ignore-eos", d.ignore_eos, "go on after an end-of-sequence token")->group("Sampling");
  add_config_options(*command);
  show_in_help(*command,
               {"--lora",       "--dtype",       "--context", "--threads",      "--memory",      "--max-running",
                "--prompt",     "--adapter",     "--input",   "--output",       "--format",      "--chat",
                "--max-tokens", "--temperature", "--top-k",   "--top-p",        "--seed",        "--logprobs",
                "--stop",       "--ignore-eos",  "--config",  "--print-config", "--check-config"});
  command->callback([flags, &exit_code] {
    watch_interrupts();
    if (flags->input.empty() && flags->prompts.empty())
      throw CLI::ValidationError("give --prompt TEXT or --input FILE.jsonl");
    exit_code = flags->input.empty() ? run_prompts(*flags) : run_batch(*flags);
  });
}

}  // namespace lk::apps
