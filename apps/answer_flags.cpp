// SPDX-License-Identifier: Apache-2.0
#include "answer_flags.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "lk/base/file.h"
#include "lk/base/thread_name.h"
#include "lk/hub/hub_name.h"
#include "lk/io/base_digest.h"

namespace lk::apps {
namespace {

// What vLLM and SGLang call the same.
using OtherNames = std::map<std::string, std::string>;
const OtherNames kToolParserNames{{"llama3_json", "llama3"},
                                  {"llama4_json", "llama3"},
                                  {"qwen25", "hermes"},
                                  {"qwen", "hermes"},
                                  {"qwen3_coder", "qwen3-coder"},
                                  {"qwen3_xml", "qwen3-coder"},
                                  {"llama4_pythonic", "pythonic"},
                                  {"phi4_mini_json", "phi4"}};
// With those of families whose marks are Qwen3's: what their prompts end with says whether they think.
const OtherNames kReasoningParserNames{{"none", "off"},
                                       {"deepseek_r1", "deepseek-r1"},
                                       {"step3", "deepseek-r1"},
                                       {"qwen3-thinking", "deepseek-r1"},
                                       {"glm45", "qwen3"},
                                       {"deepseek_v3", "qwen3"},
                                       {"deepseek-v3", "qwen3"},
                                       {"olmo3", "qwen3"},
                                       {"granite3.3", "granite-3.3"}};

CLI::Transformer names_of_others(const OtherNames& names) {
  CLI::Transformer transformer(names);
  transformer.description("");
  return transformer;
}

}  // namespace

void AnswerFlags::add_to(CLI::App& command) {
  command
      .add_option(
          "--served-model-name", served_names,
          "what clients call the base model; repeatable: answers show the first; default: the directory's name, "
          "or that on the hub")
      ->allow_extra_args(false)
      ->group("Model");
  command.add_option("--tool-call-parser", tool_format, "how the model writes tool calls")
      ->transform(names_of_others(kToolParserNames))
      ->check(
          CLI::IsMember({"auto", "none", "hermes", "llama3", "mistral", "qwen3-coder", "pythonic", "granite", "phi4"}))
      ->capture_default_str()
      ->group("Model");
  command
      .add_option("--reasoning-parser", reasoning,
                  "how the model marks what it thinks before it answers; auto = as its chat template says")
      ->transform(names_of_others(kReasoningParserNames))
      ->check(CLI::IsMember({"auto", "off", "qwen3", "deepseek-r1", "granite", "granite-3.3"}))
      ->capture_default_str()
      ->group("Model");
  const char* adapters = "Adapters";
  command
      .add_option("--lora-dir", lora_dirs,
                  "load every adapter in this directory and follow what comes and goes; repeatable")
      ->group(adapters);
  command
      .add_option(
          "--lora-eager", lora_eager,
          "with more adapters than this in --lora-dir, or stored, each is loaded when a request asks for it first")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->group(adapters);
  command
      .add_option("--host-memory", host_memory,
                  "copies of adapters; others are read from disk again; auto = 1/4 of what weights leave")
      ->capture_default_str()
      ->group(adapters);
  command
      .add_option("--sum-memory", sum_memory,
                  "cached weighted sums of adapters, a part of --host-memory; auto = an eighth of it")
      ->capture_default_str()
      ->group(adapters);
  command.add_flag("--no-probe", no_probe, "publish adapters without running a probe prompt through them first")
      ->group(adapters);
  command
      .add_option("--max-answer", max_answer,
                  "largest answer that is not streamed, estimated from what is asked for; readers' buffers follow it")
      ->capture_default_str()
      ->group("Overload");
  const char* overload = "Overload";
  command
      .add_option("--max-choices", max_choices,
                  "most answers that one request may ask for: n times its prompts, or inputs to embed")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(overload);
  command.add_option("--grammar-memory", grammar_memory, "of cached grammars of structured output")
      ->capture_default_str()
      ->group(overload);
}

Result<int64_t> parse_size(const char* flag, const std::string& text) {
  Result<int64_t> bytes = parse_bytes(text);
  return bytes.ok() ? std::move(bytes) : bytes.status().with_context(flag);
}

Result<MemoryWishes> AnswerFlags::wishes(const ModelFlags& model) const {
  MemoryWishes wishes;
  LK_ASSIGN_OR_RETURN(wishes.pages, parse_budget("--memory", model.memory));
  LK_ASSIGN_OR_RETURN(wishes.adapters, parse_budget("--host-memory", host_memory));
  LK_ASSIGN_OR_RETURN(wishes.sums, parse_budget("--sum-memory", sum_memory));
  LK_ASSIGN_OR_RETURN(wishes.grammars, parse_size("--grammar-memory", grammar_memory));
  return wishes;
}

// Divides memory and gives every part its budget.
Status AnswerFlags::plan_memory(const ModelFlags& model, ServerOptions& options) const {
  LK_ASSIGN_OR_RETURN(const MemoryWishes wanted, wishes(model));
  LK_ASSIGN_OR_RETURN(options.memory, model.plan(wanted));
  options.adapters.max_host_bytes = options.memory.adapters;
  options.adapters.max_composed_bytes = options.memory.sums;
  options.max_grammar_bytes = options.memory.grammars;
  fmt::print(stderr, "{}", format_memory_plan(options.memory));
  if (!options.memory.fits_now())
    fmt::print(stderr, "lorikeet: the memory plan needs {} and {} are free now: others have to let go of some\n",
               format_bytes(options.memory.total()), format_bytes(options.memory.limits.available));
  return Status();
}

std::string AnswerFlags::base_name(const ModelFlags& model) const {
  if (!served_names.empty()) return served_names[0];
  if (!model.hub_name.empty()) return parse_hub_name(model.hub_name).value().repo;
  const std::filesystem::path directory = model.model.empty() ? "dummy" : model.model;
  return (directory.has_filename() ? directory : directory.parent_path()).filename().string();
}

bool AnswerFlags::is_base(const ModelFlags& model, const std::string& name) const {
  return name == "base" || name == base_name(model) || std::ranges::find(served_names, name) != served_names.end();
}

Status AnswerFlags::fill(const ModelFlags& model, ServerOptions& options) const {
  if (model.model.empty() == model.dummy.empty())
    return invalid_argument("give a model directory, or --dummy CONFIG.json for random weights");
  LK_RETURN_IF_ERROR(model.parse_loras().status());
  LK_RETURN_IF_ERROR(model.scheduler.parse().status());
  LK_RETURN_IF_ERROR(model.scheduler.parse_merging().status());
  LK_ASSIGN_OR_RETURN(options.max_answer_bytes, parse_size("--max-answer", max_answer));
  if (options.max_answer_bytes < (64 << 10) || options.max_answer_bytes > (int64_t{1} << 30))
    return invalid_argument("--max-answer must be from 64KiB to 1GiB, got {}", max_answer);
  LK_RETURN_IF_ERROR(wishes(model).status());
  options.tool_format = tool_format;
  options.reasoning = reasoning;
  options.max_choices = max_choices;
  options.adapters.base_name = base_name(model);
  if (served_names.size() > 1) options.adapters.base_aliases.assign(served_names.begin() + 1, served_names.end());
  for (size_t i = 0; i < served_names.size(); ++i)
    if (served_names[i].empty() ||
        std::find(served_names.begin(), served_names.begin() + static_cast<std::ptrdiff_t>(i), served_names[i]) !=
            served_names.begin() + static_cast<std::ptrdiff_t>(i))
      return invalid_argument("--served-model-name: \"{}\" is {}", served_names[i],
                              served_names[i].empty() ? "no name" : "given twice");
  options.adapters.probe = !no_probe;
  options.adapters.max_idle = std::max<int64_t>(lora_eager, 1);
  options.model_root = model.model.empty() ? model.dummy : model.model;
  options.version = LK_VERSION;
  return Status();
}

// The engine and its kernel threads, with a lower priority than the threads that answer: an event that waits for a core
// is late, a kernel that waits for an event to leave loses next to nothing. Threads inherit the priority of the one
// that makes them.
Result<std::unique_ptr<TextEngine>> open_engine(const ModelFlags& model, const MemoryPlan& memory, int nice) {
  Result<std::unique_ptr<TextEngine>> engine = internal_error("the engine was not opened");
  std::thread([&] {
    lower_thread_priority(nice);
    engine = model.open_without_adapters(memory);
  }).join();
  return engine;
}

Result<std::string> digest_of_base(const ModelFlags& model, TextEngine& engine) {
  const bool dummy = model.model.empty();
  return base_digest(dummy ? model.dummy : join_path(model.model, "config.json"),
                     dummy ? "" : join_path(model.model, "tokenizer.json"), engine.engine().weights().checkpoint.get());
}

Status load_loras(const ModelFlags& model, Server& server) {
  LK_ASSIGN_OR_RETURN(const auto loras, model.parse_loras());
  for (const auto& [name, directory] : loras) {
    const Result<AdapterLease> loaded = server.adapters().load_and_wait(
        {.name = name, .path = directory, .trusted_path = true, .persist = false, .by_content = true});
    if (!loaded.ok()) return loaded.status().with_context(fmt::format("--lora {}={}", name, directory));
    for (const std::string& warning : (*loaded)->warnings)
      server.log().write(LogLevel::kWarning, "adapter_warning", {{"adapter", name}, {"reason", warning}});
  }
  return Status();
}

}  // namespace lk::apps
