// SPDX-License-Identifier: Apache-2.0
// CLI11 2.1 reads configuration only for the outermost command, before the environment, and lets the file win over it.
// So its hook for reading a file (a CLI::Config of the outermost command) is used as nothing but the moment between the
// command line and the checks: it gives options that no flag has set their value from the environment, and then, if
// still without one, from the file.
#include "config.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "config_file.h"

namespace lk::apps {
namespace {

constexpr std::string_view kPrefix = "LORIKEET_";

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

// What Kubernetes (and Docker's links) put into the environment of a container beside a service of our name:
// LORIKEET_SERVICE_HOST, LORIKEET_SERVICE_PORT[_NAME], LORIKEET_PORT=tcp://10.0.0.1:80,
// LORIKEET_PORT_80_TCP[_PROTO|_PORT| _ADDR], the same with udp and sctp, and of services whose names begin with ours
// (LORIKEET_ADMIN_SERVICE_HOST).
bool is_service_discovery(std::string_view name, std::string_view value) {
  const bool is_url = value.starts_with("tcp://") || value.starts_with("udp://") || value.starts_with("sctp://");
  if (name.ends_with("_PORT") && is_url) return true;
  if (name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") ||
      name.find("_SERVICE_PORT_") != std::string_view::npos)
    return true;
  const size_t port = name.find("_PORT_");
  if (port == std::string_view::npos) return false;
  std::string_view rest = name.substr(port + 6);
  const size_t digits = rest.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string_view::npos) return false;
  rest.remove_prefix(digits);
  for (const std::string_view protocol : {"_TCP", "_UDP", "_SCTP"})
    if (rest.starts_with(protocol)) {
      rest.remove_prefix(protocol.size());
      return rest.empty() || rest == "_PROTO" || rest == "_PORT" || rest == "_ADDR";
    }
  return false;
}

// Not options, but read by the program.
constexpr std::string_view kOtherVariables[] = {"LORIKEET_API_KEY", "LORIKEET_FLEET", "LORIKEET_FLEET_KEY",
                                                "LORIKEET_STATE"};

// A variable that is misspelt would change nothing, without a word.
void warn_of_unknown_variables(const std::vector<const CLI::App*>& commands) {
  std::set<std::string, std::less<>> known(std::begin(kOtherVariables), std::end(kOtherVariables));
  for (const CLI::App* command : commands)
    for (const CLI::Option* option : command->get_options()) known.insert(option->get_envname());
  for (char** entry = ::environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (!name.starts_with(kPrefix) || known.contains(name) ||
        is_service_discovery(name, text.substr(std::min(name.size() + 1, text.size()))))
      continue;
    fmt::print(stderr, "lorikeet: the variable {} is ignored: there is no such option\n", name);
  }
}

void read_environment(const CLI::App& command) {
  for (const CLI::Option* each : command.get_options()) {
    auto* option = const_cast<CLI::Option*>(each);
    if (option->get_envname().empty() || option->count() > 0) continue;
    const char* value = std::getenv(option->get_envname().c_str());
    if (value != nullptr && is_service_discovery(option->get_envname(), value)) {
      option->envname("");  // CLI11 must not read it either
      continue;
    }
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
    if (std::ranges::any_of(commands_, [](const CLI::App* command) { return command->parsed(); }))
      warn_of_unknown_variables(commands_);
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

// These two answer before the parser says what it did not understand.
void refuse_unknown(const CLI::App& command) {
  if (std::vector<std::string> unknown = command.remaining(); !unknown.empty())
    throw CLI::ExtrasError(command.get_name(), std::move(unknown));
}

void check_config(const CLI::App& command, const std::function<Status()>& check) {
  refuse_unknown(command);
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
    std::string name(kPrefix);
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
            refuse_unknown(*self);
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
