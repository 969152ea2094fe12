// SPDX-License-Identifier: Apache-2.0
// What a server answers, and with which adapters: options that `serve` and `batch` share.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "commands.h"
#include "lk/serve/http/server.h"

namespace lk::apps {

struct AnswerFlags {
  std::vector<std::string> served_names;  // the first is the one that answers show
  std::string tool_format = "auto", reasoning = "auto";
  std::vector<std::string> lora_dirs;
  int64_t lora_eager = 256;
  bool no_probe = false;
  std::string max_answer = "16MiB", host_memory = "auto", sum_memory = "auto", grammar_memory = "64MiB";
  int64_t max_choices = 128;

  void add_to(CLI::App& command);
  std::string base_name(const ModelFlags& model) const;
  bool is_base(const ModelFlags& model, const std::string& name) const;  // one of the names that the base has
  // Checks these and the model's options, and sets what they stand for. Memory is divided by plan_memory().
  Status fill(const ModelFlags& model, ServerOptions& options) const;
  Result<MemoryWishes> wishes(const ModelFlags& model) const;
  // Divides memory, prints how, and gives every part its budget.
  Status plan_memory(const ModelFlags& model, ServerOptions& options) const;
};

// The engine and its kernel threads, with a lower priority than the threads that answer: an event that waits for a core
// is late, a kernel that waits for an event to leave loses next to nothing.
Result<std::unique_ptr<TextEngine>> open_engine(const ModelFlags& model, const MemoryPlan& memory, int nice);

// Of the files that answers come from: configuration, tokenizer, weights.
Result<std::string> digest_of_base(const ModelFlags& model, TextEngine& engine);

// Loads what --lora names.
Status load_loras(const ModelFlags& model, Server& server);

Result<int64_t> parse_size(const char* flag, const std::string& text);

}  // namespace lk::apps
