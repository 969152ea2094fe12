// SPDX-License-Identifier: Apache-2.0
// The subcommands of `lorikeet`. Each add_* registers its options; when chosen, its callback runs and stores the exit
// code: 0 success, 1 failure (one line on standard error), 2 wrong usage, 130 interrupted.
#pragma once

#include <CLI/CLI.hpp>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "lk/base/bytes.h"
#include "lk/infer/memory_plan.h"
#include "lk/infer/text_engine.h"
#include "policy_flags.h"

namespace lk::apps {

enum class Fetch : uint8_t;  // hub_names.h

void add_generate(CLI::App& app, int& exit_code);
void add_serve(CLI::App& app, int& exit_code);
void add_batch(CLI::App& app, int& exit_code);
void add_inspect(CLI::App& app, int& exit_code);
void add_merge(CLI::App& app, int& exit_code);
void add_adapter(CLI::App& app, int& exit_code);
void add_bench(CLI::App& app, int& exit_code);
void add_bench_serve(CLI::App& bench, int& exit_code);
void add_bench_calibrate(CLI::App& bench, int& exit_code);
void add_bench_merge(CLI::App& bench, int& exit_code);
void add_bench_train(CLI::App& bench, int& exit_code);
void add_keys(CLI::App& app, int& exit_code);
void add_simulate(CLI::App& app, int& exit_code);
void add_train(CLI::App& app, int& exit_code);
void add_route(CLI::App& app, int& exit_code);
void add_fleet(CLI::App& app, int& exit_code);
void add_federate(CLI::App& app, int& exit_code);
void add_pull(CLI::App& app, int& exit_code);

// What --isa may be: `other`, and the name of every instruction set.
std::vector<std::string> isa_choices(std::vector<std::string> other = {"auto"});

// Options shared by the commands that run a model.
struct ModelFlags {
  std::string model;
  std::string dummy;
  std::vector<std::string> loras;  // NAME=DIR
  std::string hub_name;            // what `model` was before fetch(), when the hub has it
  std::string dtype = "bf16";
  std::string isa = "auto";
  std::string memory = "auto";
  int threads = 0;
  int ranks = 1;  // --tensor-parallel
  int64_t context = 0;
  std::string pooling = "auto";
  SchedulerFlags scheduler;

  void add_to(CLI::App& command, bool model_is_positional);
  DType act() const { return dtype == "f32" ? DType::kF32 : DType::kBF16; }
  // Names on the hub, of the model and of adapters, become the directories that they are fetched to.
  Status fetch(Fetch how);
  // Fetches and loads the model and every --lora, with progress on a terminal.
  Result<std::unique_ptr<TextEngine>> open() const;
  Result<std::unique_ptr<TextEngine>> open_without_adapters(const MemoryPlan& memory) const;
  // How memory is divided; wishes.pages is --memory.
  Result<MemoryPlan> plan(MemoryWishes wishes = {}) const;
  Result<std::vector<std::pair<std::string, std::string>>> parse_loras() const;  // (name, directory)

 private:
  Result<std::unique_ptr<TextEngine>> open_fetched() const;
};

// What a size flag says; nothing for "auto".
Result<std::optional<int64_t>> parse_budget(const char* flag, const std::string& text);
// "all", "attention" or "q_proj,v_proj,...".
Result<std::vector<std::string>> parse_targets(const std::string& text);

// Where tenants, keys and loaded adapters are kept when --state says nothing: $LORIKEET_STATE, or state.db in the first
// of $STATE_DIRECTORY (systemd), $XDG_STATE_HOME/lorikeet, ~/.local/state/lorikeet, /var/lib/lorikeet.
std::string default_state_path();

// Prints "lorikeet: message" and returns 1.
int fail(const Status& status);
// Prints "lorikeet: warning: WHAT: message" for each.
void warn(const std::string& what, const std::vector<std::string>& messages);

// Set by SIGINT and SIGTERM once watch_interrupts() was called; the second signal ends the program at once.
extern volatile std::sig_atomic_t interrupted;
void watch_interrupts();

bool stderr_is_terminal();

}  // namespace lk::apps
