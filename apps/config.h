// SPDX-License-Identifier: Apache-2.0
// Options of a command from a TOML file and from the environment: flag > LORIKEET_OPTION_NAME > --config FILE >
// default.
//
// Keys are the option names, dashes or underscores: `step_tokens = 512`. They stand at the top of the file or in tables
// named like the groups of --help ("[scheduling]"); tables are for the reader only. An unknown key, a value of another
// type and a value that the option refuses are errors with file and line.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>

#include "lk/base/status.h"

namespace lk::apps {

// Adds --config, --print-config and --check-config, and an environment variable to every option. Call it after all
// other options of `command` were added. `check` does what --check-config shall check beyond single values; it runs
// when every option has its value. Failures are thrown as CLI::RuntimeError with the message in what(), see
// exit_code_of().
void add_config_options(CLI::App& command, std::function<Status()> check = {});

// The exit code of the program for what parse() threw; prints the message. `app` is the one that parse() was called of.
int exit_code_of(const CLI::App& app, const CLI::ParseError& error);

}  // namespace lk::apps
