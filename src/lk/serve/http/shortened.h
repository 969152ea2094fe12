// SPDX-License-Identifier: Apache-2.0
// Conversations that are too long, without their oldest items.
#pragma once

#include <cstdint>
#include <functional>

#include <boost/json/array.hpp>

namespace lk {

// In how many steps a conversation can lose what is oldest: what stands before a later user's message; then, of an
// agent's loop behind the last one, its oldest calls with their results. The system messages at the beginning stay,
// and so do the last user's message and what comes behind the last results.
int64_t num_oldest_steps(const boost::json::array& messages);
// The conversation after so many of these steps. Requires: there are so many.
boost::json::array without_oldest(const boost::json::array& messages, int64_t steps);

// The fewest of `most` steps, at least one, after which a conversation fits; `most` when it never does. Looks from the
// short end on: the work goes by what fits, not by how long the conversation was.
int64_t fewest_steps(int64_t most, const std::function<bool(int64_t)>& fits);

}  // namespace lk
