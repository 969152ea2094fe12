// SPDX-License-Identifier: Apache-2.0
// CLI11 2.1 reads configuration only for the outermost command, before the environment, and lets the file win over it.
// So its hook for reading a file (a CLI::Config of the outermost command) is used as nothing but the moment between the
// command line and the checks: it gives options that no flag has set their value from the environment, and then, if
// still without one, from the file.
#include "config.h"

#include <cstdlib>
#include <utility>

#include "config_file.h"

namespace lk::apps {
namespace {

[[noreturn]] void stop(const std::string& message) { throw CLI::RuntimeError(message, 1); }

// Converts and checks now, while it is known where the value came from.
void apply(CLI::Option& option, const std::vector<std::string>& values, const std::string& where) {
  if (values.empty()) return;
  try {
    option.add_result(values);
    option.run_callback();
  } catch (const CLI::RuntimeError&) {
    throw;
  } catch (const CLI::ParseError& error) {
    std::string message = error.what();
    if (const std::string prefix = option.get_name() + ": "; message.starts_with(prefix))
      message.erase(0, prefix.size());
    stop(fmt::format("{}: {}", where, message));
  }
}

void read_environment(const CLI::App& command) {
  for (const CLI::Option* each : command.get_options()) {
    auto* option = const_cast<CLI::Option*>(each);
    if (option->get_envname().empty() || option->count() > 0) continue;
    const char* value = std::getenv(option->get_envname().c_str());
    if (value != nullptr && *value != '\0') apply(*option, {value}, option->get_envname());
  }
}

void configure(const CLI::App& command) {
  if (command.get_help_ptr() != nullptr && command.get_help_ptr()->count() > 0)
    throw CLI::CallForHelp();  // whatever is configured
  if (command.get_help_all_ptr() != nullptr && command.get_help_all_ptr()->count() > 0) throw CLI::CallForAllHelp();
  read_environment(command);
  const CLI::Option* config = command.get_option_no_throw("--config");
  if (config == nullptr || config->count() == 0) return;
  Result<std::vector<Setting>> settings = read_config_file(config->as<std::string>(), command);
  if (!settings.ok()) stop(settings.status().message());
  for (const Setting& setting : *settings)
    if (setting.option->count() == 0) apply(*setting.option, setting.values, setting.where);
}

class Hook : public CLI::Config {
 public:
  void add(const CLI::App* command) { commands_.push_back(command); }
  std::vector<CLI::ConfigItem> from_config(std::istream&) const override {
    for (const CLI::App* command : commands_) {
      if (command->parsed()) configure(*command);
      // CLI11 goes on to read the environment, also for commands that do not run: a variable of theirs must not stop
      // this one.
      else
        for (const CLI::Option* option : command->get_options()) const_cast<CLI::Option*>(option)->envname("");
    }
    return {};
  }
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }

 private:
  std::vector<const CLI::App*> commands_;
};

Hook& hook_of(CLI::App& root) {
  auto hook = std::dynamic_pointer_cast<Hook>(root.get_config_formatter());
  if (!hook) {
    hook = std::make_shared<Hook>();
    root.config_formatter(hook);
    // The file that CLI11 opens for the hook; nobody reads it.
    root.set_config("--lorikeet-config-hook", "/dev/null")->group("");
  }
  return *hook;
}

void check_config(const CLI::App& command, const std::function<Status()>& check) {
  for (const CLI::Option* option : command.get_options())
    if (option->get_required() && option->count() == 0) stop(fmt::format("{} is required", option->get_name()));
  if (check)
    if (const Status status = check(); !status.ok()) stop(status.message());
  fmt::print("configuration OK\n");
  throw CLI::Success();
}

}  // namespace

void add_config_options(CLI::App& command, std::function<Status()> check) {
  CLI::App* root = &command;
  while (root->get_parent() != nullptr) root = root->get_parent();
  hook_of(*root).add(&command);
  constexpr const char* kGroup = "Configuration";
  command.add_option("--config", "read options from this TOML file; flags and LORIKEET_* variables go before it")
      ->type_name("FILE")
      ->group(kGroup)
      ->configurable(false);
  for (CLI::Option* option : command.get_options([](CLI::Option*) { return true; })) {
    const bool wanted = option->get_configurable() || option->check_lname("config");
    if (!wanted || option == command.get_help_ptr() || option == command.get_help_all_ptr() ||
        !option->get_envname().empty())
      continue;
    std::string name = "LORIKEET_";
    for (const char c : config_key(*option))
      name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    option->envname(name);
  }
  // These come last: when their callbacks run, every other option was converted and checked.
  const CLI::App* self = &command;
  command
      .add_flag_callback(
          "--print-config",
          [self] {
            fmt::print("{}", format_config(*self));
            throw CLI::Success();
          },
          "print the effective configuration as TOML and exit")
      ->group(kGroup)
      ->configurable(false);
  command
      .add_flag_callback(
          "--check-config", [self, check = std::move(check)] { check_config(*self, check); },
          "check the configuration and exit")
      ->group(kGroup)
      ->configurable(false);
}

int exit_code_of(const CLI::App& app, const CLI::ParseError& error) {
  if (dynamic_cast<const CLI::RuntimeError*>(&error) != nullptr) {
    fmt::print(stderr, "lorikeet: {}\n", error.what());
    return error.get_exit_code();
  }
  return app.exit(error) == 0 ? 0 : 2;
}

}  // namespace lk::apps
