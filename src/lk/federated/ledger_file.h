// SPDX-License-Identifier: Apache-2.0
// ledger.jsonl: what happened in a run, one JSON object a line, only ever appended to.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <string>

#include "lk/base/status.h"

namespace lk {

inline constexpr const char* kLedgerFile = "ledger.jsonl";

// On disk when it returns. What a crash left of a line before it stays a line of its own.
Status append_to_ledger(const std::string& path, const boost::json::object& line);
// Of each whole line, in order; those that are none are passed over. A file that is missing is empty.
Status read_ledger(const std::string& path, const std::function<void(const boost::json::object&)>& on_line);

}  // namespace lk
