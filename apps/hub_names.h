// SPDX-License-Identifier: Apache-2.0
// What a person wrote where the directory of a model or an adapter is wanted, as that directory. What is a directory is
// that directory, as transformers has it; else ORG/NAME[/SUBFOLDER][@REVISION] is the hub's, in its cache, and is
// fetched. Other text comes back as it is: whoever opens it says what is wrong.
//
// For command lines and files of whoever runs the program. Never for what a client sends.
#pragma once

#include <span>
#include <string>

#include "lk/hub/hub_pull.h"

namespace lk::apps {

// What is fetched of a repository: the files that are read of a model's or an adapter's directory.
std::span<const HubKind> model_files();
std::span<const HubKind> adapter_files();
std::span<const HubKind> model_or_adapter_files();

enum class Fetch : uint8_t { kFetch, kCachedOnly };

bool names_hub(const std::string& written);  // and no directory
Result<std::string> find_directory(const std::string& written, std::span<const HubKind> kinds,
                                   Fetch fetch = Fetch::kFetch);
// The same in place.
Status find_model(std::string& written, Fetch fetch = Fetch::kFetch);
Status find_adapter(std::string& written, Fetch fetch = Fetch::kFetch);

// With progress on standard error: a bar on a terminal, else a line per file and now and then one between.
Result<Pulled> pull_shown(const HubSettings& settings, const HubName& name, std::span<const HubKind> kinds);

}  // namespace lk::apps
