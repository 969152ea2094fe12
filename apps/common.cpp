// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "commands.h"
#include "hub_names.h"
#include "lk/base/file.h"
#include "lk/base/json_fields.h"
#include "lk/kernels/cpu.h"

namespace lk::apps {

volatile std::sig_atomic_t interrupted = 0;

namespace {

void on_signal(int) {
  if (interrupted) std::_Exit(130);
  interrupted = 1;
}

void show_progress(int64_t done, int64_t total) {
  static int shown = -1;
  const int percent = total > 0 ? static_cast<int>(done * 100 / total) : 100;
  if (percent == shown) return;
  shown = percent;
  fmt::print(stderr, "\rloading model {:3d} %", percent);
  if (percent == 100) fmt::print(stderr, "\r{:20}\r", "");
  std::fflush(stderr);
}

}  // namespace

std::vector<std::string> isa_choices(std::vector<std::string> other) {
  for (const CpuIsa isa : kCpuIsas) other.emplace_back(to_string(isa));
  return other;
}

void watch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) != 0; }

std::string default_state_path() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string given = variable("LORIKEET_STATE"); !given.empty()) return given;
  if (const std::string given = variable("STATE_DIRECTORY"); given.starts_with('/'))
    return join_path(given.substr(0, given.find(':')), "state.db");
  if (const std::string given = variable("XDG_STATE_HOME"); given.starts_with('/'))
    return join_path(given, "lorikeet/state.db");
  if (const std::string given = variable("HOME"); given.starts_with('/'))
    return join_path(given, ".local/state/lorikeet/state.db");
  return "/var/lib/lorikeet/state.db";
}

int fail(const Status& status) {
  fmt::print(stderr, "lorikeet: {}\n", status.message());
  return 1;
}

void warn(const std::string& what, const std::vector<std::string>& messages) {
  for (const std::string& message : messages) fmt::print(stderr, "lorikeet: warning: {}: {}\n", what, message);
}

void ModelFlags::add_to(CLI::App& command, bool model_is_positional) {
  const std::string model_help =
      "Hugging Face model directory (config.json, *.safetensors, tokenizer.json), or its name on the hub: ORG/NAME";
  auto* model_option = model_is_positional ? command.add_option("MODEL", model, model_help)
                                           : command.add_option("--model", model, model_help);
  model_option->group("Model");
  command.add_option("--dummy", dummy, "config.json: seeded random weights of this shape instead of a model")
      ->group("Model");
  command
      .add_option("--lora,--lora-modules", loras,
                  "load a PEFT adapter, a directory or on the hub, under a name; repeatable")
      ->type_name("NAME=DIR")
      ->group("Model");
  command.add_option("--dtype", dtype, "compute type; f32 is for exact comparisons")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str()
      ->group("Model");
  command.add_option("--context,--max-model-len", context, "longest prompt + output in tokens; 0 = the model's own")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str()
      ->group("Model");
  command
      .add_option("--pooling", pooling,
                  "hidden states of a prompt that make its embedding; auto = what 1_Pooling/config.json says, or mean")
      ->check(CLI::IsMember({"auto", "mean", "last", "cls"}))
      ->capture_default_str()
      ->group("Model");
  command.add_option("--threads", threads, "kernel threads of each rank; 0 = every core this process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group("Machine");
  command
      .add_option("--tensor-parallel,--tensor-parallel-size,--tp", ranks,
                  "divide the model among so many ranks, with --threads each; answers are the same, bit for bit")
      ->check(CLI::Range(1, 64))
      ->capture_default_str()
      ->group("Machine");
  command.add_option("--isa", isa, "instruction set of the kernels")
      ->check(CLI::IsMember(isa_choices()))
      ->capture_default_str()
      ->group("Machine");
  command
      .add_option("--memory", memory,
                  "pages for KV cache and adapters in use, e.g. 8GiB; auto = 3/4 of what weights leave")
      ->capture_default_str()
      ->group("Machine");
  scheduler.add_to(command);
}

Result<std::optional<int64_t>> parse_budget(const char* flag, const std::string& text) {
  if (text == "auto") return std::optional<int64_t>();
  const Result<int64_t> bytes = parse_bytes(text);
  if (!bytes.ok()) return invalid_argument("{}: {}, or auto", flag, bytes.status().message());
  return std::optional<int64_t>(*bytes);
}

Result<MemoryPlan> ModelFlags::plan(MemoryWishes wishes) const {
  if (model.empty() == dummy.empty())
    return invalid_argument("give a model directory, or --dummy CONFIG.json for random weights");
  LK_ASSIGN_OR_RETURN(wishes.pages, parse_budget("--memory", memory));
  LK_ASSIGN_OR_RETURN(const SchedulerOptions options, scheduler.parse());
  LK_ASSIGN_OR_RETURN(const ModelConfig config, TextEngine::read_config(model, dummy));
  LK_RETURN_IF_ERROR(check_num_ranks(config.shape(), ranks));
  return plan_memory(read_memory_limits(), footprint_of_ranks(config, act(), options.max_step_tokens, ranks), wishes);
}

Result<std::unique_ptr<TextEngine>> ModelFlags::open_without_adapters(const MemoryPlan& plan) const {
  TextEngineOptions options{
      .model = model, .dummy_config = dummy, .num_threads = threads, .num_ranks = ranks, .context = context};
  options.act = act();
  options.memory_bytes = plan.pages;
  options.isa = parse_cpu_isa(isa);
  LK_ASSIGN_OR_RETURN(options.scheduler, scheduler.parse());
  LK_ASSIGN_OR_RETURN(options.merging, scheduler.parse_merging());
  options.exact = scheduler.exact;
  if (pooling == "mean") options.pooling = Pooling::kMean;
  if (pooling == "last") options.pooling = Pooling::kLast;
  if (pooling == "cls") options.pooling = Pooling::kFirst;
  if (stderr_is_terminal()) options.progress = show_progress;
  LK_ASSIGN_OR_RETURN(std::unique_ptr<TextEngine> engine, TextEngine::open(options));
  warn(model, engine->engine().weights().warnings);
  return engine;
}

Result<std::vector<std::pair<std::string, std::string>>> ModelFlags::parse_loras() const {
  std::vector<std::pair<std::string, std::string>> parsed;
  for (const std::string& lora : loras) {
    if (lora.starts_with('{')) {  // as vLLM also takes it
      LK_ASSIGN_OR_RETURN(const auto object, parse_json_object(lora, "--lora"));
      JsonFields fields(object, "--lora");
      std::string name, path;
      const bool sglang = object.contains("lora_name");
      fields.read_string(sglang ? "lora_name" : "name", name, 1);
      fields.read_string(sglang ? "lora_path" : "path", path, 1);
      if (fields.failed()) return fields.status();
      if (name.empty() || path.empty()) return invalid_argument("--lora wants \"name\" and \"path\" in {}", lora);
      parsed.emplace_back(std::move(name), std::move(path));
      continue;
    }
    const size_t equals = lora.find('=');
    if (equals == std::string::npos || equals == 0) return invalid_argument("--lora wants NAME=DIR, got \"{}\"", lora);
    parsed.emplace_back(lora.substr(0, equals), lora.substr(equals + 1));
  }
  return parsed;
}

Status ModelFlags::fetch(Fetch how) {
  LK_ASSIGN_OR_RETURN(auto adapters, parse_loras());
  if (names_hub(model)) hub_name = model;
  LK_RETURN_IF_ERROR(find_model(model, how));
  loras.clear();
  for (auto& [name, directory] : adapters) {
    LK_RETURN_IF_ERROR(find_adapter(directory, how).with_context(fmt::format("--lora {}", name)));
    loras.push_back(fmt::format("{}={}", name, directory));
  }
  return Status();
}

Result<std::unique_ptr<TextEngine>> ModelFlags::open() const {
  ModelFlags local = *this;
  LK_RETURN_IF_ERROR(local.fetch(Fetch::kFetch));
  return local.open_fetched();
}

Result<std::unique_ptr<TextEngine>> ModelFlags::open_fetched() const {
  LK_ASSIGN_OR_RETURN(const auto adapters, parse_loras());
  LK_ASSIGN_OR_RETURN(const MemoryPlan memory_plan, plan());
  LK_ASSIGN_OR_RETURN(std::unique_ptr<TextEngine> engine, open_without_adapters(memory_plan));
  for (const auto& [name, directory] : adapters) {
    if (!is_directory(directory)) return not_found("adapter {}: {} is not a directory", name, directory);
    LK_ASSIGN_OR_RETURN(auto adapter,
                        load_adapter(name, directory, engine->config(), engine->engine().weights().checkpoint.get()));
    warn(directory, adapter->warnings);
    LK_ASSIGN_OR_RETURN(auto side, engine->text().load_side(directory, adapter->own_vocab_size));
    if (side != engine->text().shared_base()) warn(directory, side->warnings);
    LK_RETURN_IF_ERROR(engine->add_adapter(std::move(adapter), std::move(side)));
  }
  return engine;
}

}  // namespace lk::apps
