// SPDX-License-Identifier: Apache-2.0
// lorikeet: many LoRA adapters over one base model.
#include <cmath>
#include <cstdlib>
#include <string>

#include "commands.h"
#include "config.h"
#include "help.h"

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
  lk::apps::add_route(app, exit_code);
  lk::apps::add_train(app, exit_code);
  lk::apps::add_inspect(app, exit_code);
  lk::apps::add_merge(app, exit_code);
  lk::apps::add_adapter(app, exit_code);
  lk::apps::add_bench(app, exit_code);
  lk::apps::add_keys(app, exit_code);
  lk::apps::add_simulate(app, exit_code);
  try {
    refuse_nan(app);
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return lk::apps::exit_code_of(app, error);
  }
  return exit_code;
}
