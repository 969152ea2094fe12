// SPDX-License-Identifier: Apache-2.0
// A SimResult for people (a table) and for programs (JSON; tools/plot_simulation.py reads it).
#pragma once

#include <boost/json/object.hpp>

#include "lk/sim/metrics.h"

namespace lk::sim {

boost::json::object to_json(const SimResult& result, bool with_timeline);
std::string format_result(const SimResult& result, bool per_tenant);
// One line per run of a sweep, under sweep_header().
std::string sweep_header();
std::string sweep_line(const SimResult& result);

}  // namespace lk::sim
