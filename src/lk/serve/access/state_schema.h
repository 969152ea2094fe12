// SPDX-License-Identifier: Apache-2.0
// The state file's tables and their versions.
#pragma once

#include "lk/serve/access/sqlite.h"

namespace lk {

// Creates a missing file with mode 0600 and its directory, narrows a wider mode, opens, checks and, if it is empty,
// fills it.
Result<std::unique_ptr<SqliteDatabase>> open_state_file(const std::string& path);

}  // namespace lk
