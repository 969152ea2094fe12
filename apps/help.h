// SPDX-License-Identifier: Apache-2.0
// --help and --help-all. A command with many options names those that most people turn; --help shows these and says how
// many others there are, --help-all shows all of them.
#pragma once

#include <CLI/CLI.hpp>

#include <map>
#include <set>
#include <string>

namespace lk::apps {

// Gives the program and every subcommand that is added afterwards this help.
void install_help(CLI::App& program);

// What --help of `command` shows; --help-all shows every option. Without it both show everything. Requires: the
// options are there.
void show_in_help(CLI::App& command, const std::set<std::string>& names);
// "lora port": --lora and --port.
std::set<std::string> options_named(const std::string& words);

}  // namespace lk::apps
