// SPDX-License-Identifier: Apache-2.0
// Which directories requests may name: only such beneath configured roots, whatever links and ".." say (openat2
// RESOLVE_BENEATH). The returned path is opened later by name: roots must not be writable for people who are not
// trusted with the server's files.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// The canonical path of the directory `path`, which lies in one of `roots`. An absolute path begins with a root; a
// relative one is looked up in each root in turn. Links that stay within their root are followed, except on kernels
// without openat2 (before 5.6). kNotFound when it does not exist beneath a root; kPermissionDenied for everything
// outside, existing or not, naming no other path.
Result<std::string> resolve_beneath(const std::vector<std::string>& roots, const std::string& path);

// The same for a PEFT directory: the files read of it (config, weights, chat template), where they exist, must also lie
// in the root and be regular files.
Result<std::string> resolve_adapter_directory(const std::vector<std::string>& roots, const std::string& path);

// The same for `name`, which was listed in `directory`. It may also be a link to a directory beneath one of `roots`.
Result<std::string> resolve_listed_directory(const std::string& directory, const std::string& name,
                                             const std::vector<std::string>& roots);

// Whether an open file lies beneath one of `roots` now.
bool is_beneath(const std::vector<std::string>& roots, int fd);

// Roots with "{tenant}" as one of their directories are each tenant's own. The roots of `tenant`, or those of somebody
// who may read every tenant's ("" as its name): the directory that has them all.
std::vector<std::string> roots_of(const std::vector<std::string>& roots, std::string_view tenant);
inline constexpr std::string_view kTenantDirectory = "{tenant}";

}  // namespace lk
