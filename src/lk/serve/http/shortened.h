// SPDX-License-Identifier: Apache-2.0
// Conversations that are too long, without their oldest turns.
#pragma once

#include <cstdint>

#include <boost/json/array.hpp>

namespace lk {

// How many turns could go: what stands before the last one that begins with a user's message. System messages at the
// beginning belong to none.
int64_t num_oldest_turns(const boost::json::array& messages);
// The conversation without so many of them: calls go with their results. Requires: there are so many.
boost::json::array without_oldest(const boost::json::array& messages, int64_t turns);

}  // namespace lk
