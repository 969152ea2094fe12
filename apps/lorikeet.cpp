// SPDX-License-Identifier: Apache-2.0
// lorikeet: many LoRA adapters over one base model.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "commands.h"
#include "config.h"
#include "help.h"
#include "other_servers.h"

namespace {

// CLI11's ranges compare, and every comparison with NaN is false: it would pass them all. Bounds that are NaN then
// refuse every request, or none.
void refuse_nan(CLI::App& app) {
  const CLI::Validator not_nan(
      [](std::string& text) {
        const bool nan = text.size() >= 3 && std::isnan(std::strtod(text.c_str(), nullptr));
        return nan ? "\"" + text + "\" is not a number" : std::string();
      },
      "", "not NaN");
  for (CLI::Option* option : app.get_options())
    if (option->get_type_name().find("FLOAT:") != std::string::npos) option->check(not_nan);
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) refuse_nan(*command);
}

// What the parser is given, in the reverse order that it wants.
lk::Result<std::vector<std::string>> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && (arguments[0] == "serve" || arguments[0] == "batch" || arguments[0] == "run-batch")) {
    LK_ASSIGN_OR_RETURN(lk::apps::ServeArguments translated,
                        lk::apps::translate_serve_arguments({arguments.begin() + 1, arguments.end()}));
    for (const std::string& note : translated.notes) (void)std::fprintf(stderr, "lorikeet: %s\n", note.c_str());
    if (!translated.api_key.empty()) ::setenv("LORIKEET_API_KEY", translated.api_key.c_str(), 1);
    arguments.resize(1);
    arguments.insert(arguments.end(), translated.arguments.begin(), translated.arguments.end());
  }
  return std::vector<std::string>(arguments.rbegin(), arguments.rend());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Lorikeet serves many LoRA adapters over one shared base model."};
  app.name("lorikeet");
  app.set_version_flag("--version", LK_VERSION);
  app.require_subcommand(1);
  lk::apps::install_help(app);
  int exit_code = 0;
  lk::apps::add_generate(app, exit_code);
  lk::apps::add_serve(app, exit_code);
  lk::apps::add_batch(app, exit_code);
  lk::apps::add_route(app, exit_code);
  lk::apps::add_fleet(app, exit_code);
  lk::apps::add_train(app, exit_code);
  lk::apps::add_federate(app, exit_code);
  lk::apps::add_pull(app, exit_code);
  lk::apps::add_inspect(app, exit_code);
  lk::apps::add_merge(app, exit_code);
  lk::apps::add_adapter(app, exit_code);
  lk::apps::add_bench(app, exit_code);
  lk::apps::add_keys(app, exit_code);
  lk::apps::add_simulate(app, exit_code);
  try {
    refuse_nan(app);
    lk::Result<std::vector<std::string>> arguments = arguments_of(argc, argv);
    if (!arguments.ok()) throw CLI::ValidationError(arguments.status().message());
    app.parse(std::move(*arguments));
  } catch (const CLI::ParseError& error) {
    return lk::apps::exit_code_of(app, error);
  }
  return exit_code;
}
