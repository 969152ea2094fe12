// SPDX-License-Identifier: Apache-2.0
// The TOML side of config.h: settings of a file, matched to options; and back.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "lk/base/status.h"

namespace lk::apps {

// The option's name in files and, in capitals, in the environment: the first long name, or the positional's in lower
// case.
std::string config_key(const CLI::Option& option);

struct Setting {
  CLI::Option* option = nullptr;
  std::vector<std::string> values;  // none: an empty list
  std::string where;                // "FILE:LINE: KEY"
};
// Every key of `file` belongs to an option of `command`, occurs once, and has a value of its type.
Result<std::vector<Setting>> read_config_file(const std::string& file, const CLI::App& command);

// The value of every option as a TOML file with the help as comments; options without a value are commented out.
std::string format_config(const CLI::App& command);

}  // namespace lk::apps
