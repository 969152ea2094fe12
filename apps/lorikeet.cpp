// SPDX-License-Identifier: Apache-2.0
// lorikeet: many LoRA adapters over one base model.
#include "commands.h"
#include "config.h"
#include "help.h"

int main(int argc, char** argv) {
  CLI::App app{"Lorikeet serves many LoRA adapters over one shared base model."};
  app.name("lorikeet");
  app.set_version_flag("--version", LK_VERSION);
  app.require_subcommand(1);
  lk::apps::install_help(app);
  int exit_code = 0;
  lk::apps::add_generate(app, exit_code);
  lk::apps::add_serve(app, exit_code);
  lk::apps::add_inspect(app, exit_code);
  lk::apps::add_merge(app, exit_code);
  lk::apps::add_adapter(app, exit_code);
  lk::apps::add_bench(app, exit_code);
  lk::apps::add_keys(app, exit_code);
  lk::apps::add_simulate(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return lk::apps::exit_code_of(app, error);
  }
  return exit_code;
}
